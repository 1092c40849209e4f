//! Layouts other than this machine's, made in mount and cgroup namespaces of their own.

mod support;

use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cgroups::{
    Cgroup, Controller, Error, Hierarchy, Layout, Limits, Max, Resource, Threshold, Version,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::{Running, Scratch, unique};

const SOON: Duration = Duration::from_mins(1);

/// Set in the copy of this program that runs in the other namespace.
const INSIDE: &str = "COFFERDAM_TEST_LAYOUT";

/// Runs this very test once more, in new namespaces and after a preparation.
fn again(group: Option<&Cgroup>, test: &str, namespaces: &[&str], prepare: &str) {
    let program = std::env::current_exe().expect("this program");
    let script = format!("{prepare} && exec \"$0\" --exact {test} --include-ignored --nocapture");
    let mut command = Command::new("unshare");
    command
        .args(namespaces)
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(program)
        .env(INSIDE, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = match group {
        Some(group) => group.spawn(command).expect("unshare(1) starts"),
        None => command.spawn().expect("unshare(1) starts"),
    };
    let output = child.wait_with_output().expect("waited");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("1 passed"), "{text}{errors}");
}

fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

#[test]
#[ignore = "needs root"]
fn without_v2() {
    if !is_inside() {
        let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
        let unified = hierarchy.unified_mount_point().expect("v2 is mounted");
        let prepare = format!("umount {}", unified.display());
        return again(None, "without_v2", &[], &prepare);
    }
    match Hierarchy::detect() {
        // A machine of v2 alone has nothing left.
        Err(error) => assert!(matches!(error, Error::NoCgroupfs), "{error}"),
        Ok(hierarchy) => {
            assert_eq!(hierarchy.layout(), Layout::Legacy);
            assert_eq!(hierarchy.version_of(Controller::Freezer), Some(Version::V1));
            assert!(hierarchy.own().is_ok());
            v1_alone();
        }
    }
}

fn readable(fd: impl AsFd) -> bool {
    let timeout = Timespec::try_from(SOON).expect("short");
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).expect("polled") > 0
}

fn v1_alone() {
    let scratch = Scratch::new();
    assert!(scratch.unified_directory().is_none());
    scratch.apply(&Limits::new().pids_max(50)).expect("applied");
    let inner = scratch.create("inner").expect("created");
    let forkers: Vec<_> = (0..4)
        .map(|_| Running::in_group(&inner, "while :; do sleep 0.01 & sleep 0.02; done"))
        .collect();
    for forker in &forkers {
        assert!(inner.processes().expect("readable").contains(&forker.pid()));
    }
    assert!(scratch.is_populated().expect("readable"));
    scratch.freeze().expect("asked");
    scratch.wait_frozen(SOON).expect("frozen");
    scratch.thaw().expect("asked");
    scratch.wait_thawed(SOON).expect("thawed");
    assert!(scratch.cpu_stats().expect("readable").is_some());
    assert!(scratch.memory_stats().expect("readable").is_some());
    let threshold = Threshold {
        full: false,
        stall: Duration::from_millis(100),
        window: Duration::from_secs(2),
    };
    let error = scratch
        .pressure_trigger(Resource::Memory, threshold)
        .expect_err("v1 accounts for none");
    assert!(matches!(error, Error::NoPressure { .. }), "{error}");
    let mut watch = scratch.watch_state().expect("watched");
    assert!(watch.last().populated && !watch.last().frozen);
    scratch.freeze().expect("asked");
    assert!(readable(&watch), "the descriptor tells nothing");
    let state = watch.wait_for(SOON, |s| s.frozen).expect("waited");
    assert!(state.is_some_and(|state| state.populated));
    scratch.kill().expect("killed");
    let state = watch.wait_for(SOON, |s| !s.populated).expect("waited");
    assert!(state.is_some());
    scratch.wait_empty(SOON).expect("empty");
    let short = Running::in_group(&inner, "exec sleep 1");
    let state = watch.wait_for(SOON, |s| s.populated).expect("waited");
    assert!(state.is_some_and(|state| !state.frozen));
    scratch.remove().expect("removed once empty");
    drop(short);
    let error = watch
        .wait_for(SOON, |s| s.populated)
        .expect_err("it is gone");
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
}

