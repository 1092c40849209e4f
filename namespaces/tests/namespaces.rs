//! New and joined namespaces of every kind.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;

use common::{Rootfs, stdout};
use namespaces::{
    Barrier, Command, Error, IdMap, IdRange, Mount, Namespace, Root, Stdio, UserMapping,
};

/// The namespaces of a process, by kind.
fn of(pid: &str) -> BTreeMap<Namespace, String> {
    Namespace::ALL
        .into_iter()
        .map(|kind| {
            let link = fs::read_link(format!("/proc/{pid}/ns/{}", kind.proc_name()));
            let link = link.expect("read a namespace");
            (kind, link.to_string_lossy().into_owned())
        })
        .collect()
}

#[test]
fn every_kind_can_be_new() {
    let ours = of("self");
    for kind in Namespace::ALL {
        let mut command = Command::new("cat");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .unshare([kind])
            .user_namespace(UserMapping::CallerAsRoot);
        let child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{kind}: {error}"));
        let theirs = of(&child.pid().to_string());
        for other in Namespace::ALL {
            let new = other == kind || other == Namespace::User;
            assert_eq!(ours[&other] != theirs[&other], new, "{kind} made {other}");
        }
    }
}

#[test]
fn every_kind_can_be_joined() {
    let mut command = Command::new("cat");
    command
        .stdin(Stdio::piped())
        .unshare(Namespace::ALL)
        .user_namespace(UserMapping::CallerAsRoot);
    let first = command.spawn().expect("spawn");
    let theirs = of(&first.pid().to_string());
    let joined = |command: &mut Command, kinds: &[Namespace]| {
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{kinds:?}: {error}"));
        let seen = of(&child.pid().to_string());
        for kind in kinds {
            assert_eq!(seen[kind], theirs[kind], "{kind}");
        }
        assert!(child.wait().expect("wait").success());
    };
    // One kind alone needs its user namespace, except for root.
    for kind in Namespace::ALL {
        let kinds = [Namespace::User, kind];
        let mut by_path = Command::new("cat");
        let mut by_fd = Command::new("cat");
        let mut by_pidfd = Command::new("cat");
        for kind in kinds {
            let path = format!("/proc/{}/ns/{}", first.pid(), kind.proc_name());
            by_path.join_path(kind, &path);
            by_fd.join(kind, fs::File::open(path).expect("open"));
            by_pidfd.join(kind, first.as_fd());
        }
        joined(&mut by_path, &kinds);
        joined(&mut by_fd, &kinds);
        joined(&mut by_pidfd, &kinds);
    }
    let mut all = Command::new("cat");
    for kind in Namespace::ALL {
        all.join(kind, &first);
    }
    joined(&mut all, &Namespace::ALL);
}

#[test]
fn a_root_is_made_in_a_joined_mount_namespace() {
    let rootfs = Rootfs::new();
    // A static program: one that is still looking for its libraries would lose them with the root.
    let mut first = Command::new(rootfs.join("bin/busybox"));
    first
        .arg("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .unshare([Namespace::User, Namespace::Mount, Namespace::Pid])
        .user_namespace(UserMapping::CallerAsRoot);
    let first = first.spawn().expect("spawn");
    let mut second = Command::new("/bin/sh");
    second
        .args(["-c", "readlink /proc/self/ns/mnt; ls /"])
        .join(Namespace::User, first.as_fd())
        .join(Namespace::Mount, first.as_fd())
        .join(Namespace::Pid, first.as_fd())
        .root(rootfs.path())
        .mount(Mount::proc("/proc"));
    let seen = stdout(&mut second);
    let theirs = of(&first.pid().to_string());
    assert_eq!(
        seen.lines().next(),
        Some(theirs[&Namespace::Mount].as_str())
    );
    assert!(!seen.contains("sys"), "the old root is gone: {seen}");
}

#[test]
fn a_shared_root_needs_no_mount_namespace() {
    let rootfs = Rootfs::new();
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "pwd; ls /"])
        .unshare([Namespace::User])
        .user_namespace(UserMapping::CallerAsRoot)
        .root(Root::shared(rootfs.path()));
    assert_eq!(stdout(&mut command), "/\nbin\netc\n");
    command.unshare([Namespace::Mount]);
    let error = command.spawn().expect_err("there is a mount namespace");
    assert!(error.to_string().starts_with("root: "), "{error}");
}

