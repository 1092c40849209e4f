//! Limits on real groups.

mod support;

use std::time::Duration;

use cgroups::{
    Bytes, Controller, CpuQuota, Error, IdSet, Knob, Layout, Limits, Max, Version, Weight,
};
use support::{Running, Scratch};

/// Whether limits of a controller take v1's way here.
fn is_v1(scratch: &Scratch, controller: Controller) -> bool {
    scratch.hierarchy().version_of(controller) == Some(Version::V1)
}

#[test]
#[ignore = "needs root"]
fn limits_read_back_as_they_were_set() {
    let scratch = Scratch::new();
    let limits = Limits::new()
        .memory_max(Bytes::mib(64))
        .pids_max(32)
        .cpu_weight(Weight::new(250).expect("in range"))
        .cpu_max(CpuQuota::cpus(0.5).expect("in range"));
    scratch.apply(&limits).expect("applied");
    let now = scratch.limits().expect("readable");
    assert_eq!(now.memory_max, limits.memory_max);
    assert_eq!(now.pids_max, limits.pids_max);
    assert_eq!(now.cpu_weight, limits.cpu_weight);
    assert_eq!(now.cpu_max, limits.cpu_max);
    // What is not named stays.
    scratch
        .apply(&Limits::new().pids_max(Max::Unlimited))
        .expect("applied");
    let now = scratch.limits().expect("readable");
    assert_eq!(now.memory_max, limits.memory_max);
    assert_eq!(now.pids_max, Some(Max::Unlimited));
    scratch
        .apply(
            &Limits::new()
                .memory_max(Max::Unlimited)
                .cpu_max(Max::Unlimited),
        )
        .expect("applied");
    let now = scratch.limits().expect("readable");
    assert_eq!(now.memory_max, Some(Max::Unlimited));
    assert_eq!(now.cpu_max, Some(Max::Unlimited));
}

