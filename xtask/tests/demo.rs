//! The demo shows what it says, and leaves nothing behind, also when it is interrupted.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

/// One demo at a time: each measures, and each looks at what there is on the whole machine.
fn stage() -> MutexGuard<'static, ()> {
    static STAGE: Mutex<()> = Mutex::new(());
    // That another test failed is no reason not to run this one.
    STAGE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A demo that plays in a temporary directory of its own, with the programs that were built beside
/// the tests.
fn demo(place: &TempDir, arguments: &[&str]) -> Command {
    let xtask = Path::new(env!("CARGO_BIN_EXE_xtask"));
    let programs = xtask.parent().unwrap();
    for program in ["cofferdam", "cofferdam-vmm"] {
        assert!(
            programs.join(program).exists(),
            "{program} is not built; run the tests with `cargo xtask test`, or first: cargo build --workspace --bins"
        );
    }
    let mut command = Command::new(xtask);
    command
        .arg("demo")
        .arg("--programs")
        .arg(programs)
        .args(arguments)
        .env("TMPDIR", place.path())
        .stdin(Stdio::null())
        .process_group(0);
    command
}

/// What there is of mounts, control groups and processes.
fn present(place: &TempDir) -> BTreeSet<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mut groups = Vec::new();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup")) {
        let root = line.split(' ').nth(4).unwrap();
        let entries = fs::read_dir(root).unwrap().flatten();
        groups.extend(
            entries
                .map(|entry| entry.path())
                .filter(|path| path.is_dir()),
        );
    }
    let own = place.path().to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(&own).then_some(line)
        });
    let groups = groups
        .iter()
        .map(|path| path.display().to_string())
        .filter(|path| path.contains("cofferdam-"));
    mounts
        .lines()
        .map(str::to_owned)
        .filter(|line| line.contains(&own))
        .chain(groups)
        .chain(processes)
        .collect()
}

/// Waits a little for what belongs to somebody else to go.
fn assert_nothing_new(place: &TempDir, before: &BTreeSet<String>) {
    let files: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(
        files.is_empty(),
        "left in the temporary directory: {files:?}"
    );
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let after = present(place);
        let new: Vec<&String> = after.difference(before).collect();
        if new.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left behind: {new:#?}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
#[ignore = "needs root"]
fn shows_a_container_beside_a_virtual_machine() {
    let _alone = stage();
    let place = tempfile::tempdir().unwrap();
    let before = present(&place);
    let output = demo(&place, &[]).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{shown}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for words in [
        "hello from cofferdam",
        "exit status 7",
        "  A /data/file",
        "It sees one process",
        "killed it for want of memory",
        "The fork bomb stopped at 24 processes",
        "from program start to first output",
    ] {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
    assert_nothing_new(&place, &before);
}

#[test]
#[ignore = "needs kvm"]
fn shows_guests_in_two_modes() {
    let _alone = stage();
    let place = tempfile::tempdir().unwrap();
    let shown = String::from_utf8(demo(&place, &[]).output().unwrap().stdout).unwrap();
    for words in ["16-bit real mode", "64-bit long mode", "Paging: on"] {
        assert!(shown.contains(words), "{words:?} is not in:\n{shown}");
    }
}

#[test]
#[ignore = "needs root"]
fn ctrl_c_at_any_moment_leaves_nothing() {
    let _alone = stage();
    for milliseconds in [10, 100, 200, 300, 450, 600, 900, 1300, 1800] {
        let place = tempfile::tempdir().unwrap();
        let before = present(&place);
        let child = demo(&place, &[])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        // As a terminal does it: to every process of the group.
        kill_process_group(Pid::from_child(&child), Signal::INT).unwrap();
        // It may have been over already, or not have begun.
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            matches!(output.status.code(), Some(130 | 0) | None),
            "after {milliseconds} ms {}: {said}",
            output.status
        );
        assert_nothing_new(&place, &before);
    }
}

#[test]
#[ignore = "needs root"]
fn a_service_manager_ends_it_as_cleanly() {
    let _alone = stage();
    let place = tempfile::tempdir().unwrap();
    let before = present(&place);
    let mut child = demo(&place, &[])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(400));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert_eq!(ended(&mut child), Some(143));
    assert_nothing_new(&place, &before);
}

#[test]
#[ignore = "needs root"]
fn a_reader_that_goes_away_ends_it_as_cleanly() {
    let _alone = stage();
    let place = tempfile::tempdir().unwrap();
    let before = present(&place);
    let mut child = demo(&place, &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(ended(&mut child), Some(141));
    assert_nothing_new(&place, &before);
}

#[test]
#[ignore = "needs root"]
fn a_bad_image_is_told_and_leaves_nothing() {
    let _alone = stage();
    let place = tempfile::tempdir().unwrap();
    let before = present(&place);
    let output = demo(&place, &["--image", "/nowhere"]).output().unwrap();
    let shown = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(shown.contains("there is no image at /nowhere"), "{shown}");
    assert_nothing_new(&place, &before);
}

fn ended(child: &mut Child) -> Option<i32> {
    child.wait().unwrap().code()
}
