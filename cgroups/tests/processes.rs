//! Processes in groups: putting them in, listing them, ending them.

mod support;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use cgroups::{Cgroup, Controller, Error, Hierarchy, Version};
use support::{Running, Scratch};

const SOON: Duration = Duration::from_mins(1);

#[test]
#[ignore = "needs root"]
fn a_process_starts_inside_every_hierarchy() {
    let scratch = Scratch::new();
    let child = Running::in_group(&scratch, "exec sleep 100");
    assert!(
        scratch
            .processes()
            .expect("readable")
            .contains(&child.pid())
    );
    assert!(scratch.threads().expect("readable").contains(&child.pid()));
    let path = format!("/{}", scratch.path().display());
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).expect("alive");
    let inside = groups.lines().filter(|line| line.ends_with(&path)).count();
    assert_eq!(inside, scratch.directories().count(), "{groups}");
}

#[test]
#[ignore = "needs root"]
fn a_process_is_attached_to_every_hierarchy_or_to_none() {
    let scratch = Scratch::new();
    let a = scratch.create("a").expect("created");
    let b = scratch.create("b").expect("created");
    let child = Running::outside("exec sleep 100");
    a.attach(child.pid()).expect("attached");
    assert_eq!(a.processes().expect("readable"), [child.pid()]);
    b.attach(child.pid()).expect("moved");
    assert!(!a.is_populated().expect("readable"));
    let here = scratch
        .hierarchy()
        .of_process(child.pid())
        .expect("it has a group");
    assert_eq!(here.path(), b.path());
    // `a` in one hierarchy only: the last one that is written to refuses.
    let last = a.directories().last().expect("there is one").to_owned();
    std::fs::remove_dir(&last).expect("removed by hand");
    let error = a.attach(child.pid()).expect_err("one is gone");
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
    assert_eq!(b.processes().expect("readable"), [child.pid()]);
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", child.pid())).expect("alive");
    let path = format!("/{}", b.path().display());
    let inside = groups.lines().filter(|line| line.ends_with(&path)).count();
    assert_eq!(inside, b.directories().count(), "{groups}");
}

