//! containerd with this runtime in place of runc.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Daemon, OURS, stderr, stdout};
use tempfile::TempDir;

/// A daemon of its own, gone when it is dropped.
struct Containerd {
    daemon: Option<Daemon>,
    directory: TempDir,
}

impl Containerd {
    fn new() -> Self {
        let mut containerd = Self {
            daemon: None,
            directory: tempfile::tempdir().unwrap(),
        };
        let config = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n[ttrpc]\naddress = {:?}\n",
            containerd.path("root"),
            containerd.path("state"),
            containerd.path("socket"),
            containerd.path("ttrpc"),
        );
        fs::write(containerd.path("config.toml"), config).unwrap();
        let mut daemon = Command::new("containerd");
        daemon
            .args(["--config", &containerd.path("config.toml")])
            .env("TMPDIR", containerd.directory.path());
        let answers = || containerd.ctr(&["version"]).status.success();
        containerd.daemon = Some(Daemon::start(
            daemon,
            containerd.path("log").into(),
            answers,
        ));
        common::image(Path::new(&containerd.path("rootfs")));
        containerd
    }

    fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ctr");
        command
            .args(["--address", &self.path("socket")])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn ctr(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .output()
            .expect("ctr; install containerd")
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.ctr(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    }

    /// The words of `ctr run`.
    fn run<'a>(options: &[&'a str], rootfs: &'a str, args: &[&'a str]) -> Vec<&'a str> {
        [
            &["run", "--runc-binary", OURS, "--rootfs"],
            options,
            &[rootfs],
            args,
        ]
        .concat()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for task in stdout(&self.ctr(&["task", "ls", "-q"])).lines() {
            let _ = self.ctr(&["task", "rm", "--force", task]);
        }
        drop(self.daemon.take());
    }
}

#[test]
#[ignore = "needs root"]
fn containers_are_run_and_managed() {
    let containerd = Containerd::new();
    let rootfs = containerd.path("rootfs");
    let name = |suffix: &str| format!("{}-{suffix}", common::unique());
    let id = name("short");
    let output = containerd.ctr(&Containerd::run(
        &["--rm"],
        &rootfs,
        &[&id, "sh", "-c", "echo hello; exit 5"],
    ));
    assert_eq!(
        (stdout(&output).as_str(), output.status.code()),
        ("hello\n", Some(5)),
        "{}",
        stderr(&output)
    );
    let id = name("limited");
    let options = [
        "--rm",
        "--memory-limit",
        "16777216",
        "--seccomp",
        "--read-only",
    ];
    let args = [
        id.as_str(),
        "sh",
        "-c",
        "touch /x; grep Seccomp: /proc/self/status; dd if=/dev/zero of=/dev/null bs=64M count=1",
    ];
    let output = containerd.ctr(&Containerd::run(&options, &rootfs, &args));
    assert!(stdout(&output).contains("Seccomp:\t2"), "{output:?}");
    assert!(stderr(&output).contains("Read-only"), "{output:?}");
    assert_eq!(output.status.code(), Some(137));
    let id = name("missing");
    let output = containerd.ctr(&Containerd::run(&["--rm"], &rootfs, &[&id, "nothing"]));
    assert!(
        stderr(&output).contains("executable file not found"),
        "{output:?}"
    );

    let id = &name("long");
    containerd.done(&Containerd::run(&["-d"], &rootfs, &[id, "sleep", "1000"]));
    let status = || containerd.done(&["task", "ls"]);
    assert!(status().contains("RUNNING"), "{}", status());
    let exec = containerd.done(&["task", "exec", "--exec-id", "e1", id, "ps"]);
    assert!(exec.contains("sleep 1000"), "{exec}");
    let terminal = containerd.command(&["task", "exec", "-t", "--exec-id", "e2", id, "tty"]);
    let text = common::with_terminal(&terminal);
    assert!(text.contains("/dev/pts/0"), "{text}");
    containerd.done(&["task", "pause", id]);
    assert!(status().contains("PAUSED"), "{}", status());
    containerd.done(&["task", "resume", id]);
    assert!(containerd.done(&["task", "ps", id]).lines().count() == 2);
    containerd.done(&["task", "kill", "-s", "SIGKILL", id]);
    common::eventually("its end", || status().contains("STOPPED"));
    containerd.done(&["task", "rm", id]);
    containerd.done(&["container", "rm", id]);
}
