//! Subtrees of unprivileged users, and groups of threads.

mod support;

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::time::Duration;

use cgroups::{Bytes, Controller, Error, GroupType, Knob, Limits, Max, Version};
use support::{NOBODY, Running, Scratch, as_nobody, shell};

#[test]
#[ignore = "needs root"]
fn a_user_works_inside_what_was_delegated_and_not_outside() {
    let scratch = Scratch::new();
    let home = scratch.create("home").expect("created");
    home.enable(Controller::Pids).expect("enabled");
    home.apply(&Limits::new().pids_max(10)).expect("applied");
    home.delegate(NOBODY, NOBODY).expect("delegated");
    let first = as_nobody(|| home.create("first").expect("the user's"));
    let mut command = shell("exec sleep 100");
    command.uid(NOBODY).gid(NOBODY);
    let child = Running(first.spawn(command).expect("started"));
    as_nobody(|| {
        let second = home.create("second").expect("the user's");
        second.attach(child.pid()).expect("moved inside");
        assert_eq!(second.processes().expect("readable"), [child.pid()]);
        second
            .apply(&Limits::new().pids_max(3))
            .expect("the user's own limit");
        let now = second.limits().expect("readable");
        assert_eq!(now.pids_max, Some(Max::At(3)));
        let error = home
            .apply(&Limits::new().pids_max(Max::Unlimited))
            .expect_err("set from outside");
        assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
        let error = scratch.attach(child.pid()).expect_err("out of the subtree");
        assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
        let error = scratch.create("beside").expect_err("out of the subtree");
        assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
        let error = home
            .remove_within(Duration::ZERO)
            .expect_err("its parent is not the user's");
        assert!(matches!(error, Error::NotDelegated { .. }), "{error}");
        assert_eq!(home.children().expect("readable").len(), 2);
    });
    // Still where the user put it, in every hierarchy.
    let group = scratch
        .hierarchy()
        .of_process(child.pid())
        .expect("it has a group");
    assert_eq!(group.path(), home.path().join("second"));
    assert_eq!(home.limits().expect("readable").pids_max, Some(Max::At(10)));
}

#[test]
#[ignore = "needs root"]
fn what_is_given_away_is_what_the_kernel_lists() {
    let scratch = Scratch::new();
    let home = scratch.create("home").expect("created");
    for controller in [Controller::Pids, Controller::Memory] {
        home.enable(controller).expect("enabled");
    }
    home.delegate(NOBODY, NOBODY).expect("delegated");
    let listed = std::fs::read_to_string("/sys/kernel/cgroup/delegate").expect("readable");
    let unified = scratch.hierarchy().unified_mount_point();
    let owner = |path: &Path| path.metadata().expect("readable").uid();
    for directory in home.directories() {
        assert_eq!(owner(directory), NOBODY);
        let is_v2 = unified.is_some_and(|mount| directory.starts_with(mount));
        let mut given = 0;
        for entry in directory.read_dir().expect("listed") {
            let path = entry.expect("listed").path();
            let name = path.file_name().expect("it has one").to_string_lossy();
            let expected = if is_v2 {
                listed.lines().any(|line| line == name)
            } else {
                ["cgroup.procs", "tasks"].contains(&&*name)
            };
            assert_eq!(owner(&path) == NOBODY, expected, "{}", path.display());
            given += usize::from(expected);
        }
        assert!(given >= 2, "{}", directory.display());
    }
}

#[test]
#[ignore = "needs root"]
fn what_was_given_away_is_taken_back_when_the_rest_cannot_be() {
    let scratch = Scratch::new();
    let home = scratch.create("home").expect("created");
    let last = home.directories().last().expect("there is one").to_owned();
    std::fs::remove_dir(last).expect("removed by hand");
    let error = home.delegate(NOBODY, NOBODY).expect_err("one is gone");
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
    for directory in home.directories().filter(|directory| directory.exists()) {
        let files = directory.read_dir().expect("listed");
        let files = files.map(|entry| entry.expect("listed").path());
        for path in files.chain([directory.to_owned()]) {
            let owner = path.metadata().expect("readable").uid();
            assert_eq!(owner, 0, "{}", path.display());
        }
    }
}