#[test]
fn a_joined_pid_namespace_counts_on() {
    let mut command = Command::new("cat");
    command
        .stdin(Stdio::piped())
        .unshare([Namespace::Pid, Namespace::Mount])
        .user_namespace(UserMapping::CallerAsRoot)
        .mount(Mount::proc("/proc"));
    let first = command.spawn().expect("spawn");
    let mut second = Command::new("sh");
    second.args(["-c", "echo $$; cat /proc/1/comm; id -u"]);
    for kind in [Namespace::User, Namespace::Pid, Namespace::Mount] {
        second.join(kind, &first);
    }
    let text = stdout(&mut second);
    let [pid, init, uid] = text.lines().collect::<Vec<_>>()[..] else {
        panic!("{text}");
    };
    assert!(
        pid.parse::<u32>().is_ok_and(|pid| (2..100).contains(&pid)),
        "{text}"
    );
    assert_eq!((init, uid), ("cat", "0"));
}

#[test]
fn joined_and_new_mix() {
    let mut command = Command::new("cat");
    command
        .stdin(Stdio::piped())
        .unshare([Namespace::Net, Namespace::Uts])
        .user_namespace(UserMapping::CallerAsRoot);
    let first = command.spawn().expect("spawn");
    let theirs = of(&first.pid().to_string());
    let mut command = Command::new("cat");
    command
        .stdin(Stdio::piped())
        .join(Namespace::User, &first)
        .join(Namespace::Net, &first)
        .unshare([Namespace::Pid, Namespace::Ipc, Namespace::Uts])
        .hostname("mixed");
    let child = command.spawn().expect("spawn");
    let seen = of(&child.pid().to_string());
    assert_eq!(seen[&Namespace::Net], theirs[&Namespace::Net]);
    assert_ne!(seen[&Namespace::Uts], theirs[&Namespace::Uts]);
    assert_ne!(seen[&Namespace::Pid], theirs[&Namespace::Pid]);
}

