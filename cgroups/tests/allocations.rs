//! Reading costs no allocation for each line.

mod support;

use std::fmt::Write as _;

use cgroups::{Counters, IoStats};
use support::{Running, Scratch};

/// How often this thread asks for memory, growing included.
fn allocations<T>(work: impl FnOnce() -> T) -> u64 {
    allocation_counter::measure(|| drop(work())).count_total
}

#[test]
fn counters_are_one_allocation_however_many_lines() {
    let mut text = String::new();
    for line in 0..1_000 {
        writeln!(text, "counter_{line} {line}").expect("written");
    }
    assert_eq!(allocations(|| text.parse::<Counters>()), 1);
    let counters: Counters = text.parse().expect("valid");
    assert_eq!(allocations(|| counters.get("counter_999")), 0);
}

#[test]
fn devices_are_as_many_allocations_as_a_map_of_them() {
    let mut text = String::new();
    for minor in 0..1_000 {
        writeln!(text, "8:{minor} rbytes=1 wbytes=2 rios=3 wios=4").expect("written");
    }
    let used = allocations(|| text.parse::<IoStats>());
    assert!(used < 1_000 / 4, "{used} allocations for 1000 devices");
}

#[test]
#[ignore = "needs root"]
fn a_list_of_processes_is_a_handful_of_allocations() {
    let scratch = Scratch::new();
    let crowd = Running::crowd(&scratch, 200);
    let used = allocations(|| scratch.processes().expect("readable"));
    assert!(used <= 8, "{used} allocations for 200 processes");
    scratch.kill().expect("killed");
    drop(crowd);
}
