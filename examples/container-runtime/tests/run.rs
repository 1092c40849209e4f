//! Containers, beside the same ones of runc.

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use common::{Bundle, OURS, eventually, stderr, stdout, unique};
use serde_json::{Value, json};

fn sh(script: &str) -> Bundle {
    Bundle::new(&["/bin/sh", "-c", script])
}

/// The control groups with that name, in any hierarchy.
fn groups_of(name: &str) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (point, kind) = (fields.next()?, fields.next()?);
            let group = Path::new(point).join(name);
            (kind.starts_with("cgroup") && group.exists()).then_some(group)
        })
        .collect()
}

/// A script to run, and the changes to the default configuration: JSON pointers and values.
type Case = (&'static str, &'static str, Vec<(&'static str, Value)>);

fn cases() -> Vec<Case> {
    let all = json!(["CAP_CHOWN", "CAP_SETUID", "CAP_NET_RAW"]);
    vec![
        ("exit status", "exit 7", vec![]),
        (
            "killed",
            "kill -9 $$; echo not reached",
            vec![(
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "uts"}, {"type": "network"}, {"type": "ipc"}]),
            )],
        ),
        (
            "hostname",
            "hostname; cat /proc/sys/kernel/hostname",
            vec![("/hostname", json!("box"))],
        ),
        (
            "capabilities",
            "grep -E '^(Cap(Prm|Eff|Bnd|Inh)|NoNewPrivs)' /proc/self/status",
            vec![],
        ),
        (
            "more capabilities, inherited",
            "grep -E '^(Cap|NoNewPrivs)' /proc/self/status",
            vec![
                (
                    "/process/capabilities",
                    json!({"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all}),
                ),
                ("/process/noNewPrivileges", json!(false)),
            ],
        ),
        (
            "no capabilities",
            "grep -E '^Cap' /proc/self/status",
            vec![("/process/capabilities", json!({}))],
        ),
        (
            "capabilities of a user",
            "grep -E '^(Cap|Uid|Gid|Groups)' /proc/self/status",
            vec![
                (
                    "/process/user",
                    json!({"uid": 33, "gid": 34, "additionalGids": [5, 7]}),
                ),
                (
                    "/process/capabilities",
                    json!({"bounding": all, "effective": all, "permitted": all, "inheritable": all, "ambient": all}),
                ),
            ],
        ),
        (
            "user",
            "id -u; id -g; id -G; umask; echo $HOME",
            vec![(
                "/process/user",
                json!({"uid": 33, "gid": 33, "additionalGids": [5], "umask": 0o27}),
            )],
        ),
        ("umask", "umask; echo $HOME", vec![]),
        (
            "limits",
            "grep -E '^Max (open files|core file size|stack)' /proc/self/limits",
            vec![(
                "/process/rlimits",
                json!([
                    {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
                    {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                    {"type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152},
                ]),
            )],
        ),
        (
            "a read-only root",
            "touch /x; echo $?; touch /dev/shm/x; echo $?",
            vec![],
        ),
        (
            "a writable root",
            "touch /tmp/x && ls /tmp",
            vec![("/root/readonly", json!(false))],
        ),
        (
            "masked and read-only paths",
            "cat /etc/secret; ls /home; cat /proc/keys | wc -l; echo 1 > /proc/sys/vm/drop_caches; echo $?",
            vec![(
                "/linux/maskedPaths",
                json!(["/etc/secret", "/home", "/proc/keys", "/not/there"]),
            )],
        ),
        (
            "a working directory",
            "pwd; echo $PWD",
            vec![("/process/cwd", json!("/home/web"))],
        ),
        (
            "a working directory that is missing",
            "pwd; stat -c '%a %u' .",
            vec![
                ("/process/cwd", json!("/srv/new")),
                ("/root/readonly", json!(false)),
            ],
        ),
        (
            "environment",
            "env | grep -v -E '^(SHLVL|PWD|OLDPWD|_)=' | sort",
            vec![(
                "/process/env",
                json!(["PATH=/bin", "A=1", "B=x=y z", "EMPTY="]),
            )],
        ),
        (
            "what is mounted",
            // The options of the mount, not of the file system: runc makes its own file systems
            // by the older interface, where `ro` is both.
            "awk '{print $5, $6, $8 == \"-\" ? $9 : $8}' /proc/self/mountinfo | grep -v -E '^/(sys/fs/cgroup|proc/|sys/firmware|dev/console|dev/ptmx| )' | grep -v '^/ ' | sort",
            vec![],
        ),
        ("processes", "set -- /proc/[0-9]*; echo $#; echo $$", vec![]),
        (
            "network",
            "cut -d: -f1 /proc/net/dev | sed 1,2d; cat /sys/class/net/lo/flags",
            vec![],
        ),
        (
            "devices",
            "cd /dev; for d in null zero full random urandom tty; do stat -c '%n %t %T %a %F' $d; done; for l in fd stdin stdout stderr ptmx; do echo $l $(readlink $l); done; echo x > /dev/null && head -c 3 /dev/zero | wc -c",
            vec![],
        ),
        (
            "binds",
            "cat /data/secret; touch /data/x; echo $?; grep ' /data ' /proc/self/mountinfo | cut -d' ' -f6",
            vec![(
                "/mounts/-",
                json!({"destination": "/data", "source": "rootfs/etc", "type": "bind", "options": ["rbind", "ro", "nosuid", "nodev"]}),
            )],
        ),
        (
            "tmpfs options",
            "grep ' /tmp ' /proc/mounts | cut -d' ' -f2-4 | tr , '\\n' | grep -E 'size|mode|noexec|nr_inodes'",
            vec![(
                "/mounts/-",
                json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["noexec", "mode=700", "size=1m", "nr_inodes=100"]}),
            )],
        ),
        (
            "a user namespace",
            "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; stat -c %u /proc/self",
            vec![
                ("/linux/namespaces/-", json!({"type": "user"})),
                (
                    "/linux/uidMappings",
                    json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]),
                ),
                (
                    "/linux/gidMappings",
                    json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]),
                ),
                // runc cannot write to them from inside.
                ("/linux/resources", json!({})),
                (
                    "/mounts/6",
                    json!({"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}),
                ),
                ("/root/readonly", json!(false)),
            ],
        ),
        (
            "limits of the group",
            "echo ok",
            vec![
                ("/linux/resources/pids", json!({"limit": 20})),
                ("/linux/resources/memory", json!({"limit": 67_108_864})),
            ],
        ),
        (
            "a command that is missing",
            "",
            vec![("/process/args", json!(["/bin/nothing"]))],
        ),
        (
            "a command by its name",
            "",
            vec![("/process/args", json!(["echo", "found"]))],
        ),
        (
            "a command that cannot be run",
            "",
            vec![("/process/args", json!(["/etc/passwd"]))],
        ),
        (
            "kernel parameters",
            "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni; cat /proc/sys/net/ipv4/conf/lo/forwarding",
            vec![(
                "/linux/sysctl",
                json!({"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shmmni": "77", "net/ipv4/conf/lo/forwarding": "1"}),
            )],
        ),
        (
            "score",
            "cat /proc/self/oom_score_adj",
            vec![("/process/oomScoreAdj", json!(500))],
        ),
    ]
}