#[test]
#[ignore = "needs root"]
fn swap_is_limited_apart_from_memory_or_said_to_be_missing() {
    let scratch = Scratch::new();
    let limits = Limits::new()
        .memory_max(Bytes::mib(32))
        .memory_swap_max(Bytes::mib(8));
    match scratch.apply(&limits) {
        Ok(()) => {
            let now = scratch.limits().expect("readable");
            assert_eq!(now.memory_swap_max, limits.memory_swap_max);
            // Memory alone moves up and down without touching the allowance of swap.
            for size in [Bytes::mib(128), Bytes::mib(4), Bytes::mib(16)] {
                scratch
                    .apply(&Limits::new().memory_max(size))
                    .expect("applied");
                let now = scratch.limits().expect("readable");
                assert_eq!(now.memory_max, Some(Max::At(size)));
                assert_eq!(now.memory_swap_max, limits.memory_swap_max);
            }
            let none = Limits::new().memory_swap_max(Bytes::ZERO);
            scratch.apply(&none).expect("applied");
            let now = scratch.limits().expect("readable");
            assert_eq!(now.memory_swap_max, Some(Max::At(Bytes::ZERO)));
            assert_eq!(now.memory_max, Some(Max::At(Bytes::mib(16))));
        }
        Err(Error::Unsupported {
            knob: Knob::MemorySwapMax,
            ..
        }) => {
            // Nothing has happened, and without it the rest goes.
            assert_eq!(
                scratch.limits().expect("readable").memory_max,
                Some(Max::Unlimited)
            );
            let mut rest = limits;
            rest.unset(Knob::MemorySwapMax);
            scratch.apply(&rest).expect("applied");
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
#[ignore = "needs root"]
fn what_the_layout_lacks_is_named_before_anything_is_written() {
    let scratch = Scratch::new();
    let limits = Limits::new().pids_max(7).memory_high(Bytes::mib(32));
    let applied = scratch.apply(&limits);
    if is_v1(&scratch, Controller::Memory) {
        let error = applied.expect_err("v1 has no memory.high");
        assert!(
            matches!(
                error,
                Error::Unsupported {
                    knob: Knob::MemoryHigh,
                    layout: Layout::Hybrid | Layout::Legacy
                }
            ),
            "{error}"
        );
        let now = scratch.limits().expect("readable");
        assert_eq!(now.pids_max, Some(Max::Unlimited));
    } else {
        applied.expect("v2 has both");
        let now = scratch.limits().expect("readable");
        assert_eq!(now.memory_high, limits.memory_high);
    }
}

#[test]
#[ignore = "needs root"]
fn a_refused_limit_puts_the_earlier_ones_back() {
    let scratch = Scratch::new();
    let first = Limits::new()
        .cpu_weight(Weight::new(50).expect("in range"))
        .memory_max(Bytes::mib(64))
        .pids_max(20);
    scratch.apply(&first).expect("applied");
    let before = scratch.limits().expect("readable");
    // The weight is written first; a burst above the quota is refused by the kernel itself.
    let second = Limits::new()
        .cpu_weight(Weight::MAX)
        .cpu_max(CpuQuota::cpus(0.1).expect("in range"))
        .cpu_max_burst(1_000_000_u64)
        .memory_max(Bytes::mib(32));
    let error = scratch.apply(&second).expect_err("the burst is too large");
    assert!(
        matches!(
            error,
            Error::Refused {
                knob: Knob::CpuMaxBurst,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(scratch.limits().expect("readable"), before);
}

#[test]
#[ignore = "needs root"]
fn a_cpu_outside_the_machine_is_named() {
    let scratch = Scratch::new();
    let limits = Limits::new().cpuset_cpus(IdSet::from(4_000));
    let error = scratch.apply(&limits).expect_err("no machine has it");
    assert!(
        matches!(
            error,
            Error::NotInMachine {
                knob: Knob::CpusetCpus,
                ..
            }
        ),
        "{error}"
    );
    // Above the root there is nobody to ask.
    let root = scratch.hierarchy().root().expect("opened");
    let error = root.apply(&limits).expect_err("no machine has it");
    if is_v1(&scratch, Controller::Cpuset) {
        assert!(matches!(error, Error::NotInMachine { .. }), "{error}");
    } else {
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
    let limits = Limits::new()
        .cpuset_cpus(IdSet::from(0))
        .cpuset_mems(IdSet::from(0));
    scratch.apply(&limits).expect("applied");
    let now = scratch.limits().expect("readable");
    assert_eq!(now.cpuset_cpus, limits.cpuset_cpus);
    assert_eq!(now.cpuset_mems, limits.cpuset_mems);
    let _sleeper = Running::in_group(&scratch, "exec sleep 100");
}

#[test]
#[ignore = "needs root"]
fn memory_below_use_is_refused_on_v1() {
    let scratch = Scratch::new();
    // A pipeline that holds 32 MiB of anonymous memory until it is killed.
    let script = "x=$(head -c 33554432 /dev/zero | tr '\\0' a); sleep 100";
    scratch.enable(Controller::Memory).expect("enabled");
    let _user = Running::in_group(&scratch, script);
    let used = || {
        scratch
            .memory_stats()
            .expect("readable")
            .expect("enabled")
            .current
    };
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while used() < Bytes::mib(32) {
        assert!(std::time::Instant::now() < deadline, "only {} used", used());
        std::thread::sleep(Duration::from_millis(20));
    }
    if is_v1(&scratch, Controller::Memory) {
        let before = scratch.limits().expect("readable");
        let limits = Limits::new()
            .cpu_weight(Weight::MAX)
            .memory_max(Bytes::mib(1))
            .memory_swap_max(Bytes::ZERO);
        let error = scratch.apply(&limits).expect_err("more is in use");
        assert!(
            matches!(
                error,
                Error::LimitBelowUse {
                    knob: Knob::MemoryMax,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(scratch.limits().expect("readable"), before);
    } else {
        // v2 never refuses: it reclaims, and kills when that is not enough.
        let limits = Limits::new()
            .memory_max(Bytes::mib(1))
            .memory_swap_max(Bytes::ZERO);
        scratch.apply(&limits).expect("applied");
        let events = scratch
            .memory_stats()
            .expect("readable")
            .expect("enabled")
            .events;
        assert!(events.oom_kill >= Some(1), "{events:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn the_rule_of_leaves_is_explained() {
    let scratch = Scratch::new();
    // Not cpu or pids: those may be shared out among threads, so the rule spares them.
    let controllers = [Controller::Hugetlb, Controller::Memory];
    let controller = controllers
        .into_iter()
        .find(|&controller| scratch.hierarchy().version_of(controller) == Some(Version::V2));
    let Some(controller) = controller else {
        panic!("neither hugetlb nor memory is on v2; one of them is wherever these tests run");
    };
    let _inside = Running::in_group(&scratch, "exec sleep 100");
    let child = scratch.create("child").expect("created");
    let error = child
        .enable(controller)
        .expect_err("the parent holds a process");
    assert!(matches!(error, Error::InternalProcesses { .. }), "{error}");
}

#[test]
#[ignore = "needs root"]
fn more_processes_than_there_are_numbers_are_out_of_range() {
    let scratch = Scratch::new();
    for many in [5_000_000, u64::MAX] {
        let limits = Limits::new().pids_max(many);
        let error = scratch.apply(&limits).expect_err("no machine has so many");
        assert!(matches!(error, Error::OutOfRange { .. }), "{error}");
        assert!(error.to_string().contains(&many.to_string()), "{error}");
    }
    scratch
        .apply(&Limits::new().pids_max(4_194_304))
        .expect("the most there are");
}

#[test]
#[ignore = "needs root"]
fn a_fork_bomb_stops_at_the_limit() {
    let scratch = Scratch::new();
    scratch.apply(&Limits::new().pids_max(8)).expect("applied");
    let script = "while :; do sleep 100 & done";
    let _bomb = Running::in_group(&scratch, script);
    let stats = || scratch.pids_stats().expect("readable").expect("enabled");
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while stats().max_events == Some(0) {
        assert!(std::time::Instant::now() < deadline, "{:?}", stats());
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(stats().current <= 8);
}

#[test]
#[ignore = "needs root"]
fn exceeding_memory_is_seen_as_an_oom_kill() {
    let scratch = Scratch::new();
    let mut limits = Limits::new()
        .memory_max(Bytes::mib(16))
        .memory_swap_max(Bytes::ZERO);
    if let Err(Error::Unsupported { knob, .. }) = scratch.apply(&limits) {
        limits.unset(knob);
        scratch.apply(&limits).expect("applied");
    }
    let mut eater = Running::in_group(&scratch, "exec tail /dev/zero");
    let status = eater.0.wait().expect("waited");
    assert!(!status.success());
    let stats = scratch.memory_stats().expect("readable").expect("enabled");
    assert!(stats.events.oom_kill >= Some(1), "{stats:?}");
    assert!(stats.peak <= Some(Bytes::mib(16)), "{stats:?}");
    // v1's counter of failures exists but stands still on some kernels.
    if is_v1(&scratch, Controller::Memory) {
        assert!(stats.events.max.is_some(), "{stats:?}");
    } else {
        assert!(stats.events.max >= Some(1), "{stats:?}");
        assert!(stats.events.oom >= Some(1), "{stats:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn processor_time_is_limited_and_counted() {
    let scratch = Scratch::new();
    let quota = CpuQuota::cpus(0.1).expect("in range");
    scratch
        .apply(&Limits::new().cpu_max(quota))
        .expect("applied");
    let _busy = Running::in_group(&scratch, "while :; do :; done");
    let stats = || scratch.cpu_stats().expect("readable").expect("accounted");
    let deadline = std::time::Instant::now() + Duration::from_mins(1);
    while stats().throttled_periods < Some(3) {
        assert!(std::time::Instant::now() < deadline, "{:?}", stats());
        std::thread::sleep(Duration::from_millis(20));
    }
    let now = stats();
    assert!(
        now.usage > Duration::ZERO && now.throttled > Some(Duration::ZERO),
        "{now:?}"
    );
    assert!(now.periods >= now.throttled_periods, "{now:?}");
}
