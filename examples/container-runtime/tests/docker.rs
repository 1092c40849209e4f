//! Docker with this runtime in place of runc.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{Daemon, OURS, stderr, stdout};
use tempfile::TempDir;

/// A daemon of its own, with an image `box`; both are gone when it is dropped.
struct Docker {
    daemon: Option<Daemon>,
    directory: TempDir,
}

impl Docker {
    fn new() -> Self {
        let mut docker = Self {
            daemon: None,
            directory: tempfile::tempdir().unwrap(),
        };
        let mut dockerd = Command::new("dockerd");
        dockerd
            .args(["-H", &format!("unix://{}", docker.path("socket"))])
            .args(["--data-root", &docker.path("root")])
            .args(["--exec-root", &docker.path("exec")])
            .args(["--pidfile", &docker.path("pid")])
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--storage-driver", "vfs"])
            // Where systemd is process 1, a parent would have to be a slice.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--cgroup-parent", &common::unique()])
            .args(["--add-runtime", &format!("cofferdam={OURS}")])
            .args(["--default-runtime", "cofferdam"])
            // Where containerd writes its stacks before dockerd restarts a slow one.
            .env("TMPDIR", docker.directory.path());
        let answers = || docker.docker(&["version"]).status.success();
        docker.daemon = Some(Daemon::start(dockerd, docker.path("log").into(), answers));
        let import = docker.command(&["import", "-", "box"]);
        common::import(Path::new(&docker.path("image")), import);
        docker
    }

    fn path(&self, name: &str) -> String {
        let path = self.directory.path().join(name);
        path.to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command
            .args(["-H", &format!("unix://{}", self.path("socket"))])
            .args(arguments)
            .env("DOCKER_CONFIG", self.path("config"))
            .env("DOCKER_BUILDKIT", "0")
            .stdin(Stdio::null());
        command
    }

    fn docker(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .output()
            .expect("docker; install docker.io")
    }

    /// What a command prints that must succeed.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.docker(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    }

    fn run(&self, options: &[&str], args: &[&str]) -> Output {
        self.docker(&[&["run", "--rm", "--net=none"], options, &["box"], args].concat())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let left = stdout(&self.docker(&["ps", "-aq"]));
        for id in left.lines() {
            let _ = self.docker(&["rm", "--force", id]);
        }
        drop(self.daemon.take());
        common::remove_groups_of_this_process();
    }
}

