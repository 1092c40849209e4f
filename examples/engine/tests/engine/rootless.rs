//! `cofferdam run` by an ordinary user.
//!
//! The tests start as root to become a user who has nothing: no home, no subordinate ids, no
//! delegated control group.

use std::fs;

use crate::fixture::{Fixture, stderr, stdout};

/// Nobody, on every system.
const NOBODY: u32 = 65534;

#[test]
#[ignore = "needs root"]
fn a_container_in_a_user_namespace() {
    let fixture = Fixture::of_user(NOBODY);
    let script = "id -u; hostname; echo /proc/[0-9]*; echo x > /etc/file && cat /etc/file; cat /proc/self/uid_map; ls /dev";
    let output = fixture.sh(&["--hostname", "box"], script);
    let lines = stdout(&output);
    let mut lines = lines.lines();
    for expected in ["0", "box", "/proc/1", "x"] {
        assert_eq!(lines.next(), Some(expected), "{}", stderr(&output));
    }
    let map: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!((map[0], map[2]), ("0", "1"), "one id only: {map:?}");
    let devices: Vec<&str> = lines.collect();
    for device in ["null", "zero", "urandom", "pts", "shm"] {
        assert!(devices.contains(&device), "{devices:?}");
    }
    let told = stderr(&output);
    assert!(
        told.contains("no subordinate ids"),
        "it says why and what to do: {told}"
    );
    // On a temporary directory on tmpfs before Linux 6.6 there is one more thing to say.
    let others = told.lines().filter(|line| {
        !line.contains("no subordinate ids") && !line.contains("cannot be replaced inside")
    });
    assert_eq!(others.count(), 0, "{told}");
    assert!(fixture.runs().is_empty());
}

#[test]
#[ignore = "needs root"]
fn exit_statuses_pass_through_both_namespaces() {
    let fixture = Fixture::of_user(NOBODY);
    assert_eq!(fixture.sh(&[], "exit 9").status.code(), Some(9));
    let code = |command: &str| {
        fixture
            .run(&[])
            .arg(fixture.image())
            .arg(command)
            .output()
            .unwrap()
            .status
            .code()
    };
    assert_eq!(code("nosuch"), Some(127));
    assert_eq!(code("/text"), Some(126));
}

#[test]
#[ignore = "needs root"]
fn a_limit_that_may_not_be_set_is_an_error_unless_allowed() {
    let fixture = Fixture::of_user(NOBODY);
    let refused = fixture.sh(&["--memory", "64M"], "echo it ran");
    assert_eq!(refused.status.code(), Some(125));
    assert_eq!(stdout(&refused), "");
    assert!(
        stderr(&refused).contains("--best-effort-limits"),
        "{}",
        stderr(&refused)
    );

    let report = fixture.state().join("report.json");
    let options = [
        "--memory",
        "64M",
        "--pids",
        "9",
        "--best-effort-limits",
        "--report",
        report.to_str().unwrap(),
    ];
    let output = fixture.sh(&options, "echo it ran");
    assert_eq!(stdout(&output), "it ran\n", "{}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains("not limited: --memory, --pids: "), "{told}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    assert_eq!(
        report["limits_not_set"].as_array().unwrap().len(),
        2,
        "{report}"
    );
    assert!(fixture.runs().is_empty());
}

#[test]
#[ignore = "needs root"]
fn changes_are_told_by_a_user_too() {
    let fixture = Fixture::of_user(NOBODY);
    let output = fixture.sh(
        &["--summary"],
        "rm -r /etc; mkdir /etc; echo x > /etc/mine; rm /text",
    );
    let told = stderr(&output);
    for line in ["  C /etc", "  A /etc/mine", "  D /text"] {
        assert!(told.lines().any(|told| told == line), "{line:?} in {told}");
    }
}
