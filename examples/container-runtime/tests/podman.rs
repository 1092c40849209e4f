//! Podman with this runtime in place of runc.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::{OURS, stderr, stdout};
use tempfile::TempDir;

/// What every container needs on any machine: no network to be set up, and limits that need no
/// privilege to be set.
const LIMITS: [&str; 5] = [
    "--net=none",
    "--ulimit",
    "nofile=1024:1024",
    "--ulimit",
    "nproc=1024:1024",
];

/// Podman with storage of its own, which is gone when it is dropped.
struct Podman(TempDir);

impl Podman {
    fn new() -> Self {
        let podman = Self(tempfile::tempdir().unwrap());
        // With locks of its own: by default they are in a segment of shared memory that is one for
        // all storage, and two that make it at once can break it.
        fs::write(
            podman.path("containers.conf"),
            "[containers]\ndefault_ulimits = []\n[engine]\nlock_type = \"file\"\ninfra_image = \"box\"\n",
        )
        .unwrap();
        // With a directory of its own for the state of containers. By --runtime-flag it cannot be
        // said: Podman forgets that when it cleans up after a container.
        let runtime = podman.path("cofferdam-runtime");
        let script = format!(
            "#!/bin/sh\nexec {OURS} --root {} \"$@\"\n",
            podman.path("state")
        );
        fs::write(&runtime, script).unwrap();
        fs::set_permissions(&runtime, Permissions::from_mode(0o755)).unwrap();
        let command = r#"CMD ["sleep", "1000"]"#;
        let import = podman.command(&["import", "--change", command, "-", "box"]);
        common::import(Path::new(&podman.path("image")), import);
        podman
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_CONF", self.path("containers.conf"))
            .args(["--root", &self.path("root"), "--runroot", &self.path("run")])
            .args(["--tmpdir", &self.path("tmp"), "--storage-driver", "vfs"])
            .args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"])
            .args(["--runtime", &self.path("cofferdam-runtime")])
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn podman(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What a command prints that must succeed.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.podman(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    }

    /// `podman run --rm`.
    fn run(&self, options: &[&str], args: &[&str]) -> Output {
        let line = [&["run", "--rm"], &LIMITS[..], options, &["box"], args].concat();
        self.podman(&line)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let _ = self.podman(&["pod", "rm", "--all", "--force", "--time", "0"]);
        let _ = self.podman(&["rm", "--all", "--force", "--time", "0"]);
    }
}

#[test]
#[ignore = "needs root"]
fn containers_run_with_what_is_asked_for() {
    let podman = Podman::new();
    let said = |options: &[&str], script: &str| {
        let output = podman.run(options, &["sh", "-c", script]);
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
    assert_eq!(
        said(
            &["--sysctl", "net.ipv4.ip_forward=1"],
            "cat /proc/sys/net/ipv4/ip_forward"
        ),
        "1\n"
    );
    assert!(
        said(
            &["--tmpfs", "/etc:size=1m,tmpcopyup"],
            "cat /etc/passwd; grep ' /etc ' /proc/mounts"
        )
        .contains("root:x:0:0")
    );
    assert!(said(&["--privileged"], "stat -c %t:%T /dev/kmsg").contains("1:b"));
    assert!(
        said(
            &["--pids-limit", "4"],
            "for i in 1 2 3 4 5 6; do sleep 1 & done"
        )
        .contains("can't fork")
    );
    let ids = ["--uidmap", "0:100000:1000", "--gidmap", "0:100000:1000"];
    assert_eq!(
        said(
            &ids,
            "touch /x; stat -c %u:%g /x; cat /proc/self/uid_map | tr -s ' '"
        ),
        "0:0\n 0 100000 1000\n"
    );

    let code = |options: &[&str], args: &[&str]| podman.run(options, args).status.code();
    assert_eq!(code(&[], &["sh", "-c", "exit 3"]), Some(3));
    assert_eq!(code(&[], &["nothing"]), Some(127));
    assert_eq!(code(&[], &["/etc/passwd"]), Some(126));
    let greedy = ["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"];
    assert_eq!(code(&["--memory", "16m"], &greedy), Some(137));
}

#[test]
#[ignore = "needs root"]
fn a_container_is_managed_while_it_runs() {
    let podman = Podman::new();
    let mut line = vec!["run", "-d", "--name", "aa"];
    line.extend(LIMITS);
    line.extend(["box", "sleep", "1000"]);
    podman.done(&line);
    let status = || podman.done(&["inspect", "-f", "{{.State.Status}}", "aa"]);
    assert_eq!(status(), "running\n");
    assert!(podman.done(&["exec", "aa", "ps"]).contains("sleep 1000"));
    assert_eq!(
        podman.done(&[
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
        podman
            .podman(&["exec", "aa", "sh", "-c", "exit 7"])
            .status
            .code(),
        Some(7)
    );
    assert_eq!(
        podman.podman(&["exec", "aa", "nothing"]).status.code(),
        Some(127)
    );
    podman.done(&["pause", "aa"]);
    assert_eq!(status(), "paused\n");
    podman.done(&["unpause", "aa"]);
    assert!(podman.done(&["top", "aa"]).contains("sleep 1000"));
    podman.done(&["restart", "-t", "0", "aa"]);
    assert_eq!(status(), "running\n");
    podman.done(&["stop", "-t", "0", "aa"]);
    assert_eq!(status(), "exited\n");
    podman.done(&["start", "aa"]);
    podman.done(&["kill", "aa"]);
    assert_eq!(podman.done(&["wait", "aa"]), "137\n");
    podman.done(&["rm", "aa"]);
}

#[test]
#[ignore = "needs root"]
fn a_terminal_is_one() {
    let podman = Podman::new();
    let mut line = vec!["run", "--rm", "-it"];
    line.extend(LIMITS);
    // With any runtime, Podman may miss what a container says that ends at once.
    line.extend(["box", "sh", "-c", "tty; sleep 1"]);
    let text = common::with_terminal(&podman.command(&line));
    assert!(text.contains("/dev/pts/0"), "{text}");
}

/// As for Kubernetes; with the machine's network, so that none has to be set up.
const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: pp
spec:
  hostNetwork: true
  restartPolicy: Never
  containers:
    - name: p1
      image: localhost/box:latest
      imagePullPolicy: Never
      command: [sh, -c, 'echo $NAME; exec sleep 1000']
      env:
        - {name: NAME, value: given}
      securityContext: {readOnlyRootFilesystem: true, runAsUser: 33}
      resources: {limits: {memory: 33554432}}
    - name: p2
      image: localhost/box:latest
      imagePullPolicy: Never
";

#[test]
#[ignore = "needs root"]
fn a_pod_is_made_from_its_description_and_shares_its_namespaces() {
    let podman = Podman::new();
    let file = podman.path("pod.yaml");
    fs::write(&file, POD).unwrap();
    podman.done(&["play", "kube", &file]);
    let pods = podman.done(&[
        "pod",
        "ps",
        "--format",
        "{{.Name}} {{.Status}} {{.NumberOfContainers}}",
    ]);
    // One holds the namespaces.
    assert_eq!(pods, "pp Running 3\n");
    common::eventually("it has spoken", || {
        podman.done(&["logs", "pp-p1"]) == "given\n"
    });
    let script = "id -u; touch /x 2> /dev/null || echo kept; readlink /proc/self/ns/ipc";
    let first = podman.done(&["exec", "pp-p1", "sh", "-c", script]);
    let ipc = first
        .strip_prefix("33\nkept\n")
        .expect("a user, and no file");
    assert_eq!(
        podman.done(&["exec", "pp-p2", "readlink", "/proc/self/ns/ipc"]),
        ipc
    );
    let kube = podman.done(&["generate", "kube", "pp"]);
    assert!(kube.contains("memory: 32Mi"), "{kube}");
    podman.done(&["pod", "pause", "pp"]);
    podman.done(&["pod", "unpause", "pp"]);
    podman.done(&["play", "kube", "--down", &file]);
    assert_eq!(podman.done(&["ps", "-aq"]), "");
}
