//! What is left when an operation cannot finish: the state before, or the state after.

mod common;
mod operations;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::Scratch;
use operations::{of_directory, of_merged};
use overlayfs::{Below, CopyOptions, Durability, Error, Marks, Merged, Overlay, Upper, Whiteout};

const QUICK: CopyOptions = CopyOptions::new().durability(Durability::ProcessDeath);

fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into())
        .collect();
    names.sort();
    names
}

/// Two layers of some hundred files each.
fn layers(scratch: &Scratch) {
    for number in 0..300 {
        scratch.write(
            &format!("base/directory{}/file{number}", number % 7),
            "below",
        );
        scratch.write(
            &format!("upper/directory{}/file{number}", number % 5),
            "above",
        );
    }
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_leaves_nothing_of_a_copy() {
    let scratch = Scratch::new();
    scratch.write("base/small", "small");
    fs::write(scratch.path("base/large"), vec![1; 1 << 20]).unwrap();
    let full = Scratch::with_size("256k");
    let merged = Merged::bottom_up([scratch.path("base")]).unwrap();
    let error = merged.flatten(full.path("copy"), QUICK).unwrap_err();
    let is_full = matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull);
    assert!(is_full, "{error}");
    assert!(entries(&full.path("")).is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_leaves_the_layer_that_was_to_be_replaced() {
    let full = Scratch::with_size("3m");
    full.write("base/kept", "kept");
    full.write("upper/new", "new");
    fs::write(full.path("upper/large"), vec![1; 1 << 20]).unwrap();
    fs::write(full.path("filler"), vec![1; 1600 << 10]).unwrap();
    let before = of_directory(&full.path("base"));
    let upper = Upper::over_bottom_up([full.path("base")], full.path("upper")).unwrap();
    for failed in [
        upper.commit(full.path("base"), QUICK),
        upper.apply(full.path("base"), QUICK),
    ] {
        let error = failed.unwrap_err();
        assert!(error.to_string().contains("space"), "{error}");
        assert_eq!(of_directory(&full.path("base")), before);
        assert_eq!(
            entries(&full.path("")).len(),
            3,
            "a staging directory is left"
        );
    }
    fs::remove_file(full.path("filler")).unwrap();
    upper.commit(full.path("base"), QUICK).unwrap();
    assert_eq!(fs::read_to_string(full.path("base/new")).unwrap(), "new");
}

#[test]
#[ignore = "needs root"]
fn changes_in_a_full_upper_layer_are_what_the_mount_shows() {
    let scratch = Scratch::new();
    for number in 0..50 {
        fs::create_dir_all(scratch.path("base")).unwrap();
        fs::write(scratch.path(&format!("base/{number}")), vec![0; 100 << 10]).unwrap();
    }
    let full = Scratch::with_size("1m");
    let mounted = Overlay::bottom_up([scratch.path("base")])
        .upper(full.dir("upper"), full.dir("work"))
        .mount(scratch.dir("merged"))
        .unwrap();
    let mut failed = 0;
    for number in 0..50 {
        let path = mounted.target().join(number.to_string());
        // Copying up fails half-way once the upper layer is full.
        failed +=
            usize::from(fs::set_permissions(path, fs::Permissions::from_mode(0o600)).is_err());
    }
    assert!(failed > 30, "only {failed} failed");
    let merged = Merged::bottom_up([scratch.path("base")])
        .unwrap()
        .upper(full.path("upper"))
        .unwrap();
    assert_eq!(of_directory(mounted.target()), of_merged(&merged));
    let upper = Upper::over_bottom_up([scratch.path("base")], full.path("upper")).unwrap();
    assert_eq!(upper.changes().map(Result::unwrap).count(), 50 - failed);
}

/// What a process that is to be killed does, again and again.
#[derive(Clone, Copy, Debug)]
enum Work {
    Commit,
    Squash,
    Apply,
}

fn work(kind: Work, root: &Path, options: CopyOptions) {
    let (base, upper) = (root.join("base"), root.join("upper"));
    match kind {
        Work::Commit => {
            Upper::over_bottom_up([&base], &upper)
                .unwrap()
                .commit(&base, options)
                .unwrap();
        }
        Work::Apply => {
            Upper::over_bottom_up([&base], &upper)
                .unwrap()
                .apply(&base, options)
                .unwrap();
        }
        Work::Squash => {
            Merged::bottom_up([&base, &upper])
                .unwrap()
                .squash(&base, Below::Nothing, options.replace(true))
                .unwrap();
        }
    }
}

/// What happens to the process at one of its system calls.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The call fails, as on a broken disk.
    Eio,
    /// The process is killed.
    Kill,
}

/// The system calls that change something, all of them made by the thread that works.
const CHANGING: [&str; 17] = [
    "mkdirat",
    "mknodat",
    "symlinkat",
    "linkat",
    "unlinkat",
    "renameat2",
    "copy_file_range",
    "pwrite64",
    "ftruncate",
    "fchmod",
    "fchmodat",
    "fchownat",
    "utimensat",
    "setxattr",
    "fsetxattr",
    "syncfs",
    "fsync",
];

/// Runs this very test again in a process that works once, and traces the calls that change
/// something. Returns whether the work succeeded, and the trace.
fn traced(name: &str, root: &Path, interference: &[&str]) -> (bool, String) {
    let log = root.join("strace");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(&log)
        .args(["-e", &format!("trace={}", CHANGING.join(","))])
        .args(interference)
        .arg(std::env::current_exe().unwrap())
        .args(["--include-ignored", "--exact", name])
        .env("COFFERDAM_WORK_ONCE_IN", root)
        .output()
        .expect("strace(1) starts; install the package strace");
    (output.status.success(), fs::read_to_string(&log).unwrap())
}

/// As `traced`, while strace(1) interferes with one call of a kind.
fn interfered(name: &str, root: &Path, call: &str, nth: usize, fault: Fault) -> bool {
    let injected = match fault {
        Fault::Eio => "error=EIO",
        Fault::Kill => "signal=KILL",
    };
    let what = format!("inject={call}:{injected}:when={nth}");
    let (succeeded, log) = traced(name, root, &["-e", &what]);
    match fault {
        Fault::Eio => assert!(log.contains("(INJECTED)"), "{what}: {log}"),
        Fault::Kill => assert!(!succeeded, "{what}: it was not killed"),
    }
    succeeded
}

/// How many calls of each kind are interfered with: one, or as many as `PROPTEST_CASES` asks for.
fn most() -> usize {
    std::env::var("PROPTEST_CASES").map_or(1, |cases| cases.parse().unwrap())
}

/// Interferes with calls that change something, one after the other.
fn disturbed_at_every_call(name: &str, kind: Work) {
    const DURABLE: CopyOptions = CopyOptions::new();
    if let Some(root) = std::env::var_os("COFFERDAM_WORK_ONCE_IN") {
        return work(kind, Path::new(&root), DURABLE);
    }
    let scratch = Scratch::new();
    let root = scratch.path("");
    scratch.write("pristine/directory/changed", "below");
    scratch.write("pristine/directory/deleted", "below");
    scratch.write("pristine/kept", "below");
    fs::hard_link(root.join("pristine/kept"), root.join("pristine/link")).unwrap();
    symlink("kept", root.join("pristine/symlink")).unwrap();
    scratch.write("upper/directory/changed", "above");
    scratch.write("upper/new/file", "above");
    Whiteout::Device
        .write(root.join("upper/directory/deleted"), Marks::Trusted)
        .unwrap();
    let pristine = Merged::bottom_up([root.join("pristine")]).unwrap();
    let base = root.join("base");
    pristine.flatten(&base, QUICK).unwrap();
    let before = of_directory(&base);
    let after = of_merged(&Merged::bottom_up([&base, &root.join("upper")]).unwrap());
    assert_ne!(before, after);

    let (succeeded, log) = traced(name, &root, &[]);
    assert!(succeeded, "it fails undisturbed");
    assert_eq!(of_directory(&base), after);
    let mut disturbed = 0;
    for call in CHANGING {
        let made = log.matches(&format!(" {call}(")).count();
        // The first ones fail; the process is killed at the last ones, when most can be lost.
        let failed = (1..=made).take(most()).map(|nth| (Fault::Eio, nth));
        let killed = (1..=made).rev().take(most()).map(|nth| (Fault::Kill, nth));
        for (fault, nth) in failed.chain(killed) {
            pristine.flatten(&base, QUICK.replace(true)).unwrap();
            let succeeded = interfered(name, &root, call, nth, fault);
            disturbed += 1;
            let what = format!("{fault:?} at {call} number {nth} of {made}");
            let found = of_directory(&base);
            assert!(
                found == before || found == after,
                "{what}: neither old nor new"
            );
            assert!(!succeeded || found == after, "{what}: it claims to be done");
            // The next one finds what was left, and clears it away.
            work(kind, &root, QUICK);
            assert_eq!(of_directory(&base), after, "{what}: the next one differs");
            let hidden = |path: &PathBuf| path.to_string_lossy().starts_with('.');
            assert!(
                !entries(&root).iter().any(hidden),
                "{what}: something is left"
            );
        }
    }
    assert!(disturbed >= 16, "only {disturbed} calls were disturbed");
}

/// The new tree is on the disk before it takes its place, and its place before it counts.
#[test]
#[ignore = "needs root"]
fn the_default_syncs_before_and_after_the_exchange() {
    let name = "the_default_syncs_before_and_after_the_exchange";
    if let Some(root) = std::env::var_os("COFFERDAM_WORK_ONCE_IN") {
        return work(Work::Commit, Path::new(&root), CopyOptions::new());
    }
    let scratch = Scratch::new();
    scratch.write("base/file", "below");
    scratch.write("upper/file", "above");
    let (succeeded, log) = traced(name, &scratch.path(""), &[]);
    assert!(succeeded);
    let calls: Vec<_> = log
        .lines()
        .filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('('))
        .map(|(call, _)| call)
        .collect();
    let written = calls.iter().rposition(|call| *call == "utimensat").unwrap();
    let rest: Vec<_> = calls[written + 1..]
        .iter()
        .filter(|call| **call != "unlinkat")
        .collect();
    // The first rename finds that there is something to be replaced.
    assert_eq!(
        rest,
        [&"syncfs", &"renameat2", &"renameat2", &"fsync"],
        "{log}"
    );
}