#[test]
#[ignore = "needs root"]
fn containers_run_with_what_is_asked_for() {
    let docker = Docker::new();
    let said = |options: &[&str], script: &str| {
        let output = docker.run(options, &["sh", "-c", script]);
        format!("{}{}", stdout(&output), stderr(&output))
    };
    assert_eq!(said(&[], "echo hello"), "hello\n");
    assert!(said(&["-v", "/etc/hostname:/h:ro"], "echo x > /h").contains("Read-only"));
    assert!(said(&["--read-only"], "touch /x").contains("Read-only"));
    assert!(
        said(&["--cap-drop", "all"], "grep CapEff /proc/self/status")
            .ends_with("0000000000000000\n")
    );
    assert!(said(&[], "grep Seccomp: /proc/self/status").ends_with("2\n"));
    // A call that Docker's profile refuses, with the rights for it.
    assert!(
        said(
            &["--cap-add", "all", "--cap-drop", "sys_admin"],
            "mount -t tmpfs x /tmp"
        )
        .contains("denied")
    );
    let unconfined = ["--security-opt", "seccomp=unconfined"];
    assert!(said(&unconfined, "grep Seccomp: /proc/self/status").ends_with("0\n"));
    let ours = docker.path("profile.json");
    fs::write(&ours, r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["sethostname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 121}]}"#).unwrap();
    let own = [
        "--cap-add",
        "sys_admin",
        "--security-opt",
        &format!("seccomp={ours}"),
    ];
    assert!(said(&own, "hostname x").contains("Remote I/O error"));
    assert_eq!(
        said(&["--user", "33"], "id -u; echo $HOME"),
        "33\n/home/web\n"
    );
    assert!(said(&["--privileged"], "stat -c %t:%T /dev/kmsg").contains("1:b"));
    assert!(
        said(
            &["--pids-limit", "4"],
            "for i in 1 2 3 4 5 6; do sleep 1 & done"
        )
        .contains("can't fork")
    );
    assert!(said(&["--init"], "cat /proc/1/cmdline | tr '\\0' ' '").contains("docker-init"));
    assert!(said(&["--tmpfs", "/x:size=1m"], "grep ' /x ' /proc/mounts").contains("size=1024k"));
    assert_eq!(
        said(
            &["--sysctl", "net.ipv4.ip_forward=1"],
            "cat /proc/sys/net/ipv4/ip_forward"
        ),
        "1\n"
    );
    assert!(said(&["--ulimit", "nofile=100"], "ulimit -n").ends_with("100\n"));

    let code = |options: &[&str], args: &[&str]| docker.run(options, args).status.code();
    assert_eq!(code(&[], &["sh", "-c", "exit 3"]), Some(3));
    assert_eq!(code(&[], &["nothing"]), Some(127));
    assert_eq!(code(&[], &["/etc/passwd"]), Some(126));
    let greedy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
    assert_eq!(
        code(&["--memory", "16m", "--cpus", "0.9"], &greedy),
        Some(137)
    );

    let mut command = docker.command(&["run", "--rm", "-i", "--net=none", "box", "cat"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"through\n").unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), "through\n");
    let terminal = docker.command(&["run", "--rm", "-it", "--net=none", "box", "tty"]);
    let text = common::with_terminal(&terminal);
    assert!(text.contains("/dev/pts/0"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn a_container_is_managed_while_it_runs() {
    let docker = Docker::new();
    docker.done(&[
        "run",
        "-d",
        "--name",
        "aa",
        "--net=none",
        "box",
        "sleep",
        "1000",
    ]);
    let status = || docker.done(&["inspect", "-f", "{{.State.Status}}", "aa"]);
    assert_eq!(status(), "running\n");
    assert!(docker.done(&["exec", "aa", "ps"]).contains("sleep 1000"));
    assert_eq!(
        docker.done(&[
            "exec",
            "-u",
            "5:6",
            "-w",
            "/tmp",
            "-e",
            "A=b",
            "aa",
            "sh",
            "-c",
            "id -u; pwd; echo $A"
        ]),
        "5\n/tmp\nb\n"
    );
    assert_eq!(
        docker
            .docker(&["exec", "aa", "sh", "-c", "exit 7"])
            .status
            .code(),
        Some(7)
    );
    let missing = docker.docker(&["exec", "aa", "nothing"]);
    assert!(
        [126, 127].contains(&missing.status.code().unwrap()),
        "{missing:?}"
    );
    let text = common::with_terminal(&docker.command(&["exec", "-it", "aa", "tty"]));
    assert!(text.contains("/dev/pts/0"), "{text}");
    docker.done(&["pause", "aa"]);
    assert_eq!(status(), "paused\n");
    docker.done(&["unpause", "aa"]);
    assert!(docker.done(&["top", "aa"]).contains("sleep 1000"));
    assert!(docker.done(&["stats", "--no-stream", "aa"]).contains("aa"));
    docker.done(&["update", "--memory", "64m", "--memory-swap", "64m", "aa"]);
    docker.done(&["restart", "-t", "0", "aa"]);
    assert_eq!(status(), "running\n");
    docker.done(&["stop", "-t", "0", "aa"]);
    assert_eq!(status(), "exited\n");
    docker.done(&["start", "aa"]);
    docker.done(&["kill", "aa"]);
    assert_eq!(docker.done(&["wait", "aa"]), "137\n");
    docker.done(&["rm", "aa"]);

    let context = docker.path("context");
    fs::create_dir(&context).unwrap();
    let dockerfile = "FROM box\nRUN echo built > /etc/built\nCMD [\"cat\", \"/etc/built\"]\n";
    fs::write(Path::new(&context).join("Dockerfile"), dockerfile).unwrap();
    docker.done(&["build", "--network", "none", "-t", "built", &context]);
    assert_eq!(
        docker.done(&["run", "--rm", "--net=none", "built"]),
        "built\n"
    );
}