#[test]
#[ignore = "needs root"]
fn containers_are_as_under_runc() {
    let mut differences = Vec::new();
    for (name, script, changes) in cases() {
        let results = ["runc", OURS].map(|runtime| {
            // Each has its own root filesystem: one may leave a file in it.
            let mut bundle = sh(script);
            for (pointer, value) in changes.clone() {
                bundle.set(pointer, value);
            }
            let output = bundle.run_with(runtime);
            (output.status.code(), stdout(&output), stderr(&output))
        });
        let [theirs, ours] = &results;
        if (theirs.0, &theirs.1) != (ours.0, &ours.1) {
            differences.push(format!("{name}:\nrunc: {theirs:?}\nours: {ours:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}

/// A container that has said that it runs.
struct Running {
    child: Child,
    output: BufReader<ChildStdout>,
    id: String,
}

impl Running {
    /// Starts the bundle, whose script writes `ready` first.
    fn start(bundle: &Bundle) -> Self {
        let id = unique();
        let mut child = bundle
            .command(OURS, &id)
            .arg("--pid-file")
            .arg(bundle.path().join("pid"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self { child, output, id }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(sent.unwrap().success());
    }

    /// The rest of the output, and the exit code.
    fn end(mut self) -> (String, Option<i32>) {
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).unwrap();
        let status = self.child.wait().unwrap();
        assert_eq!(groups_of(&self.id).len(), 0);
        (rest, status.code())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of the container, as this machine sees it.
fn pid_of(bundle: &Bundle) -> u32 {
    let text = fs::read_to_string(bundle.path().join("pid")).unwrap();
    text.parse().unwrap()
}

#[test]
#[ignore = "needs root"]
fn signals_are_passed_on_and_nothing_is_left() {
    for signal in ["TERM", "INT", "HUP", "USR1"] {
        let bundle = sh(&format!(
            "trap 'echo got it; exit 9' {signal}; echo ready; while :; do sleep 0.05; done"
        ));
        let running = Running::start(&bundle);
        running.signal(signal);
        assert_eq!(running.end(), ("got it\n".to_owned(), Some(9)), "{signal}");
    }
}

#[test]
#[ignore = "needs root"]
fn the_container_dies_with_the_runtime_and_its_name_can_be_used_again() {
    let bundle = sh("echo ready; sleep 1000 & sleep 1000");
    let mut running = Running::start(&bundle);
    let process = PathBuf::from(format!("/proc/{}", pid_of(&bundle)));
    assert!(process.exists());
    assert!(!groups_of(&running.id).is_empty());
    running.child.kill().unwrap();
    running.child.wait().unwrap();
    eventually("the container's end", || !process.exists());

    // What is left of it is there to be deleted.
    let again = bundle.command(OURS, &running.id).output().unwrap();
    assert!(stderr(&again).contains("already exists"), "{again:?}");
    bundle.done(&["delete", &running.id]);
    assert_eq!(groups_of(&running.id).len(), 0);
    let mut bundle = sh("echo again");
    bundle.set("/process/oomScoreAdj", json!(1));
    let again = bundle.command(OURS, &running.id).output().unwrap();
    assert_eq!(stdout(&again), "again\n");
}

#[test]
#[ignore = "needs root"]
fn a_name_in_use_is_refused_and_the_container_with_it_goes_on() {
    let bundle = sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done");
    let running = Running::start(&bundle);
    let second = sh("true").command(OURS, &running.id).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("exists already"),
        "{}",
        stderr(&second)
    );
    running.signal("TERM");
    assert_eq!(running.end().1, Some(3));
}

#[test]
#[ignore = "needs root"]
fn processes_without_a_pid_namespace_end_with_the_first() {
    let mut bundle = sh("sleep 1000 & echo $! > /tmp/pid; echo ready; exit 5");
    bundle
        .set("/root/readonly", json!(false))
        .set("/linux/namespaces", json!([{"type": "mount"}]))
        .set("/hostname", json!(null));
    let running = Running::start(&bundle);
    assert_eq!(running.end().1, Some(5));
    let pid = fs::read_to_string(bundle.rootfs().join("tmp/pid")).unwrap();
    // Whoever adopted it may take its time to reap it.
    let status = Path::new("/proc").join(pid.trim()).join("status");
    let alive = fs::read_to_string(status).is_ok_and(|status| !status.contains("State:\tZ"));
    assert!(!alive);
}

#[test]
#[ignore = "needs root"]
fn a_failed_start_leaves_nothing() {
    let mut bundle = Bundle::new(&["/bin/nothing"]);
    bundle.set("/linux/cgroupsPath", json!(format!("/{}", unique())));
    let name = bundle.config["linux"]["cgroupsPath"].as_str().unwrap()[1..].to_owned();
    let output = bundle.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("/bin/nothing"),
        "{}",
        stderr(&output)
    );
    assert_eq!(groups_of(&name).len(), 0);
}

#[test]
#[ignore = "needs root"]
fn memory_and_processes_are_limited() {
    let mut bundle = sh(
        "head -c 200m /dev/zero | wc -c > /dev/null; dd if=/dev/zero of=/dev/null bs=200M count=1",
    );
    bundle.set("/linux/resources/memory", json!({"limit": 32 << 20}));
    let output = bundle.run();
    assert_eq!(output.status.code(), Some(137), "{}", stderr(&output));

    let mut bundle = sh("for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 5 & done");
    bundle.set("/linux/resources/pids", json!({"limit": 5}));
    let output = bundle.run();
    assert_ne!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("fork"), "{}", stderr(&output));
}

#[test]
#[ignore = "needs root"]
fn the_cgroup_path_is_where_it_says() {
    for path in [format!("/{}/inner", unique()), unique()] {
        let mut bundle =
            sh("cat /proc/self/cgroup; ls /sys/fs/cgroup; touch /sys/fs/cgroup/x; echo $?");
        bundle.set("/linux/cgroupsPath", json!(path));
        // Without a namespace of its own the container sees the path from the top.
        let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "cgroup");
        let output = bundle.run();
        let relative = path.trim_start_matches('/');
        let text = stdout(&output);
        assert!(
            text.contains(&format!(":/{relative}\n")),
            "{text} {}",
            stderr(&output)
        );
        assert!(text.ends_with("1\n"), "not read-only: {text}");
        assert_eq!(groups_of(relative).len(), 0);
        for parent in groups_of(relative.trim_end_matches("/inner")) {
            fs::remove_dir(parent).unwrap();
        }
    }
}

#[test]
#[ignore = "needs root"]
fn device_rules_hold() {
    // A device without a driver: who may open it is told that there is none. It is made in the
    // container's own /dev, because devices do not count on every mount that a bundle may be on.
    let mut bundle = sh(
        "busybox mknod /dev/node c 10 250; cat /dev/node > /dev/null; echo $?; head -c 1 /dev/zero | wc -c",
    );
    let capabilities = json!(["CAP_MKNOD"]);
    bundle
        .set("/process/capabilities/bounding", capabilities.clone())
        .set("/process/capabilities/effective", capabilities.clone())
        .set("/process/capabilities/permitted", capabilities);
    let output = bundle.run();
    assert_eq!(stdout(&output), "1\n1\n", "{}", stderr(&output));
    assert!(
        stderr(&output).contains("Operation not permitted"),
        "{}",
        stderr(&output)
    );

    bundle.set(
        "/linux/resources/devices/-",
        json!({"allow": true, "type": "c", "major": 10, "minor": 250, "access": "r"}),
    );
    let output = bundle.run();
    assert_eq!(stdout(&output), "1\n1\n", "{}", stderr(&output));
    assert!(
        stderr(&output).contains("No such device"),
        "{}",
        stderr(&output)
    );
}

#[test]
#[ignore = "needs root"]
fn the_configuration_that_runc_writes_runs() {
    let mut bundle = sh("");
    fs::remove_file(bundle.path().join("config.json")).unwrap();
    let written = Command::new("runc")
        .args(["spec", "--bundle"])
        .arg(bundle.path())
        .status();
    assert!(written.expect("runc; is it installed?").success());
    let text = fs::read_to_string(bundle.path().join("config.json")).unwrap();
    bundle.config = serde_json::from_str(&text).unwrap();
    bundle.set("/process/terminal", json!(false)).set(
        "/process/args",
        json!([
            "sh",
            "-c",
            "hostname; ls /sys/fs/cgroup | grep -v systemd | sort"
        ]),
    );
    // The hierarchy of systemd has no controller, and no group is made in it here.
    let [theirs, ours] = ["runc", OURS].map(|runtime| bundle.run_with(runtime));
    assert_eq!(ours.status.code(), Some(0), "{}", stderr(&ours));
    assert_eq!(stdout(&ours), stdout(&theirs));
}

#[test]
#[ignore = "needs root"]
fn what_is_not_known_at_the_top_is_told_and_gone_without() {
    let mut bundle = sh("echo ran");
    bundle
        .set("/x-mine", json!({"a": 1}))
        .set("/annotations", json!({"org.example": "b"}))
        .set("/process/capabilities/bounding/-", json!("CAP_FLY"));
    let output = bundle.run();
    assert_eq!(stdout(&output), "ran\n");
    let told = stderr(&output);
    assert!(told.contains("x-mine: unknown property, ignored"), "{told}");
    assert!(
        told.contains("process.capabilities.bounding: CAP_FLY left out"),
        "{told}"
    );
    assert!(!told.contains("annotations"), "{told}");
}

#[test]
#[ignore = "needs root"]
fn standard_input_is_the_containers() {
    let bundle = sh("cat; readlink /proc/self/ns/net");
    let mut command = bundle.command(OURS, &unique());
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let text = stdout(&output);
    assert!(text.starts_with("through\nnet:"), "{text}");
    let own = fs::read_link("/proc/self/ns/net").unwrap();
    assert_ne!(text.lines().nth(1), own.to_str());
}

#[test]
#[ignore = "needs root"]
fn namespaces_are_joined_by_path() {
    let first = sh("trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done");
    let running = Running::start(&first);
    let pid = pid_of(&first);
    let mut second = sh("hostname; readlink /proc/self/ns/net");
    second.set("/hostname", json!(null)).set(
        "/linux/namespaces",
        json!([
            {"type": "mount"}, {"type": "pid"}, {"type": "ipc"},
            {"type": "uts", "path": format!("/proc/{pid}/ns/uts")},
            {"type": "network", "path": format!("/proc/{pid}/ns/net")},
        ]),
    );
    let output = second.run();
    let net = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    let expected = format!("cofferdam\n{}\n", net.display());
    assert_eq!(stdout(&output), expected, "{}", stderr(&output));
    running.signal("TERM");
    assert_eq!(running.end().1, Some(0));
}
