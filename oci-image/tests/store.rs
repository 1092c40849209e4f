//! The store keeps what is named, leased or pinned, removes the rest, and survives kills and damage.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Tar, assert_cause, gzip_layer, image_in, layout, options};
use oci_image::{Error, Platform, Reference, Store, Whiteouts, open};

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn count(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

fn blobs(store: &Store) -> usize {
    count(&store.path().join("blobs/sha256"))
}

#[test]
fn images_are_found_by_name_and_share_layers() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let mode = fs::metadata(store.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let (one, two) = (image_in(dir.path(), "one"), image_in(dir.path(), "two"));
    store.add(&one, &name("one")).unwrap();
    store.add(&two, &name("two")).unwrap();
    store.tag(&two, &name("example.org/other:5")).unwrap();
    // Two manifests, two configurations, three layers.
    assert_eq!(blobs(&store), 7);
    let found = store
        .image(&name("docker.io/library/one:latest"), &Platform::host())
        .unwrap();
    assert_eq!(found.manifest().bytes(), one.manifest().bytes());
    let names: Vec<_> = store
        .images()
        .unwrap()
        .into_iter()
        .filter_map(|image| image.name)
        .collect();
    assert_eq!(
        names,
        [
            "docker.io/library/one:latest",
            "docker.io/library/two:latest",
            "example.org/other:5"
        ]
    );
    let error = store.image(&name("three"), &Platform::host()).unwrap_err();
    assert_cause!(error, Error::NoSuchImage { .. });
    // It is a layout like any other.
    assert_eq!(
        open(format!("{}:example.org/other:5", store.path().display()))
            .unwrap()
            .layers()
            .len(),
        2
    );
}

#[test]
fn layers_are_unpacked_once_for_each_way() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let one = store
        .add(&image_in(dir.path(), "one"), &name("one"))
        .unwrap();
    let two = store
        .add(&image_in(dir.path(), "two"), &name("two"))
        .unwrap();
    let options = options(Whiteouts::OverlayUser);
    let first = store.unpack(&one, &options).unwrap();
    assert_eq!(first.layers.len(), 2);
    assert_eq!(first.report.entries, 4);
    assert_eq!(fs::read(first.layers[1].join("etc/own")).unwrap(), b"one");
    assert_eq!(store.unpack(&one, &options).unwrap().report.entries, 0);
    let second = store.unpack(&two, &options).unwrap();
    assert_eq!(second.report.entries, 2, "the shared layer is there");
    assert_eq!(first.layers[0], second.layers[0]);
    let strict = store
        .unpack(&two, &options.clone().xattrs(oci_image::Xattrs::Strict))
        .unwrap();
    assert_ne!(strict.layers[0], second.layers[0]);
}

#[test]
fn a_layer_that_hides_everything_hides_the_layers_below() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let below = Tar::new().file("below", "").end();
    let above = Tar::new().file(".wh..wh..opq", "").file("above", "").end();
    let source = dir.path().join("source");
    layout(&source, "x", &[gzip_layer(&below), gzip_layer(&above)]);
    let image = store.add(&open(&source).unwrap(), &name("x")).unwrap();
    for _ in 0..2 {
        let unpacked = store
            .unpack(&image, &options(Whiteouts::OverlayUser))
            .unwrap();
        assert_eq!(unpacked.layers.len(), 1);
        assert!(unpacked.layers[0].join("above").exists());
    }
}

#[test]
fn collecting_spares_names_leases_and_pins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let options = options(Whiteouts::OverlayUser);
    let add = |text: &str| store.add(&image_in(dir.path(), text), &name(text)).unwrap();
    let (named, leased, pinned, gone) = (add("named"), add("leased"), add("pinned"), add("gone"));
    drop(store.unpack(&named, &options).unwrap());
    let unpacked = store.unpack(&leased, &options).unwrap();
    drop(store.unpack(&gone, &options).unwrap());
    store.pin("container-1", &pinned).unwrap();
    for text in ["leased", "pinned", "gone"] {
        assert!(store.remove(&name(text)).unwrap());
        assert!(!store.remove(&name(text)).unwrap());
    }
    let collected = store.collect().unwrap();
    // Of the one that is gone: manifest, configuration and its own layer.
    assert_eq!((collected.blobs, collected.layers), (3, 1));
    assert_eq!(store.collect().unwrap(), oci_image::Collected::default());
    assert!(unpacked.layers.iter().all(|layer| layer.is_dir()));
    assert!(store.unpin("container-1").unwrap());
    assert!(!store.unpin("container-1").unwrap());
    assert_eq!(store.collect().unwrap().blobs, 3);
    drop(unpacked);
    let last = store.collect().unwrap();
    assert_eq!((last.blobs, last.layers), (3, 1));
    assert_eq!(blobs(&store), 4);
    for bad in ["", ".", "..", "a/b", ".hidden", "a\0b"] {
        assert!(
            matches!(store.pin(bad, &named), Err(Error::BadValue { .. })),
            "{bad:?}"
        );
    }
}

