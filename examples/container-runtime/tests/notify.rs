//! System calls that somebody outside answers: `SCMP_ACT_NOTIFY`.

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};

use common::{Bundle, stderr, stdout};
use serde_json::{Value, json};

/// Takes a listener from a socket, prints what comes with it, and answers one call with success
/// without doing anything (seccomp_unotify(2)).
const LISTENER: &str = r#"
import array, fcntl, socket, struct, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen(1)
print("ready", flush=True)
connection, _ = server.accept()
fds = array.array("i")
text, control, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(fds.itemsize))
for _, _, data in control:
    fds.frombytes(data)
while more := connection.recv(65536):
    text += more
call = bytearray(80)
fcntl.ioctl(fds[0], 0xC0502100, call)
fcntl.ioctl(fds[0], 0xC0182101, call[:8] + struct.pack("qiI", 0, 0, 0))
print(struct.unpack_from("i", call, 16)[0])
print(text.decode())
"#;

/// `mkdir` on x86-64.
const MKDIR: &str = "83";

#[test]
#[ignore = "needs root"]
fn a_listener_answers_in_the_containers_name() {
    let mut bundle = Bundle::new(&["sh", "-c", "busybox mkdir /new && echo made; ls -d /new"]);
    let socket = bundle.path().join("listener");
    bundle
        .set("/annotations", json!({"org.example": "told"}))
        .set(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "listenerPath": socket,
                "listenerMetadata": "for the listener",
                "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
            }),
        );
    let mut listener = Command::new("python3")
        .args(["-c", LISTENER])
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3; is it installed?");
    let mut said = BufReader::new(listener.stdout.take().unwrap());
    let mut ready = String::new();
    said.read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");

    let output = bundle.run();
    // Whatever has come of it, it does not wait for another.
    let _ = listener.kill();
    let _ = listener.wait();
    let mut told = String::new();
    said.read_to_string(&mut told).unwrap();
    assert_eq!(stdout(&output), "made\n", "{}", stderr(&output));
    assert!(stderr(&output).contains("/new"), "{}", stderr(&output));
    let (call, state) = told.split_once('\n').expect("two lines");
    assert_eq!(call, MKDIR);
    let state: Value = serde_json::from_str(state).unwrap();
    assert_eq!(state["fds"], json!(["seccompFd"]));
    assert_eq!(state["metadata"], "for the listener");
    assert_eq!(state["state"]["annotations"]["org.example"], "told");
    assert_eq!(state["state"]["pid"], state["pid"]);
    assert_eq!(state["state"]["bundle"], bundle.path().to_str().unwrap());
}

#[test]
#[ignore = "needs root"]
fn a_listener_that_is_not_there_is_told() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.set(
        "/linux/seccomp",
        json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "listenerPath": "/nonexistent/listener",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
        }),
    );
    let output = bundle.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("linux.seccomp.listenerPath: "),
        "{output:?}"
    );
}