#[test]
#[ignore = "needs root"]
fn a_process_is_attached_by_its_pidfd() {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    let scratch = Scratch::new();
    let mut child = Running::outside("exec sleep 100");
    let pidfd = pidfd_open(Pid::from_child(&child.0), PidfdFlags::empty()).expect("opened");
    scratch.attach_pidfd(&pidfd).expect("attached");
    assert_eq!(scratch.processes().expect("readable"), [child.pid()]);
    child.0.kill().expect("killed");
    child.0.wait().expect("waited");
    let error = scratch.attach_pidfd(&pidfd).expect_err("it has ended");
    assert!(matches!(error, Error::NoSuchProcess { .. }), "{error}");
    let file = std::fs::File::open("/dev/null").expect("opened");
    let error = scratch.attach_pidfd(&file).expect_err("no pidfd");
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

#[test]
#[ignore = "needs root"]
fn attaching_nobody_is_an_error() {
    let scratch = Scratch::new();
    for pid in [0, u32::MAX, 4_194_304 + 1] {
        let error = scratch.attach(pid).expect_err("no such process");
        assert!(
            matches!(error, Error::NoSuchProcess { .. }),
            "{pid}: {error}"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn kill_ends_those_who_fork_all_the_time() {
    let scratch = Scratch::new();
    let inner = scratch.create("inner").expect("created");
    // Processes that come and go faster than a list of them can be read.
    let script = "while :; do sleep 0.01 & sleep 0.02 & (sleep 0.01; sleep 0.01) & wait; done";
    let _forkers: Vec<_> = (0..6).map(|_| Running::in_group(&inner, script)).collect();
    let deadline = Instant::now() + SOON;
    while inner.processes().expect("readable").len() < 12 {
        assert!(Instant::now() < deadline, "they do not fork");
        std::thread::sleep(Duration::from_millis(5));
    }
    scratch.kill().expect("killed");
    scratch.wait_empty(SOON).expect("empty");
    assert!(!scratch.is_populated().expect("readable"));
    scratch.remove().expect("removed");
    assert!(!scratch.exists());
}

#[test]
#[ignore = "needs root"]
fn a_process_of_one_hierarchy_only_is_killed_too() {
    let scratch = Scratch::new();
    let mut child = Running::outside("exec sleep 100");
    // Without v1 there is one hierarchy, and this is the ordinary case.
    let directory = scratch.directories().last().expect("there is one");
    std::fs::write(directory.join("cgroup.procs"), child.pid().to_string()).expect("attached");
    assert!(scratch.is_populated().expect("readable"));
    scratch.kill().expect("killed");
    let status = child.0.wait().expect("waited");
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(9)
    );
}

#[test]
#[ignore = "needs root"]
fn a_process_frozen_by_v1_is_killed() {
    let scratch = Scratch::new();
    let mut child = Running::in_group(&scratch, "exec sleep 100");
    let freezer = scratch
        .directories()
        .map(|directory| directory.join("freezer.state"))
        .find(|file| file.exists());
    if let Some(file) = freezer {
        std::fs::write(file, "FROZEN").expect("frozen");
    } else {
        let unified = scratch.directories().next().expect("v2");
        std::fs::write(unified.join("cgroup.freeze"), "1").expect("frozen");
    }
    scratch.kill().expect("killed");
    scratch.wait_empty(SOON).expect("empty");
    assert!(!child.0.wait().expect("waited").success());
}

#[test]
#[ignore = "needs root"]
fn the_root_is_never_killed_nor_removed() {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let root = hierarchy.root().expect("opened");
    assert!(matches!(root.kill(), Err(Error::Busy { .. })));
    assert!(matches!(root.remove(), Err(Error::Busy { .. })));
}

#[test]
#[ignore = "needs root"]
fn waiting_for_emptiness_has_an_end() {
    let scratch = Scratch::new();
    scratch.wait_empty(Duration::ZERO).expect("nobody is in it");
    let child = Running::in_group(&scratch, "exec sleep 100");
    let error = scratch
        .wait_empty(Duration::from_millis(50))
        .expect_err("it sleeps on");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    let error = scratch
        .remove_within(Duration::from_millis(50))
        .expect_err("it sleeps on");
    assert!(matches!(error, Error::Busy { .. }), "{error}");
    drop(child);
    scratch.wait_empty(SOON).expect("it is gone");
}

#[test]
#[ignore = "needs root"]
fn who_waits_for_a_group_that_is_removed_hears_of_it() {
    let scratch = Scratch::new();
    let wait = |wait: fn(&Cgroup, Duration) -> cgroups::Result<()>, remove: fn(&Cgroup)| {
        let group = scratch.create("gone").expect("created");
        let child = Running::in_group(&group, "exec sleep 100");
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| wait(&group, SOON));
            remove(&group);
            drop(child);
            // Not waiting, as another process would do it.
            for directory in group.directories() {
                let busy = |error: std::io::Error| error.kind() == ErrorKind::ResourceBusy;
                while std::fs::remove_dir(directory).is_err_and(busy) {}
            }
            waiter.join().expect("no panic")
        })
    };
    // Nothing at all is told of it.
    let error = wait(Cgroup::wait_frozen, |group| {
        std::thread::sleep(Duration::from_millis(50));
        group.kill().expect("killed");
    });
    assert!(matches!(error, Err(Error::Vanished { .. })), "{error:?}");
    // The last event of a group that lived for a moment goes with it, now and then.
    for _ in 0..10 {
        let result = wait(Cgroup::wait_empty, |group| group.kill().expect("killed"));
        let heard = matches!(result, Ok(()) | Err(Error::Vanished { .. }));
        assert!(heard, "{result:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn removal_waits_for_the_end_instead_of_failing() {
    let scratch = Scratch::new();
    let child = Running::in_group(&scratch, "exec sleep 0.3");
    let started = Instant::now();
    scratch.remove_within(SOON).expect("removed once empty");
    assert!(started.elapsed() < SOON);
    drop(child);
}

#[test]
#[ignore = "needs root"]
fn every_hierarchy_alone_can_kill_and_wait() {
    // As it is on a machine with v1 alone: the fallbacks, one hierarchy at a time.
    let scratch = Scratch::new();
    let hierarchy = scratch.hierarchy();
    for controller in hierarchy.controllers().iter() {
        if hierarchy.version_of(controller) != Some(Version::V1) {
            continue;
        }
        let name = format!("only-{controller}");
        let mount = hierarchy.mount_point_of(controller).expect("mounted");
        std::fs::create_dir(mount.join(scratch.path()).join(&name)).expect("created");
        let group = scratch.open(&name).expect("opened");
        assert_eq!(group.directories().count(), 1);
        if controller == Controller::Cpuset {
            let dir = group.directories().next().expect("one").to_owned();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                std::fs::write(dir.join(file), "0").expect("written");
            }
        }
        let children: Vec<_> = (0..5)
            .map(|_| Running::in_group(&group, "while :; do sleep 0.01 & sleep 0.02; done"))
            .collect();
        let pids: BTreeSet<_> = group.processes().expect("readable").into_iter().collect();
        assert!(children.iter().all(|child| pids.contains(&child.pid())));
        group.kill().expect("killed");
        group.wait_empty(SOON).expect("empty");
        group.remove().expect("removed");
    }
}

#[test]
#[ignore = "needs root"]
fn a_thousand_groups_leave_nothing() {
    const BRANCHES: usize = 20;
    const LEAVES: usize = 49;
    let scratch = Scratch::new();
    let shell = Running::crowd(&scratch, BRANCHES * LEAVES);
    let mut pids = scratch.processes().expect("readable");
    pids.retain(|&pid| pid != shell.pid());
    assert_eq!(pids.len(), BRANCHES * LEAVES);
    for (index, &pid) in pids.iter().enumerate() {
        let name = format!("{}/{}", index / LEAVES, index % LEAVES);
        let group = scratch.create(name).expect("created");
        group.attach(pid).expect("moved");
    }
    assert_eq!(scratch.children().expect("readable").len(), BRANCHES);
    assert_eq!(scratch.processes().expect("readable"), [shell.pid()]);
    scratch.kill().expect("killed");
    drop(shell);
    scratch.wait_empty(SOON).expect("all are dead");
    scratch.remove().expect("removed");
    assert!(!scratch.directories().any(Path::exists));
}

#[test]
#[ignore = "needs root"]
fn lives_of_groups_one_after_another_leave_nothing() {
    let scratch = Scratch::new();
    for round in 0..100 {
        let group = scratch.create(format!("{round}")).expect("created");
        let _child = Running::in_group(&group, "sleep 100 & wait");
        group.kill().expect("killed");
        group.remove().expect("removed");
    }
    assert!(scratch.children().expect("readable").is_empty());
}