#[test]
fn what_is_no_such_namespace_is_refused() {
    let mut command = Command::new("true");
    let error = command
        .join_path(Namespace::Net, "/proc/self/ns/uts")
        .start()
        .expect_err("another kind");
    assert_eq!(
        error.to_string(),
        "join net namespace: /proc/self/ns/uts is a uts namespace; give an fd of /proc/PID/ns/net or a pidfd"
    );
    let mut command = Command::new("true");
    let error = command
        .join_path(Namespace::Net, "/dev/null")
        .start()
        .expect_err("a device");
    assert!(
        matches!(error, Error::NotThatNamespace { found: None, .. }),
        "{error}"
    );
    let mut command = Command::new("true");
    let error = command
        .join_path(Namespace::Net, "/no/such/file")
        .start()
        .expect_err("nothing there");
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
fn the_caller_is_root_inside() {
    let mut command = Command::new("sh");
    command
        .args(["-c", "id -u; id -g; cat /proc/self/uid_map"])
        .user_namespace(UserMapping::CallerAsRoot);
    let starting = command.start().expect("start");
    let mapping = starting.id_mapping().expect("a mapping").clone();
    drop(starting);
    assert_eq!(mapping.degraded, None);
    assert_eq!(
        mapping.uids,
        IdMap::single(0, rustix::process::geteuid().as_raw())
    );
    let text = stdout(&mut command);
    assert!(text.starts_with("0\n0\n"), "{text}");
}

#[test]
fn another_id_can_be_mapped() {
    let mut command = Command::new("id");
    command
        .arg("-u")
        .user_namespace(UserMapping::Exact {
            uids: IdMap::single(4711, rustix::process::geteuid().as_raw()),
            gids: IdMap::single(815, rustix::process::getegid().as_raw()),
        })
        .uid(4711)
        .gid(815);
    assert_eq!(stdout(&mut command), "4711\n");
}

#[test]
fn maps_that_no_kernel_takes_are_refused() {
    let range = |inside, outside, count| IdRange {
        inside,
        outside,
        count,
    };
    for (ranges, defect) in [
        (vec![], "no ranges"),
        (vec![range(0, 0, 0)], "count of 0"),
        (vec![range(0, u32::MAX, 2)], "largest id"),
        (vec![range(0, 0, 10), range(9, 100, 1)], "overlap"),
        (vec![range(0, 0, 10), range(10, 5, 1)], "overlap"),
        ((0..341).map(|id| range(id, id, 1)).collect(), "340"),
    ] {
        let mut command = Command::new("true");
        command.user_namespace(UserMapping::Exact {
            uids: IdMap::ranges(ranges),
            gids: IdMap::single(0, 0),
        });
        let error = command.start().expect_err("not a map").to_string();
        assert!(
            error.starts_with("the uid map is not valid: ") && error.contains(defect),
            "{error}"
        );
    }
}

#[test]
fn the_parent_can_act_before_anything_is_done() {
    let mut command = Command::new("hostname");
    command
        .stdout(Stdio::piped())
        .unshare([Namespace::Uts])
        .user_namespace(UserMapping::CallerAsRoot)
        .hostname("theirs");
    let mut starting = command.start().expect("start");
    let uts = fs::read_link(format!("/proc/{}/ns/uts", starting.pid())).expect("read");
    assert_ne!(uts, fs::read_link("/proc/self/ns/uts").expect("read"));
    starting.advance(Barrier::Ready).expect("advance");
    let output = starting
        .exec()
        .expect("exec")
        .wait_with_output()
        .expect("output");
    assert_eq!(output.stdout, b"theirs\n");
}

/// Takes a network device away when dropped, wherever its peer is.
struct Device(String);

impl Drop for Device {
    fn drop(&mut self) {
        // The test may have failed before it was made.
        let _ = std::process::Command::new("ip")
            .args(["link", "del", &self.0])
            .output();
    }
}

/// What a runtime does with the network: a device goes where the process waits.
#[test]
#[ignore = "needs root"]
fn a_network_device_is_moved_to_the_waiting_process() {
    let name = format!("cd{}", std::process::id());
    let (ours, theirs) = (format!("{name}a"), format!("{name}b"));
    // A module on some kernels, built in on others.
    let _ = std::process::Command::new("modprobe").arg("veth").status();
    common::run(
        "ip",
        &[
            "link", "add", &ours, "type", "veth", "peer", "name", &theirs,
        ],
    );
    let device = Device(ours.clone());
    let mut command = Command::new("sh");
    let script = format!("ip -o link show {theirs}; cat /sys/class/net/{theirs}/operstate");
    command
        .args(["-c", &script])
        .stdout(Stdio::piped())
        .unshare([Namespace::Net, Namespace::Mount])
        .mount(Mount::sysfs("/sys"));
    let mut starting = command.start().expect("start");
    let pid = starting.pid().to_string();
    common::run("ip", &["link", "set", &theirs, "netns", &pid]);
    starting.advance(Barrier::Ready).expect("advance");
    // It can be set up there by a program of ours, and its other end is here.
    let mut up = Command::new("ip");
    up.args(["link", "set", &theirs, "up"])
        .join(Namespace::Net, &starting);
    stdout(&mut up);
    common::run("ip", &["link", "set", &ours, "up"]);
    let output = starting.exec().expect("exec").wait_with_output();
    let text = String::from_utf8(output.expect("output").stdout).expect("text");
    assert!(text.contains(&format!("{theirs}@")), "{text}");
    assert_eq!(text.lines().last(), Some("up"), "{text}");
    // It went with its namespace, and its other end with it.
    drop(device);
    assert!(!fs::exists(format!("/sys/class/net/{ours}")).expect("look"));
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
