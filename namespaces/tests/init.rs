//! The tiny init between a caller and its program.

mod common;

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use common::{Rootfs, container, stdout};
use namespaces::{Change, Command, Mount, Namespace, Stdio, TerminalSize, UserMapping};

fn below_init(script: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .unshare([Namespace::Pid, Namespace::Mount])
        .user_namespace(UserMapping::CallerAsRoot)
        .mount(Mount::proc("/proc"))
        .init(true);
    command
}

#[test]
fn it_is_pid_1_and_the_program_is_not() {
    let script = "sleep 0.1; echo $$; cat /proc/1/comm; tr '\\0' ' ' < /proc/1/cmdline | sed 's/ *$/|/'; echo; readlink /proc/1/exe; ls /proc/1/fd | wc -l; \
                  grep -E '^(Uid|CapEff|NoNewPrivs)' /proc/1/status /proc/self/status | \
                  cut -d: -f2- | sort | uniq -c | wc -l";
    let mut command = below_init(script);
    command.no_new_privs(true);
    let output = command.output().expect("output");
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first(), Some(&"2"), "{text}");
    assert_eq!(lines.get(1), Some(&"init"), "{text}");
    // It cannot be looked into, by root of the namespace neither.
    assert_eq!(lines.get(2..), Some(&["init|", "0", "3"][..]), "{output:?}");
}

#[test]
fn its_status_is_that_of_the_program() {
    assert_eq!(
        below_init("exit 7").status().expect("spawn").code(),
        Some(7)
    );
    let status = below_init("kill -KILL $$").status().expect("spawn");
    assert_eq!((status.code(), status.signal()), (Some(137), None));
    let mut missing = Command::new("/no/such/program");
    missing
        .unshare([Namespace::Pid])
        .user_namespace(UserMapping::CallerAsRoot)
        .init(true);
    let error = missing.spawn().expect_err("missing");
    assert_eq!(error.shell_status(), Some(127));
}

#[test]
fn orphans_are_reaped() {
    // Each inner shell leaves a process behind that outlives it, and ends.
    let script = "for i in 1 2 3 4 5 6 7 8 9 10; do (sh -c 'sleep 0.05' &) ; done; sleep 1; \
                  cat /proc/[0-9]*/stat | cut -d' ' -f3 | sort | uniq -c | grep -c Z; true";
    assert_eq!(stdout(&mut below_init(script)), "0\n");
    // Where the program itself is PID 1 they stay, if it does not look after them.
    let mut alone = Command::new("sleep");
    alone
        .arg("60")
        .unshare([Namespace::Pid, Namespace::Mount])
        .user_namespace(UserMapping::CallerAsRoot)
        .mount(Mount::proc("/proc"))
        .kill_on_drop(true);
    let alone = alone.spawn().expect("spawn");
    let mut leaves = Command::new("sh");
    leaves
        .args([
            "-c",
            "(sleep 0.05 &); sleep 1; cat /proc/[0-9]*/stat | grep -c ' Z '",
        ])
        .enter(&alone);
    assert_eq!(stdout(&mut leaves), "1\n");
}

#[test]
fn signals_are_passed_on() {
    for signal in [
        "TERM", "INT", "HUP", "USR1", "USR2", "QUIT", "WINCH", "RTMIN",
    ] {
        let script =
            format!("trap 'echo got; exit 3' {signal}; echo ready; while :; do sleep 0.01; done");
        // dash knows no real-time signals by name.
        let mut command = Command::new("bash");
        command
            .args(["-c", &script])
            .unshare([Namespace::Pid])
            .user_namespace(UserMapping::CallerAsRoot)
            .init(true)
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("spawn");
        let mut out = child.stdout.take().expect("a pipe");
        let mut ready = [0; 6];
        out.read_exact(&mut ready).expect("read");
        let number = match signal {
            "TERM" => 15,
            "INT" => 2,
            "HUP" => 1,
            "USR1" => 10,
            "USR2" => 12,
            "QUIT" => 3,
            "WINCH" => 28,
            _ => libc_rtmin(),
        };
        child.signal(number).expect("signal");
        let status = child
            .wait_timeout(Duration::from_mins(1))
            .expect("wait")
            .expect("it ends");
        assert_eq!(status.code(), Some(3), "{signal}");
        let mut rest = String::new();
        out.read_to_string(&mut rest).expect("read");
        assert_eq!(rest, "got\n", "{signal}");
    }
}

/// What bash and glibc call so: the kernel's first two are glibc's own.
fn libc_rtmin() -> i32 {
    34
}