#[test]
#[ignore = "needs root"]
fn usable_controllers_are_those_one_may_enable() {
    let scratch = Scratch::new();
    let hierarchy = scratch.hierarchy();
    let usable = scratch.usable_controllers().expect("readable");
    assert!(usable.contains(Controller::Pids) && usable.contains(Controller::Memory));
    let as_user = as_nobody(|| scratch.usable_controllers().expect("readable"));
    for controller in [Controller::Memory, Controller::Pids, Controller::Cpu] {
        if hierarchy.version_of(controller) == Some(Version::V1) {
            assert!(as_user.contains(controller), "v1 gives what is there");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn threads_are_distributed_on_v2() {
    let scratch = Scratch::new();
    let process = Running::in_group(&scratch, "exec sleep 100");
    let threads = scratch.create("threads").expect("created");
    assert_eq!(
        threads.group_type().expect("readable"),
        Some(GroupType::Domain)
    );
    let error = threads
        .attach_thread(process.pid())
        .expect_err("not yet threaded");
    assert!(matches!(error, Error::CannotAttach { .. }), "{error}");
    threads.make_threaded().expect("made");
    assert_eq!(
        threads.group_type().expect("readable"),
        Some(GroupType::Threaded)
    );
    assert_eq!(
        scratch.group_type().expect("readable"),
        Some(GroupType::DomainThreaded)
    );
    threads.attach_thread(process.pid()).expect("moved");
    assert_eq!(threads.threads().expect("readable"), [process.pid()]);
    // Of whole processes it knows nothing, and says so.
    let error = threads.processes().expect_err("threads only");
    assert!(matches!(error, Error::Threaded { .. }), "{error}");
    let error = threads.kill().expect_err("nobody could be killed");
    assert!(matches!(error, Error::Threaded { .. }), "{error}");
    assert!(threads.is_populated().expect("readable"));
    let below = threads.create("below").expect("created");
    assert_eq!(
        below.group_type().expect("readable"),
        Some(GroupType::DomainInvalid)
    );
    scratch.kill().expect("killed, threads and all");
    scratch.wait_empty(Duration::from_mins(1)).expect("empty");
}

#[test]
#[ignore = "needs root"]
fn memory_is_reclaimed_on_demand() {
    let scratch = Scratch::new();
    match scratch
        .enable(Controller::Memory)
        .and_then(|()| scratch.reclaim(Bytes::mib(1)))
    {
        // An empty group has nothing to give.
        Ok(reclaimed) => assert!(!reclaimed),
        Err(Error::Unsupported { knob, .. }) => assert_eq!(knob, Knob::MemoryReclaim),
        Err(error) => panic!("{error}"),
    }
}

#[test]
#[ignore = "needs root"]
fn statistics_of_every_controller_are_readable() {
    let scratch = Scratch::new();
    let _reader = Running::in_group(&scratch, "cat /proc/self/status; exec sleep 100");
    for controller in [Controller::Memory, Controller::Io, Controller::Hugetlb] {
        scratch.enable(controller).expect("enabled");
    }
    let memory = scratch.memory_stats().expect("readable").expect("enabled");
    assert!(memory.peak.is_none_or(|peak| peak >= memory.current));
    let counters = scratch
        .memory_counters()
        .expect("readable")
        .expect("enabled");
    let known = if scratch.hierarchy().version_of(Controller::Memory) == Some(Version::V1) {
        "rss"
    } else {
        "anon"
    };
    assert!(counters.get(known).is_some(), "{counters}");
    assert!(scratch.io_stats().expect("readable").is_some());
    let huge = scratch.hugetlb_stats().expect("readable").expect("enabled");
    assert_eq!(huge[&Bytes::mib(2)].current, Bytes::ZERO);
    scratch.create("child").expect("created");
    let groups = scratch
        .group_counters()
        .expect("readable")
        .unwrap_or_default();
    assert!(
        groups.get("nr_descendants").is_none_or(|count| count == 1),
        "{groups}"
    );
    // Not every kernel has these controllers, and hardly a machine the devices.
    scratch.misc_stats().expect("readable");
    scratch.misc_events().expect("readable");
    if scratch.enable(Controller::Rdma).is_ok() {
        let rdma = scratch.rdma_stats().expect("readable");
        assert!(rdma.is_some());
    }
    let events = scratch.memory_event_counters().expect("readable");
    assert_eq!(events.and_then(|events| events.get("oom_kill")), Some(0));
    assert!(scratch.cpu_counters().expect("readable").is_some());
    assert!(scratch.directory_of(Controller::PerfEvent).is_some());
    if scratch.enable(Controller::Cpuset).is_ok() {
        let cpus = scratch.effective_cpus().expect("readable");
        assert!(cpus.is_some_and(|cpus| !cpus.is_empty()));
        let mems = scratch.effective_mems().expect("readable");
        assert!(mems.is_some_and(|mems| mems.contains(0)));
    }
}
