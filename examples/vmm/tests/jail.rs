//! What a jail leaves behind: nothing.

mod common;

use std::path::PathBuf;

use cgroups::Hierarchy;
use common::{Running, Scratch, busy, counts, run};

/// The control group of the machine that this process jailed, if there is one.
fn group_of(pid: u32) -> Option<PathBuf> {
    let groups = Hierarchy::detect().unwrap().root().unwrap().children();
    let name = PathBuf::from(format!("cofferdam-vmm-{pid}"));
    groups.unwrap().into_iter().find(|group| *group == name)
}

#[test]
#[ignore = "needs root"]
fn the_next_machine_removes_the_control_group_of_one_that_was_killed() {
    let dir = Scratch::new();
    let kernel = busy(&dir);
    let mut killed = Running::start(&dir, "killed", &["boot", "--kernel", &kernel, "--jail"]);
    let mut lives = Running::start(&dir, "lives", &["boot", "--kernel", &kernel, "--jail"]);
    for machine in [&mut killed, &mut lives] {
        machine.wait_for(|out| !counts(out).is_empty());
    }
    let (gone, stays) = (killed.id(), lives.id());
    killed.kill();
    assert!(group_of(gone).is_some() && group_of(stays).is_some());
    // Its processes may be ending yet.
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while group_of(gone).is_some() {
        let ran = run(&["boot", "--kernel", &kernel, "--jail", "--timeout", "0.05"]);
        assert_eq!(ran.status, 10, "{}", ran.err);
        assert!(std::time::Instant::now() < end, "it is still there");
    }
    assert!(group_of(stays).is_some());
    lives.shut_down();
    assert_eq!(group_of(stays), None);
}