#[test]
fn without_a_pid_namespace_it_is_a_subreaper() {
    // The orphan comes to the init, not to this process.
    let script = "init=$PPID; sh -c 'sleep 0.3 & echo $! > /proc/self/fd/3'; \
                  read -r orphan < /dev/fd/4; cut -d' ' -f4 /proc/$orphan/stat; echo $init; sleep 0.6; \
                  test -e /proc/$orphan || echo reaped";
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = Command::new("bash");
    command
        .args(["-c", script])
        .fd(3, writer)
        .fd(4, reader)
        .init(true);
    let text = stdout(&mut command);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], lines[1], "{text}");
    assert_eq!(lines[2], "reaped");
}

#[test]
fn the_program_dies_with_its_init() {
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = Command::new("sh");
    command
        .args(["-c", "echo $$; exec sleep 60"])
        .stdout(std::os::fd::OwnedFd::from(writer))
        .init(true)
        .kill_on_drop(true);
    let child = command.spawn().expect("spawn");
    drop(command);
    let mut pid = [0; 16];
    let length = reader.read(&mut pid).expect("read");
    assert!(length > 0);
    drop(child);
    // The end of the pipe tells that nobody holds it any more.
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).expect("read");
}

#[test]
fn the_program_leads_the_session_of_its_terminal() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "cut -d' ' -f1,4,6,8 /proc/self/stat; echo $$");
    command
        .mounts(Mount::standard())
        .init(true)
        .terminal(TerminalSize {
            rows: 10,
            columns: 20,
        });
    let mut child = command.spawn().expect("spawn");
    let master = child.terminal.take().expect("a terminal");
    assert!(child.wait().expect("wait").success());
    let mut buffer = [0; 200];
    let length = rustix::io::read(&master, &mut buffer).expect("read");
    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
    // pid, parent, session, foreground group of the terminal; then the shell, which is the leader.
    let mut lines = text.lines();
    let numbers: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    assert_eq!(lines.next().map(str::trim), Some("2"), "{text}");
    assert_eq!(numbers.get(1..), Some(&["2", "2", "2"][..]), "{text}");
}

/// In one session with its program it gets the terminal's signals, as the program itself does.
#[test]
fn signals_of_a_terminal_come_once() {
    const ROLE: &str = "COFFERDAM_ROLE";
    if std::env::var_os(ROLE).is_some() {
        // This process is in the foreground group, too.
        signal_hook::flag::register(2, std::sync::Arc::default()).expect("a handler");
        let script = "trap 'echo got' INT; echo ready; \
                      i=0; while test $i -lt 30; do sleep 0.02; i=$((i+1)); done; echo end";
        let mut command = Command::new("bash");
        command.args(["-c", script]).init(true);
        let mut child = command.spawn().expect("spawn");
        child.wait().expect("wait");
        return;
    }
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command
        .args(["--exact", "signals_of_a_terminal_come_once", "--nocapture"])
        .env(ROLE, "inside")
        .unshare([Namespace::Mount])
        .user_namespace(UserMapping::CallerAsRoot)
        .mount(Mount::devpts("/dev/pts"))
        .terminal(TerminalSize {
            rows: 10,
            columns: 80,
        });
    let mut child = command.spawn().expect("spawn");
    let master = child.terminal.take().expect("a terminal");
    let mut text = String::new();
    let mut interrupted = false;
    let mut buffer = [0; 500];
    // EIO is the end of a terminal.
    while let Ok(length @ 1..) = rustix::io::read(&master, &mut buffer) {
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        if text.contains("ready") && !interrupted {
            interrupted = true;
            rustix::io::write(&master, b"\x03").expect("write");
        }
    }
    assert!(child.wait().expect("wait").success(), "{text}");
    assert_eq!(text.matches("got").count(), 1, "{text}");
    assert!(text.contains("end"), "{text}");
}

#[test]
fn stops_are_told() {
    let mut command = Command::new("sh");
    let mut child = command
        .args(["-c", "kill -STOP $$; exit 5"])
        .spawn()
        .expect("spawn");
    assert_eq!(child.wait_change().expect("wait"), Change::Stopped(19));
    assert_eq!(child.try_wait_change().expect("wait"), None);
    assert_eq!(child.try_wait().expect("wait"), None);
    child.signal(18).expect("signal");
    assert_eq!(child.wait_change().expect("wait"), Change::Continued);
    let Change::Ended(status) = child.wait_change().expect("wait") else {
        panic!("it ends");
    };
    assert_eq!(status.code(), Some(5));
    assert_eq!(child.wait().expect("wait"), status);
    assert!(child.usage().is_some());
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
