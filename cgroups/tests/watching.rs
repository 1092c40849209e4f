//! Waiting for events, pressure, freezing.

mod support;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use cgroups::{
    Bytes, Controller, CpuQuota, Error, Knob, Limits, Max, Pressure, Resource, Threshold, Version,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use support::{Running, Scratch};

const SOON: Duration = Duration::from_mins(1);
const AT_ONCE: Duration = Duration::from_millis(20);

fn readable(fd: impl AsFd, timeout: Duration) -> bool {
    is_ready(fd, PollFlags::IN, timeout)
}

fn is_ready(fd: impl AsFd, event: PollFlags, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).expect("short");
    let mut fds = [PollFd::new(&fd, event)];
    poll(&mut fds, Some(&timeout)).expect("polled") > 0 && fds[0].revents().contains(event)
}

fn little_memory(scratch: &Scratch) {
    let mut limits = Limits::new()
        .memory_max(Bytes::mib(16))
        .memory_swap_max(Bytes::ZERO);
    if let Err(Error::Unsupported { knob, .. }) = scratch.apply(&limits) {
        limits.unset(knob);
        scratch.apply(&limits).expect("applied");
    }
}

#[test]
#[ignore = "needs root"]
fn an_oom_kill_wakes() {
    let scratch = Scratch::new();
    little_memory(&scratch);
    let mut watch = scratch.watch_memory().expect("watched");
    assert!(!watch.wait_oom_kill(AT_ONCE).expect("waited"));
    assert!(!readable(&watch, Duration::ZERO));
    let eater = Running::in_group(&scratch, "exec tail /dev/zero");
    assert!(readable(&watch, SOON), "the descriptor tells nothing");
    assert!(watch.wait_oom_kill(SOON).expect("waited"));
    assert!(watch.last().oom_kill >= Some(1), "{:?}", watch.last());
    assert!(watch.last().oom >= Some(1), "{:?}", watch.last());
    drop(eater);
    // A second one is told apart from the first.
    assert!(!watch.wait_oom_kill(AT_ONCE).expect("waited"));
    let _eater = Running::in_group(&scratch, "exec tail /dev/zero");
    assert!(watch.wait_oom_kill(SOON).expect("waited"));
}

#[test]
#[ignore = "needs root"]
fn being_slowed_down_wakes_where_v2_has_it() {
    let scratch = Scratch::new();
    match scratch.apply(&Limits::new().memory_high(Bytes::mib(4))) {
        Ok(()) => {
            let mut watch = scratch.watch_memory().expect("watched");
            let _eater = Running::in_group(&scratch, "exec tail /dev/zero");
            let events = watch.wait(SOON).expect("waited").expect("in time");
            assert!(events.high >= Some(1), "{events:?}");
        }
        Err(Error::Unsupported { knob, .. }) => assert_eq!(knob, Knob::MemoryHigh),
        Err(error) => panic!("{error}"),
    }
}

#[test]
#[ignore = "needs root"]
fn breaching_max_and_low_wakes_where_v2_has_it() {
    let parent = Scratch::new();
    little_memory(&parent);
    let child = Scratch::within(&parent, "protected");
    match child.apply(&Limits::new().memory_low(Max::Unlimited)) {
        Ok(()) => {
            // All there is to reclaim in the parent is protected, and has to be used up even so.
            let mut at_limit = parent.watch_memory().expect("watched");
            let mut protected = child.watch_memory().expect("watched");
            let _eater = Running::in_group(&child, "exec tail /dev/zero");
            let events = at_limit.wait(SOON).expect("waited").expect("in time");
            assert!(events.max >= Some(1) || events.low >= Some(1), "{events:?}");
            let events = protected.wait(SOON).expect("waited").expect("in time");
            assert!(events.low >= Some(1), "{events:?}");
            assert!(parent.watch_memory().expect("watched").last().max >= Some(1));
        }
        Err(Error::Unsupported { knob, .. }) => assert_eq!(knob, Knob::MemoryLow),
        Err(error) => panic!("{error}"),
    }
}

