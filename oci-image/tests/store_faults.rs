//! A store whose every write fails, or kills the process, keeps what it has, and the same work done again succeeds.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use common::{image_in, options};
use oci_image::{Platform, Reference, Store, Whiteouts};

/// Where a process of its own does the work once.
const ROOT: &str = "COFFERDAM_TEST_STORE_ROOT";

/// The calls that change something in the store, or say that it is on disk.
const CALLS: [&str; 12] = [
    "write",
    "fsync",
    "syncfs",
    "rename",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "ftruncate",
    "flock",
    "openat2",
    "mknodat",
];

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

/// A new image comes and is unpacked, an old one goes, and what nobody needs is collected.
fn work(root: &Path) -> oci_image::Result<()> {
    let image = image_in(root, "new");
    let store = Store::open(root.join("store"))?;
    let image = store.add(&image, &name("new"))?;
    drop(store.unpack(&image, &options(Whiteouts::OverlayUser))?);
    store.remove(&name("old"))?;
    store.collect()?;
    Ok(())
}

/// The store before the work: an image that stays and one that goes, both unpacked.
fn prepare(root: &Path) {
    let path = root.join("store");
    if path.exists() {
        fs::remove_dir_all(&path).unwrap();
    }
    let store = Store::open(&path).unwrap();
    for text in ["precious", "old"] {
        let image = store.add(&image_in(root, text), &name(text)).unwrap();
        drop(
            store
                .unpack(&image, &options(Whiteouts::OverlayUser))
                .unwrap(),
        );
    }
}

#[track_caller]
fn assert_whole(root: &Path, what: &str) {
    let store = Store::open(root.join("store")).unwrap();
    let problems = store.verify().unwrap();
    assert!(problems.is_empty(), "{what}: {problems:?}");
    let image = store.image(&name("precious"), &Platform::host()).unwrap();
    let unpacked = store
        .unpack(&image, &options(Whiteouts::OverlayUser))
        .unwrap();
    assert_eq!(unpacked.report.entries, 0, "{what}: layers are gone");
    let own = fs::read(unpacked.layers[1].join("etc/own")).unwrap();
    assert_eq!(own, b"precious", "{what}");
    for layer in fs::read_dir(root.join("store/layers")).unwrap() {
        for layer in fs::read_dir(layer.unwrap().path()).unwrap() {
            // Half a layer under its name would lack its only directory or its file.
            let etc = layer.unwrap().path().join("etc");
            let whole = etc.join("own").is_file() || etc.join("shared").is_file();
            assert!(whole, "{what}: {} is half a layer", etc.display());
        }
    }
}

fn traced(root: &Path, arguments: &[String]) -> Output {
    Command::new("strace")
        .args(["-f", "-qq", "-o"])
        .arg(root.join("trace"))
        .args(arguments)
        .arg(std::env::current_exe().unwrap())
        .args([
            "--include-ignored",
            "--exact",
            "nothing_is_lost_whatever_fails",
        ])
        .env(ROOT, root)
        .env("TMPDIR", root)
        .output()
        .expect("strace(1) starts; install the package strace")
}

#[test]
#[ignore = "needs root"]
fn nothing_is_lost_whatever_fails() {
    if let Some(root) = std::env::var_os(ROOT) {
        return work(Path::new(&root)).unwrap();
    }
    // In memory, where there is some: what is synced, and when, the test below looks at.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    };
    let root = dir.path();
    image_in(root, "new");
    let mut disturbed = 0;
    for call in CALLS {
        // It is killed at every call; the first two failures of a kind are enough.
        for (fault, most) in [("signal=KILL", u32::MAX), ("error=EIO", 2)] {
            for nth in 1..=most {
                prepare(root);
                let inject = format!("inject={call}:{fault}:when={nth}");
                let arguments = [
                    "-e".to_owned(),
                    format!("trace={call}"),
                    "-e".to_owned(),
                    inject,
                ];
                let output = traced(root, &arguments);
                let trace = fs::read_to_string(root.join("trace")).unwrap();
                let happened = trace.contains("(INJECTED)") || trace.contains("killed by SIGKILL");
                let what = format!("{fault} at {call} number {nth}");
                if !happened {
                    assert!(output.status.success(), "{what}: it fails undisturbed");
                    break;
                }
                disturbed += 1;
                assert_whole(root, &what);
                work(root).unwrap_or_else(|error| panic!("after {what}: {error}"));
                assert_whole(root, &what);
                let store = Store::open(root.join("store")).unwrap();
                // Two manifests, two configurations, the shared layer and two others; and nothing unfinished.
                let count =
                    |part: &str| fs::read_dir(root.join("store").join(part)).unwrap().count();
                assert_eq!(count("blobs/sha256"), 7, "{what}");
                assert_eq!(store.images().unwrap().len(), 2, "{what}");
                for part in ["tmp", "leases", "ingest"] {
                    assert_eq!(count(part), 0, "{what}: {part}");
                }
            }
        }
    }
    assert!(disturbed > 60, "only {disturbed} calls were disturbed");
}

/// What gets its name is on disk before, and its name is on disk before anything builds on it.
#[test]
#[ignore = "needs root"]
fn everything_is_synced_before_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    image_in(root, "new");
    prepare(root);
    let output = traced(
        root,
        &[
            "-y".to_owned(),
            "-e".to_owned(),
            "trace=fsync,syncfs,rename".to_owned(),
        ],
    );
    assert!(output.status.success(), "{output:?}");
    let trace = fs::read_to_string(root.join("trace")).unwrap();
    let mut synced = BTreeSet::new();
    let mut unsynced: Option<String> = None;
    let mut named = 0;
    for line in trace.lines() {
        if let Some((_, rest)) = line
            .split_once("sync(")
            .or_else(|| line.split_once("syncfs("))
        {
            let path = rest.split_once('<').unwrap().1.split_once('>').unwrap().0;
            synced.insert(path.to_owned());
            if unsynced.as_deref() == Some(path) {
                unsynced = None;
            }
        } else if let Some((_, rest)) = line.split_once("rename(") {
            let mut names = rest.split('"').skip(1).step_by(2);
            let (from, to) = (names.next().unwrap(), names.next().unwrap());
            assert_eq!(unsynced, None, "{line}: the name before is not on disk");
            // What is to be removed goes to tmp/ and need not be synced.
            if to.contains("/tmp/.tmp-") {
                continue;
            }
            assert!(synced.contains(from), "{line}: not synced before");
            unsynced = Some(to.rsplit_once('/').unwrap().0.to_owned());
            named += 1;
        }
    }
    assert_eq!(unsynced, None);
    // A layer, a configuration and a manifest as blobs, an unpacked layer, and the index twice.
    assert!(named >= 6, "{trace}");
}
