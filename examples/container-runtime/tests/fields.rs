//! Properties of config.json that few configurations have, and what they come to inside.

mod common;

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bundle, OURS, create, stderr, stdout, unique};
use serde_json::{Value, json};

fn sh(script: &str) -> Bundle {
    Bundle::new(&["/bin/sh", "-c", script])
}

/// What it prints; it must succeed.
fn seen(bundle: &Bundle) -> String {
    let output = bundle.run();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    stdout(&output)
}

/// Where something is mounted in a root filesystem, as this process sees it.
fn mounted_in(bundle: &Bundle) -> Vec<String> {
    let root = bundle.rootfs();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|point| point.starts_with(root.to_str().unwrap()))
        .map(str::to_owned)
        .collect()
}

/// Ends a program when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root"]
fn flags_of_the_scheduler_are_given() {
    let mut bundle = sh("for p in $$ self; do cut -d ' ' -f 19 /proc/$p/stat; done; true");
    bundle.set(
        "/process/scheduler",
        json!({"policy": "SCHED_OTHER", "nice": -5}),
    );
    assert_eq!(seen(&bundle), "-5\n-5\n");
    bundle.set(
        "/process/scheduler/flags",
        json!(["SCHED_FLAG_RESET_ON_FORK"]),
    );
    assert_eq!(seen(&bundle), "-5\n0\n");
}

#[test]
#[ignore = "needs root"]
fn a_process_that_enters_runs_where_it_is_told() {
    let bundle = sh("sleep 1000");
    let id = unique();
    create(&bundle, &id, &[]);
    bundle.done(&["start", &id]);
    let enter = |affinity: Value| {
        let mut process = bundle.config["process"].clone();
        process["args"] = json!(["grep", "Cpus_allowed_list", "/proc/self/status"]);
        process["execCPUAffinity"] = affinity;
        let file = bundle.path().join("process.json");
        fs::write(&file, process.to_string()).unwrap();
        bundle.ours(&["exec", "--process", file.to_str().unwrap(), &id])
    };
    let usual = stdout(&enter(json!(null)));
    assert_eq!(
        stdout(&enter(json!({"final": "0"}))),
        "Cpus_allowed_list:\t0\n"
    );
    // From the first to the others of the container, which are the default.
    assert_eq!(stdout(&enter(json!({"initial": "0"}))), usual);
    let nowhere = enter(json!({"initial": "1000", "final": "0"}));
    assert_eq!(nowhere.status.code(), Some(255));
    assert!(
        stderr(&nowhere).contains("process.execCPUAffinity.initial: "),
        "{nowhere:?}"
    );
    bundle.done(&["delete", "--force", &id]);
}

#[test]
#[ignore = "needs root"]
fn what_is_mounted_is_mounted_again() {
    let mut bundle = sh("grep ' /t ' /proc/self/mountinfo; touch /t/x; echo $?");
    bundle
        .set(
            "/mounts/-",
            json!({"destination": "/t", "type": "tmpfs", "options": ["size=64k", "nosuid", "sync"]}),
        )
        .set(
            "/mounts/-",
            json!({"destination": "/t", "options": ["remount", "ro", "size=128k", "async"]}),
        );
    let text = seen(&bundle);
    assert!(text.contains("size=128k"), "{text}");
    assert!(text.contains(" ro,nosuid,"), "{text}");
    assert!(!text.contains("sync"), "{text}");
    assert!(text.ends_with("1\n"), "{text}");

    let mut nothing = sh("true");
    nothing.set(
        "/mounts/-",
        json!({"destination": "/etc", "options": ["remount", "bind", "ro"]}),
    );
    let output = nothing.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("nothing is mounted there"),
        "{output:?}"
    );
}