#[test]
#[ignore = "needs root"]
fn a_commit_is_undone_or_done_whatever_call_fails() {
    disturbed_at_every_call(
        "a_commit_is_undone_or_done_whatever_call_fails",
        Work::Commit,
    );
}

#[test]
#[ignore = "needs root"]
fn a_squash_is_undone_or_done_whatever_call_fails() {
    disturbed_at_every_call(
        "a_squash_is_undone_or_done_whatever_call_fails",
        Work::Squash,
    );
}

#[test]
#[ignore = "needs root"]
fn an_application_is_undone_or_done_whatever_call_fails() {
    disturbed_at_every_call(
        "an_application_is_undone_or_done_whatever_call_fails",
        Work::Apply,
    );
}

/// Runs this very test again in a process that works until it is killed.
fn killed_at_any_time(name: &str, kind: Work) {
    if let Some(root) = std::env::var_os("COFFERDAM_WORK_IN") {
        loop {
            work(kind, Path::new(&root), QUICK);
        }
    }
    let scratch = Scratch::new();
    layers(&scratch);
    let root = scratch.path("");
    let before = of_directory(&root.join("base"));
    let after = of_merged(&Merged::bottom_up([root.join("base"), root.join("upper")]).unwrap());
    assert_ne!(before, after);
    let (mut olds, mut news) = (0, 0);
    for round in 0..10_u64 {
        fs::remove_dir_all(root.join("base")).unwrap();
        for (path, facts) in &before {
            let path = root.join("base").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if facts.kind == overlayfs::Kind::File {
                fs::write(&path, &facts.contents).unwrap();
            } else {
                fs::create_dir_all(&path).unwrap();
            }
        }
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--include-ignored", "--exact", name])
            .env("COFFERDAM_WORK_IN", &root)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(2000 + round * 4100));
        child.kill().unwrap();
        child.wait().unwrap();
        let names = |tree: &std::collections::BTreeMap<PathBuf, operations::Facts>| {
            tree.iter()
                .map(|(path, facts)| (path.clone(), facts.contents.clone()))
                .collect::<Vec<_>>()
        };
        let found = names(&of_directory(&root.join("base")));
        olds += usize::from(found == names(&before));
        news += usize::from(found == names(&after));
        assert!(
            found == names(&before) || found == names(&after),
            "round {round}: neither old nor new"
        );
        // The next one finds what the killed one left, and clears it away.
        work(kind, &root, QUICK);
        assert_eq!(names(&of_directory(&root.join("base"))), names(&after));
        let left: Vec<_> = entries(&root)
            .into_iter()
            .filter(|name| name.to_string_lossy().starts_with('.'))
            .collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
    assert_eq!(olds + news, 10);
}