#[test]
#[ignore = "needs root"]
fn a_failed_fork_wakes() {
    let scratch = Scratch::new();
    scratch.apply(&Limits::new().pids_max(4)).expect("applied");
    let mut watch = scratch.watch_pids().expect("watched");
    assert_eq!(watch.wait(AT_ONCE).expect("waited"), None);
    // On v1 it is readable from time to time even so.
    if scratch.hierarchy().version_of(Controller::Pids) == Some(Version::V2) {
        assert!(!readable(&watch, Duration::ZERO));
    }
    let _forker = Running::in_group(&scratch, "while :; do sleep 100 & done");
    assert!(readable(&watch, SOON), "the descriptor tells nothing");
    let failures = watch.wait(SOON).expect("waited");
    assert!(failures >= Some(1), "{failures:?}");
}

#[test]
#[ignore = "needs root"]
fn becoming_populated_and_empty_wakes() {
    let scratch = Scratch::new();
    let mut watch = scratch
        .watch_state()
        .expect("v2 is mounted where these tests run");
    assert!(!watch.last().populated);
    assert_eq!(
        watch.wait_for(AT_ONCE, |s| s.populated).expect("waited"),
        None
    );
    assert!(!readable(&watch, Duration::ZERO));
    let child = Running::in_group(&scratch, "exec sleep 100");
    assert!(readable(&watch, SOON), "the descriptor tells nothing");
    let state = watch.wait_for(SOON, |s| s.populated).expect("waited");
    assert!(state.is_some_and(|state| state.populated && !state.frozen));
    scratch.freeze().expect("asked");
    assert!(readable(&watch, SOON), "the descriptor tells nothing");
    let state = watch.wait_for(SOON, |s| s.frozen).expect("waited");
    assert!(state.is_some_and(|state| state.frozen));
    drop(child);
    let state = watch.wait_for(SOON, |s| !s.populated).expect("waited");
    assert!(state.is_some());
    scratch.remove().expect("removed");
    let error = watch
        .wait_for(SOON, |s| s.populated)
        .expect_err("it is gone");
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
}