#[test]
#[ignore = "needs root"]
fn in_a_cgroup_namespace() {
    if !is_inside() {
        let dir = tempfile::tempdir().expect("made");
        let prepare = format!("mount -t cgroup2 none '{}'", dir.path().display());
        let scratch = Scratch::new();
        let name = "in_a_cgroup_namespace";
        return again(Some(&scratch), name, &["--cgroup"], &prepare);
    }
    // The mount that shows this process goes before the one that shows more.
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let mount = hierarchy.unified_mount_point().expect("just mounted");
    assert!(!mount.starts_with("/sys"), "{}", mount.display());
    let own = hierarchy.own().expect("visible");
    assert_eq!(own.path(), Path::new(""));
    let group = hierarchy.create(unique()).expect("created").guard();
    let child = Running::in_group(&group, "exec sleep 100");
    let found = hierarchy.of_process(child.pid()).expect("visible");
    assert_eq!(found.path(), group.path());
    group.kill().expect("killed");
    group.wait_empty(SOON).expect("empty");
    group.close().expect("removed");
}

#[test]
#[ignore = "needs root"]
fn with_network_classes_on_v1() {
    if !is_inside() {
        // Where the controllers are mounted already, they can be mounted once more.
        let dir = tempfile::tempdir().expect("made");
        let prepare = format!(
            "cd '{}' && mkdir cls prio \
             && mount -t cgroup -o net_cls none cls && mount -t cgroup -o net_prio none prio",
            dir.path().display()
        );
        return again(None, "with_network_classes_on_v1", &[], &prepare);
    }
    let scratch = Scratch::new();
    assert_ne!(scratch.hierarchy().layout(), Layout::Unified);
    let mut limits = Limits::new().net_cls_classid(0x0010_0002_u32).pids_max(9);
    limits.net_prio = Some([("lo".to_owned(), 7)].into());
    scratch.apply(&limits).expect("applied");
    let now = scratch.limits().expect("readable");
    assert_eq!(now.net_cls_classid, Some(0x0010_0002));
    assert_eq!(now.net_prio.expect("readable")["lo"], 7);
    assert_eq!(now.pids_max, Some(Max::At(9)));
    // An interface that is not there takes everything back.
    limits.net_cls_classid = Some(1);
    limits.net_prio = Some([("nowhere0".to_owned(), 7)].into());
    let error = scratch.apply(&limits).expect_err("no such interface");
    assert!(matches!(error, Error::NoSuchDevice { .. }), "{error}");
    let now = scratch.limits().expect("readable");
    assert_eq!(now.net_cls_classid, Some(0x0010_0002));
}

#[test]
#[ignore = "needs root"]
fn mounted_read_only() {
    if !is_inside() {
        let scratch = Scratch::new();
        let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
        let points = Controller::ALL
            .iter()
            .filter_map(|&controller| hierarchy.mount_point_of(controller))
            .chain(hierarchy.unified_mount_point());
        let remount = points.map(|point| format!("mount -o remount,bind,ro {}", point.display()));
        let prepare = remount.collect::<Vec<_>>().join(" && ");
        return again(Some(&scratch), "mounted_read_only", &[], &prepare);
    }
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    // What can be read is read.
    let own = hierarchy.own().expect("found");
    assert!(
        own.processes()
            .expect("readable")
            .contains(&std::process::id())
    );
    let refused = [
        hierarchy.create(unique()).map(drop),
        own.create("child").map(drop),
        own.freeze(),
        own.attach_self(),
    ];
    for result in refused {
        let error = result.expect_err("everything is read-only");
        assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
        assert!(error.to_string().contains("read-write"), "{error}");
    }
}
