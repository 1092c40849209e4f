//! The examples do what they say.

use std::path::PathBuf;
use std::process::Command;

/// Runs an example that cargo has built beside the tests.
fn run(name: &str, arguments: &[&str]) -> String {
    let test = std::env::current_exe().expect("this program");
    // From target/debug/deps/test to target/debug.
    let directory = test
        .ancestors()
        .nth(2)
        .map(PathBuf::from)
        .expect("three above");
    let program = directory.join("examples").join(name);
    let output = Command::new(&program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}{errors}");
    text
}

#[test]
#[ignore = "needs root"]
fn limiting_memory_reports_the_oom() {
    let text = run("limit_memory", &["16MiB", "tail", "/dev/zero"]);
    assert!(text.contains("ended by the OOM killer: 1"), "{text}");
    let text = run("limit_memory", &["64MiB", "true"]);
    assert!(text.contains("had nothing to do"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn freezing_stops_the_clock() {
    let text = run("freeze", &[]);
    assert!(text.contains("frozen: 0ns used"), "{text}");
    assert!(!text.contains("thawed: 0ns used"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn pressure_is_reported() {
    let script = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done";
    let text = run("watch_pressure", &["0.1", "sh", "-c", script]);
    assert!(text.contains("lost in all"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn the_user_works_in_the_delegated_group() {
    let text = run("delegate", &["65534"]);
    assert!(text.contains("made a group"), "{text}");
    assert!(text.contains("is safe"), "{text}");
}

#[test]
#[ignore = "needs root"]
fn the_table_shows_the_groups_below() {
    let hierarchy = cgroups::Hierarchy::detect().expect("cgroups are mounted");
    let parent = format!("cofferdam-top-{}", std::process::id());
    let group = hierarchy.create(&parent).expect("created").guard();
    group.create("shown").expect("created");
    let text = run("top", &[&parent, "1"]);
    group.close().expect("removed");
    assert!(
        text.contains("cpu %") && text.contains("\nshown "),
        "{text}"
    );
}