#[test]
#[ignore = "needs root"]
fn attributes_of_trees_reach_what_is_mounted_below() {
    let mut bundle = sh("grep ' /t[/ ]' /proc/self/mountinfo");
    bundle.set(
        "/mounts/-",
        json!({
            "destination": "/t",
            "source": "/sys",
            "options": ["rbind", "rro", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnodiratime", "nosymfollow"]
        }),
    );
    let text = seen(&bundle);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.len() > 1, "something is mounted below /sys: {text}");
    for line in lines {
        let fields: Vec<&str> = line.split(' ').collect();
        let options: Vec<&str> = fields[5].split(',').collect();
        for wanted in ["ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime"] {
            assert!(options.contains(&wanted), "{wanted}: {line}");
        }
        assert_eq!(
            options.contains(&"nosymfollow"),
            fields[4] == "/t",
            "{line}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_mount_namespace_is_joined_by_path() {
    let holder = Command::new("unshare")
        .args(["--mount", "sleep", "1000"])
        .stdin(Stdio::null())
        .spawn();
    let holder = Killed(holder.expect("unshare; is util-linux installed?"));
    let path = format!("/proc/{}/ns/mnt", holder.0.id());
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let begin = Instant::now();
    let theirs = loop {
        let theirs = fs::read_link(&path).unwrap();
        if theirs != own {
            break theirs;
        }
        assert!(begin.elapsed() < Duration::from_mins(1), "never unshared");
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut bundle = sh("readlink /proc/self/ns/mnt; ls -d /usr");
    bundle.set(
        "/linux/namespaces",
        json!([{"type": "mount", "path": path}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]),
    );
    let output = bundle.run();
    assert_eq!(
        stdout(&output),
        format!("{}\n", theirs.display()),
        "{}",
        stderr(&output)
    );
    assert!(mounted_in(&bundle).is_empty());
}

#[test]
#[ignore = "needs root"]
fn without_a_mount_namespace_the_machines_is_used_and_left_as_it_was() {
    let mut bundle = sh("readlink /proc/self/ns/mnt; ls -d /usr; touch /x || echo kept");
    bundle.set(
        "/linux/namespaces",
        json!([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]),
    );
    let own = fs::read_link("/proc/self/ns/mnt").unwrap();
    let output = bundle.run();
    assert_eq!(
        stdout(&output),
        format!("{}\nkept\n", own.display()),
        "{}",
        stderr(&output)
    );
    assert!(stderr(&output).contains("linux.namespaces: without a mount namespace"));
    assert_eq!(mounted_in(&bundle), [""; 0]);

    let id = unique();
    create(&bundle, &id, &[]);
    assert!(mounted_in(&bundle).len() > 1);
    bundle.done(&["delete", "--force", &id]);
    assert_eq!(mounted_in(&bundle), [""; 0]);

    // Nor does a container that could not be made leave anything.
    bundle.set("/process/args", json!(["/bin/nothing"]));
    assert_eq!(bundle.run().status.code(), Some(1));
    assert_eq!(mounted_in(&bundle), [""; 0]);
}

#[test]
#[ignore = "needs root"]
fn the_process_is_what_it_is_asked_to_be() {
    let mut bundle = sh(
        "busybox ionice; busybox uname -m; cut -d ' ' -f 41 /proc/self/stat; \
         sed -n '1s/^[0-9a-f]* \\([a-z:0-9]*\\).*/\\1/p' /proc/self/numa_maps; \
         sed 's/\\..*//' /proc/uptime",
    );
    bundle
        .set(
            "/process/ioPriority",
            json!({"class": "IOPRIO_CLASS_BE", "priority": 6}),
        )
        .set("/process/scheduler", json!({"policy": "SCHED_BATCH"}))
        .set("/linux/personality", json!({"domain": "LINUX32"}))
        .set(
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND", "nodes": "0"}),
        )
        .set("/linux/namespaces/-", json!({"type": "time"}))
        .set(
            "/linux/timeOffsets",
            json!({"boottime": {"secs": 1_000_000_000}}),
        );
    let text = seen(&bundle);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..4], ["best-effort: prio 6", "i686", "3", "bind:0"]);
    assert!(lines[4].parse::<u64>().unwrap() > 1_000_000_000, "{text}");
}

#[test]
#[ignore = "needs root"]
fn what_the_kernel_refuses_is_named() {
    for (pointer, value, place) in [
        (
            "/linux/memoryPolicy",
            json!({"mode": "MPOL_BIND"}),
            "linux.memoryPolicy",
        ),
        (
            "/mounts/-",
            json!({"destination": "/tmp", "type": "tmpfs", "options": ["frob=1"]}),
            "mounts[7]",
        ),
        (
            "/linux/namespaces/0",
            json!({"type": "network", "path": "/proc/self/ns/pid"}),
            "linux.namespaces[0].path",
        ),
        (
            "/linux/devices",
            json!([{"path": "/bin/sh", "type": "c", "major": 1, "minor": 3}]),
            "linux.devices[0]",
        ),
        (
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": "x"}),
            "linux.sysctl",
        ),
        ("/process/cwd", json!("/bin/busybox"), "process.cwd"),
    ] {
        let mut bundle = sh("true");
        if place.starts_with("linux.namespaces") {
            bundle.set("/linux/namespaces", json!([{"type": "mount"}]));
            bundle.set("/hostname", json!(null));
        }
        bundle.set(pointer, value);
        let output = bundle.run();
        assert_eq!(output.status.code(), Some(1), "{place}");
        let message = stderr(&output);
        assert!(message.contains(&format!(": {place}: ")), "{message}");
    }
}

#[test]
#[ignore = "needs root"]
fn network_devices_are_moved_with_their_addresses() {
    let mut bundle = sh("cd /sys/class/net; ls -d *; busybox ip -o address show | sed 's/brd.*//'");
    bundle.set(
        "/linux/netDevices",
        json!({"out0": {"name": "in0"}, "out1": {"name": "nic%d"}}),
    );
    bundle.write();
    // All of it in a network namespace that goes with the command.
    let script = format!(
        "ip link add out0 type veth peer name out1
         ip address add 10.9.0.1/24 dev out0
         ip address add 10.9.1.1 peer 10.9.1.2/32 dev out1
         exec {OURS} --root {} run --bundle {} {}",
        bundle.state().display(),
        bundle.path().display(),
        unique()
    );
    let output = Command::new("unshare")
        .args(["--net", "sh", "-ec", &script])
        .stdin(Stdio::null())
        .output()
        .expect("unshare; is util-linux installed?");
    let text = stdout(&output);
    assert!(
        text.starts_with("in0\nlo\nnic0\n"),
        "{text}{}",
        stderr(&output)
    );
    for address in [
        "in0    inet 10.9.0.1/24 ",
        "nic0    inet 10.9.1.1 peer 10.9.1.2/32 ",
    ] {
        assert!(text.contains(address), "{text}");
    }
}

#[test]
#[ignore = "needs lab"]
fn the_group_is_the_users_where_it_can_be_written_to() {
    let script = "cd /sys/fs/cgroup; busybox mkdir below && echo made; echo 10 > pids.max; echo $?";
    let mut bundle = sh(script);
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup");
    cgroup.expect("it is among the default mounts")["options"] =
        json!(["nosuid", "nodev", "noexec"]);
    bundle
        .set("/root/readonly", json!(false))
        .set("/linux/namespaces/-", json!({"type": "user"}));
    for property in ["uidMappings", "gidMappings"] {
        let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        bundle.set(&format!("/linux/{property}"), map);
    }
    assert_eq!(seen(&bundle), "made\n1\n");
    // Where it is only shown, it is nobody's.
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let cgroup = mounts.iter_mut().find(|mount| mount["type"] == "cgroup");
    cgroup.unwrap()["options"] = json!(["nosuid", "nodev", "noexec", "ro"]);
    assert_eq!(seen(&bundle), "1\n");
}
