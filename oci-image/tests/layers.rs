//! Layers that are unpacked side by side are what they are one after the other.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use common::{Arena, Tar, assert_cause, layout, options, plain_layer};
use oci_image::{Error, Image, Reference, Store, Whiteouts, open};

/// An image of plain layers.
fn image(path: &Path, layers: &[Vec<u8>]) -> Image {
    let layers: Vec<_> = layers.iter().map(|tar| plain_layer(tar)).collect();
    layout(path, "latest", &layers);
    open(path).unwrap()
}

fn directories(base: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|number| {
            let path = base.join(format!("layer-{number}"));
            fs::create_dir(&path).unwrap();
            path
        })
        .collect()
}

fn unpack(image: &Image, directories: &[PathBuf]) -> Result<oci_image::UnpackReport, Error> {
    let files: Vec<File> = directories
        .iter()
        .map(|path| File::open(path).unwrap())
        .collect();
    image.unpack_layers(&files, &options(Whiteouts::OverlayUser))
}

/// Each layer but the first relies on the one below: for the mode of a directory, and for a file to link to.
fn chain() -> Vec<Vec<u8>> {
    let mut head = common::Head::new("d/", b'5');
    head.mode = 0o1770;
    let first = Tar::new()
        .head(&head)
        .file("d/f0", vec![b'0'; 3_000_000])
        .end();
    let others = (1..10).map(|number| {
        Tar::new()
            .hardlink(format!("d/f{number}"), format!("d/f{}", number - 1))
            .end()
    });
    std::iter::once(first).chain(others).collect()
}

#[test]
fn a_layer_waits_for_what_it_needs_of_those_below() {
    let arena = Arena::new();
    let image = image(&arena.root().join("image"), &chain());
    let directories = directories(&arena.root(), 10);
    let report = unpack(&image, &directories).unwrap();
    assert_eq!(report.entries, 11);
    for (number, directory) in directories.iter().enumerate().skip(1) {
        let stat = fs::metadata(directory.join("d")).unwrap();
        assert_eq!(stat.mode() & 0o7777, 0o1770);
        let file = fs::metadata(directory.join(format!("d/f{number}"))).unwrap();
        assert_eq!((file.len(), file.nlink()), (3_000_000, 2));
    }
}

#[test]
fn a_store_has_each_layer_once_whoever_unpacks_it() {
    let arena = Arena::new();
    let image = image(&arena.root().join("image"), &chain());
    let store = Store::open(arena.root().join("store")).unwrap();
    let name: Reference = "chain".parse().unwrap();
    let stored = store.add(&image, &name).unwrap();
    let options = options(Whiteouts::OverlayUser);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let unpacked = store.unpack(&stored, &options).unwrap();
                assert_eq!(unpacked.layers.len(), 10);
                let top = unpacked.layers[9].join("d/f9");
                assert_eq!(fs::metadata(top).unwrap().len(), 3_000_000);
            });
        }
    });
    let again = store.unpack(&stored, &options).unwrap();
    assert_eq!(again.report.entries, 0);
    assert_eq!(fs::read_dir(store.path().join("tmp")).unwrap().count(), 0);
}

#[test]
fn the_lowest_bad_layer_is_named_and_none_above_is_kept_that_needs_it() {
    let arena = Arena::new();
    let layers = chain();
    let path = arena.root().join("image");
    // What is stored is not what the configuration says.
    let mut listed: Vec<_> = layers.iter().map(|tar| plain_layer(tar)).collect();
    listed[0].2[1024] ^= 1;
    layout(&path, "latest", &listed);
    let image = open(&path).unwrap();
    let bad = image.layers().next().unwrap().descriptor().digest.clone();
    let error = unpack(&image, &directories(&arena.root(), 10)).unwrap_err();
    assert_cause!(error, Error::DigestMismatch { .. });
    assert!(error.to_string().contains(&bad.to_string()), "{error}");

    let store = Store::open(arena.root().join("store")).unwrap();
    let stored = store.add(&image, &"bad".parse().unwrap()).unwrap();
    store
        .unpack(&stored, &options(Whiteouts::OverlayUser))
        .unwrap_err();
    for kind in fs::read_dir(store.path().join("layers")).unwrap() {
        assert_eq!(fs::read_dir(kind.unwrap().path()).unwrap().count(), 0);
    }
}

#[test]
fn a_root_that_hides_all_below_ends_the_search() {
    let arena = Arena::new();
    let layers = [
        Tar::new().file("d/f", "below").end(),
        Tar::new().file(".wh..wh..opq", "").end(),
        Tar::new().hardlink("link", "d/f").end(),
    ];
    let image = image(&arena.root().join("image"), &layers);
    let error = unpack(&image, &directories(&arena.root(), 3)).unwrap_err();
    assert_cause!(error, Error::HardlinkTarget { .. });
}

#[test]
fn one_directory_for_each_layer_is_wanted() {
    let arena = Arena::new();
    let image = image(&arena.root().join("image"), &chain());
    let error = unpack(&image, &directories(&arena.root(), 2)).unwrap_err();
    assert_cause!(error, Error::BadValue { .. });
    let roots: Vec<File> = (0..10).map(|_| File::open(arena.root()).unwrap()).collect();
    let error = image
        .unpack_layers(&roots, &options(Whiteouts::Apply))
        .unwrap_err();
    assert_cause!(error, Error::BadValue { .. });
}