#[test]
#[ignore = "needs root"]
fn a_frozen_process_uses_no_time_until_it_is_thawed() {
    let scratch = Scratch::new();
    let _busy = Running::in_group(&scratch, "while :; do :; done");
    let used = || {
        scratch
            .cpu_stats()
            .expect("readable")
            .expect("accounted")
            .usage
    };
    let progresses = || {
        let (before, deadline) = (used(), Instant::now() + SOON);
        while used() == before {
            assert!(Instant::now() < deadline, "it does not run");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    progresses();
    assert!(!scratch.is_frozen().expect("readable"));
    scratch.freeze().expect("asked");
    scratch.wait_frozen(SOON).expect("frozen");
    assert!(scratch.is_frozen().expect("readable"));
    let before = used();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(used(), before);
    let error = scratch.wait_thawed(AT_ONCE).expect_err("nobody thaws it");
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    scratch.thaw().expect("asked");
    scratch.wait_thawed(SOON).expect("thawed");
    progresses();
    // And what is frozen can be ended.
    scratch.freeze().expect("asked");
    scratch.wait_frozen(SOON).expect("frozen");
    scratch.kill().expect("killed");
    scratch.wait_empty(SOON).expect("empty");
}

#[test]
#[ignore = "needs root"]
fn v1_freezes_and_thaws_by_itself() {
    let scratch = Scratch::new();
    let freezer = scratch
        .directories()
        .find(|d| d.join("freezer.state").exists());
    match freezer {
        None => assert_ne!(
            scratch.hierarchy().version_of(Controller::Freezer),
            Some(Version::V1)
        ),
        Some(directory) => {
            std::fs::create_dir(directory.join("alone")).expect("created");
            let group = scratch.open("alone").expect("opened");
            assert_eq!(group.directories().count(), 1);
            let _child = Running::in_group(&group, "while :; do sleep 0.01; done");
            group.freeze().expect("asked");
            group.wait_frozen(SOON).expect("frozen");
            group.thaw().expect("asked");
            group.wait_thawed(SOON).expect("thawed");
            group.kill().expect("killed");
            group.wait_empty(SOON).expect("empty");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn pressure_is_seen_and_triggers() {
    let scratch = Scratch::new();
    assert!(
        scratch.hierarchy().unified_mount_point().is_some(),
        "these tests need v2"
    );
    for resource in [Resource::Cpu, Resource::Memory, Resource::Io] {
        let pressure: Option<Pressure> = scratch.pressure(resource).expect("readable");
        let pressure = pressure.expect("accounted");
        assert!(pressure.some.is_some(), "{resource:?}");
    }
    // What it asks for beyond its quota is time lost.
    let quota = CpuQuota::cpus(0.05).expect("in range");
    scratch
        .apply(&Limits::new().cpu_max(quota))
        .expect("applied");
    let threshold = Threshold {
        full: false,
        stall: Duration::from_millis(50),
        window: Duration::from_secs(2),
    };
    let trigger = match scratch.pressure_trigger(Resource::Cpu, threshold) {
        Ok(trigger) => Some(trigger),
        // Root without the capability is what containers and some machines have.
        Err(Error::NeedsCapability { capability, .. }) => {
            assert_eq!(capability, "CAP_SYS_RESOURCE");
            None
        }
        Err(error) => panic!("{error}"),
    };
    let _busy = Running::in_group(&scratch, "while :; do :; done");
    if let Some(trigger) = trigger {
        assert!(
            is_ready(&trigger, PollFlags::PRI, SOON),
            "the descriptor tells nothing"
        );
        assert!(trigger.wait(SOON).expect("waited"), "it never fires");
        let bad = Threshold {
            window: Duration::from_millis(1),
            ..threshold
        };
        let error = scratch
            .pressure_trigger(Resource::Memory, bad)
            .expect_err("the window is too short");
        assert!(matches!(error, Error::BadThreshold { .. }), "{error}");
    }
    // The kernel would take it for 2 s.
    let bad = Threshold {
        window: Duration::from_micros((1 << 32) + 2_000_000),
        ..threshold
    };
    let error = scratch
        .pressure_trigger(Resource::Memory, bad)
        .expect_err("the window is too long");
    assert!(matches!(error, Error::BadThreshold { .. }), "{error}");
    let deadline = Instant::now() + SOON;
    loop {
        let pressure = scratch.pressure(Resource::Cpu).expect("readable");
        let some = pressure
            .and_then(|pressure| pressure.some)
            .expect("accounted");
        if some.total > Duration::from_millis(20) {
            break;
        }
        assert!(Instant::now() < deadline, "{some:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
#[ignore = "needs root"]
fn a_trigger_tells_that_its_group_is_gone() {
    let scratch = Scratch::new();
    let threshold = Threshold {
        full: false,
        stall: Duration::from_millis(100),
        window: Duration::from_secs(2),
    };
    match scratch.pressure_trigger(Resource::Memory, threshold) {
        Ok(trigger) => {
            assert!(!trigger.wait(AT_ONCE).expect("waited"));
            scratch.remove().expect("removed");
            let error = trigger.wait(SOON).expect_err("it is gone");
            assert!(matches!(error, Error::Vanished { .. }), "{error}");
        }
        Err(error) => {
            assert!(matches!(error, Error::NeedsCapability { .. }), "{error}");
            scratch.remove().expect("removed");
        }
    }
    let error = scratch
        .pressure_trigger(Resource::Memory, threshold)
        .expect_err("it is gone");
    assert!(matches!(error, Error::Vanished { .. }), "{error}");
}