#[test]
#[ignore = "needs root"]
fn a_commit_that_is_killed_leaves_the_old_state_or_the_new() {
    killed_at_any_time(
        "a_commit_that_is_killed_leaves_the_old_state_or_the_new",
        Work::Commit,
    );
}

#[test]
#[ignore = "needs root"]
fn a_squash_that_is_killed_leaves_the_old_state_or_the_new() {
    killed_at_any_time(
        "a_squash_that_is_killed_leaves_the_old_state_or_the_new",
        Work::Squash,
    );
}

#[test]
#[ignore = "needs root"]
fn an_application_that_is_killed_leaves_the_old_state_or_the_new() {
    killed_at_any_time(
        "an_application_that_is_killed_leaves_the_old_state_or_the_new",
        Work::Apply,
    );
}

#[test]
#[ignore = "needs root"]
fn the_default_survives_power_loss_and_still_works() {
    let scratch = Scratch::new();
    layers(&scratch);
    let upper = Upper::over_bottom_up([scratch.path("base")], scratch.path("upper")).unwrap();
    let expected = of_merged(upper.merged());
    upper
        .merged()
        .flatten(scratch.path("flat"), CopyOptions::new())
        .unwrap();
    assert_eq!(of_directory(&scratch.path("flat")), expected);
    upper
        .commit(scratch.path("base"), CopyOptions::new())
        .unwrap();
    assert_eq!(of_directory(&scratch.path("base")), expected);
}

#[test]
#[ignore = "needs root"]
fn what_exists_is_not_replaced_unasked() {
    let scratch = Scratch::new();
    layers(&scratch);
    scratch.write("there/file", "precious");
    let merged = Merged::bottom_up([scratch.path("base")]).unwrap();
    let error = merged.flatten(scratch.path("there"), QUICK).unwrap_err();
    let exists = matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists);
    assert!(exists, "{error}");
    assert_eq!(
        fs::read_to_string(scratch.path("there/file")).unwrap(),
        "precious"
    );
    merged
        .flatten(scratch.path("there"), QUICK.replace(true))
        .unwrap();
    assert_eq!(of_directory(&scratch.path("there")), of_merged(&merged));
}