#[test]
fn leases_of_processes_that_are_gone_do_not_count() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let image = store.add(&image_in(dir.path(), "x"), &name("x")).unwrap();
    let lease = store.lease(&image).unwrap();
    // What a killed process leaves: the file without a lock, and something half done.
    fs::write(store.path().join("leases/.tmp-1-2"), "half a le").unwrap();
    fs::create_dir_all(store.path().join("tmp/.tmp-3/etc")).unwrap();
    fs::write(store.path().join("blobs/sha256/.tmp-4"), "half a blob").unwrap();
    let collected = store.collect().unwrap();
    assert_eq!((collected.leases, collected.blobs), (1, 1));
    assert_eq!(count(&store.path().join("tmp")), 0);
    assert_eq!(count(&store.path().join("leases")), 1);
    drop(lease);
    assert_eq!(count(&store.path().join("leases")), 0);
}

#[test]
fn damage_is_found_and_repaired_by_adding_again() {
    let dir = tempfile::tempdir().unwrap();
    for damage in ["change", "cut", "lengthen", "remove"] {
        let store = Store::open(dir.path().join(format!("store-{damage}"))).unwrap();
        let (good, bad) = (image_in(dir.path(), "good"), image_in(dir.path(), "bad"));
        store.add(&good, &name("good")).unwrap();
        store.add(&bad, &name("bad")).unwrap();
        assert!(store.verify().unwrap().is_empty());
        let layer = bad.layers().nth(1).unwrap().descriptor().digest.clone();
        let path = store.path().join("blobs/sha256").join(layer.hex());
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            "change" => bytes[30] ^= 1,
            "cut" => bytes.truncate(50),
            "lengthen" => bytes.push(0),
            _ => fs::remove_file(&path).unwrap(),
        }
        if damage != "remove" {
            fs::write(&path, bytes).unwrap();
        }
        let problems = store.verify().unwrap();
        assert_eq!(problems.len(), 1, "{damage}");
        assert!(
            problems[0].to_string().contains("bad:latest"),
            "{}",
            problems[0]
        );
        assert_eq!(store.repair().unwrap(), ["docker.io/library/bad:latest"]);
        assert!(store.verify().unwrap().is_empty());
        store.add(&bad, &name("bad")).unwrap();
        assert!(store.verify().unwrap().is_empty(), "{damage}");
        assert_eq!(store.images().unwrap().len(), 2);
    }
}

/// Adds, unpacks, removes and collects again and again: a few times in a directory of its own, or, when it is started
/// by the test that follows, until it is killed.
#[test]
fn adding_and_collecting_go_on_for_long() {
    let dir = tempfile::tempdir().unwrap();
    let shared = std::env::var_os("COFFERDAM_TEST_STORE");
    let path = shared
        .clone()
        .map_or_else(|| dir.path().join("store"), Into::into);
    let rounds = if shared.is_some() { usize::MAX } else { 5 };
    let images = [
        image_in(dir.path(), "a"),
        image_in(dir.path(), "b"),
        image_in(dir.path(), "c"),
    ];
    let store = Store::open(path).unwrap();
    let kept = name("kept");
    store.add(&images[0], &kept).unwrap();
    for round in 0..rounds {
        let text = name(&format!("round-{}", round % 4));
        let image = store.add(&images[round % 3], &text).unwrap();
        let unpacked = store
            .unpack(&image, &options(Whiteouts::OverlayUser))
            .unwrap();
        assert!(unpacked.layers[1].join("etc/own").is_file());
        drop(unpacked);
        store.remove(&text).unwrap();
        store.collect().unwrap();
        assert_eq!(
            store
                .image(&kept, &Platform::host())
                .unwrap()
                .manifest()
                .digest(),
            images[0].manifest().digest()
        );
    }
}

#[test]
fn killing_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let kept = image_in(dir.path(), "kept");
    Store::open(&path)
        .unwrap()
        .add(&kept, &name("precious"))
        .unwrap();
    for round in 0..24u64 {
        let start = || {
            Command::new(std::env::current_exe().unwrap())
                .args([
                    "--exact",
                    "adding_and_collecting_go_on_for_long",
                    "--nocapture",
                ])
                .env("COFFERDAM_TEST_STORE", &path)
                // What it cannot remove when it is killed goes with our directory.
                .env("TMPDIR", dir.path())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        // Two at a time, killed at odd moments.
        let mut children = [start(), start()];
        std::thread::sleep(Duration::from_millis(20 + round * 7 % 61));
        for child in &mut children {
            if let Some(status) = child.try_wait().unwrap() {
                let mut text = String::new();
                std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut text).unwrap();
                panic!("{status}: {text}");
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        let store = Store::open(&path).unwrap();
        let problems = store.verify().unwrap();
        assert!(problems.is_empty(), "round {round}: {problems:?}");
        let found = store.image(&name("precious"), &Platform::host()).unwrap();
        assert_eq!(found.manifest().digest(), kept.manifest().digest());
        let unpacked = store
            .unpack(&found, &options(Whiteouts::OverlayUser))
            .unwrap();
        assert_eq!(
            fs::read(unpacked.layers[1].join("etc/own")).unwrap(),
            b"kept"
        );
    }
    let store = Store::open(&path).unwrap();
    for image in store.images().unwrap() {
        let name: Reference = image.name.unwrap().parse().unwrap();
        if name.repository() != "library/precious" {
            store.remove(&name).unwrap();
        }
    }
    store.collect().unwrap();
    // What is left is the one image and nothing else.
    assert_eq!(blobs(&store), 4);
    for empty in ["tmp", "leases"] {
        assert_eq!(count(&path.join(empty)), 0);
    }
}
