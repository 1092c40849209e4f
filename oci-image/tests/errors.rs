//! Every error says where: the image as it was asked for, the blob, and of an archive the entry and the byte.

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use common::{Arena, Head, Tar, gzip, gzip_layer, layout, open_with, options};
use oci_image::{Digest, Error, Image, Store, TarReader, Whiteouts, open};

/// A layout with a good layer and `archive` above it; the latter's digest as it is stored.
fn image_of(dir: &Path, archive: &[u8]) -> Digest {
    let below = Tar::new().dir("etc/").file("etc/below", "below").end();
    layout(dir, "damaged", &[gzip_layer(&below), gzip_layer(archive)]);
    Digest::sha256(&gzip(archive))
}

fn named(dir: &Path) -> String {
    format!("{}:damaged", dir.display())
}

fn unpack(image: &Image) -> Error {
    Arena::new().unpack(image).unwrap_err()
}

#[track_caller]
fn assert_holds(error: &Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert_eq!(text.matches(part).count(), 1, "{part:?} once in {text:?}");
    }
    assert_eq!(text.lines().count(), 1, "{text:?}");
}

/// The typed error that a reader gave.
fn typed(error: std::io::Error) -> Error {
    error.downcast().unwrap()
}

/// What a layer holds that cannot be unpacked, after an entry of 1024 bytes, and the name of the entry.
fn bad_entries() -> Vec<(&'static str, Tar)> {
    let before = || Tar::new().file("before", "x");
    let mut bad_number = Head::new("bad/number", b'0').block();
    bad_number[124] = b'9';
    common::checksum(&mut bad_number);
    let mut bad_sum = Head::new("bad/sum", b'0').block();
    bad_sum[0] = b'B';
    let mut long = Head::new("bad/long", b'0');
    long.size = 5000;
    let raw = |block: [u8; 512]| {
        let mut tar = before();
        tar.0.extend(block);
        tar
    };
    vec![
        ("../climbs", before().file("../climbs", "")),
        ("bad/link", before().hardlink("bad/link", "nowhere")),
        ("bad/.wh.", before().file("bad/.wh.", "")),
        (".", before().symlink(".", "/")),
        ("bad/type", before().head(&Head::new("bad/type", b'Q'))),
        ("bad/number", raw(bad_number)),
        ("Bad/sum", raw(bad_sum)),
        (
            "bad/pax",
            before()
                .pax(&[("path", b"bad/pax"), ("mtime", b"x")])
                .file("short", ""),
        ),
        ("bad/long", before().head(&long).data(b"cut")),
    ]
}

#[test]
fn an_entry_is_named_with_its_layer_its_image_and_the_byte() {
    for (entry, archive) in bad_entries() {
        let dir = tempfile::tempdir().unwrap();
        let layer = image_of(dir.path(), &archive.end());
        let name = named(dir.path());
        let image = open(&name).unwrap();
        let error = unpack(&image);
        let parts = [
            &format!("image {name}: layer {layer}: entry {entry:?} at byte 1024: "),
            entry,
        ];
        assert_holds(&error, &parts[..1]);
        // Each layer alone, and all side by side into a store.
        let store = Store::open(dir.path().join("store")).unwrap();
        let stored = store.add(&image, &"damaged".parse().unwrap()).unwrap();
        let error = store
            .unpack(&stored, &options(Whiteouts::OverlayUser))
            .unwrap_err();
        let wanted = format!(
            "docker.io/library/damaged:latest: layer {layer}: entry {entry:?} at byte 1024: "
        );
        assert_holds(&error, &[&wanted]);
    }
}

#[test]
fn what_is_too_large_is_named_with_the_entry() {
    let dir = tempfile::tempdir().unwrap();
    let archive = Tar::new()
        .file("before", "x")
        .pax(&[("comment", &[b'x'; 3000])])
        .file("many/records", "")
        .end();
    let layer = image_of(dir.path(), &archive);
    let image = open_with(dir.path(), |limits| limits.extension_bytes = 1000);
    let name = dir.path().display().to_string();
    assert_holds(
        &unpack(&image),
        &[
            &name,
            &layer.to_string(),
            "at byte 1024",
            "Limits::extension_bytes",
        ],
    );
}

#[test]
fn a_damaged_blob_is_named_with_its_image_however_it_is_read() {
    type Damage = fn(&mut Vec<u8>);
    let dir = tempfile::tempdir().unwrap();
    let archive = Tar::new().file("file", vec![b'x'; 5000]).end();
    let layer = image_of(dir.path(), &archive);
    let name = named(dir.path());
    let path = blob_path(dir.path(), &layer);
    let good = fs::read(&path).unwrap();
    let image = open(&name).unwrap();
    let bad = image.layers().nth(1).unwrap();
    for damage in [
        (|bytes| bytes[4] ^= 1) as Damage,
        |bytes| bytes[20] ^= 0xff,
        |bytes| bytes.truncate(30),
        |bytes| bytes.push(0),
    ] {
        let mut bytes = good.clone();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let all = &mut Vec::new();
        let by_blob = image
            .blob(bad.descriptor())
            .and_then(|mut blob| blob.read_to_end(all).map_err(typed));
        let by_layer = bad
            .open()
            .and_then(|mut layer| layer.read_to_end(all).map_err(typed));
        let by_entries = bad.open().and_then(|layer| {
            let mut reader = TarReader::new(layer, image.limits());
            while reader.next_entry()?.is_some() {}
            reader.into_inner().read_to_end(all).map_err(typed)
        });
        for error in [by_blob, by_layer, by_entries].map(Result::unwrap_err) {
            let text = error.to_string();
            assert!(text.starts_with(&format!("image {name}: ")), "{text}");
            assert!(text.contains(&layer.to_string()), "{text}");
            assert_eq!(text.matches(&name).count(), 1, "{text}");
        }
        let error = unpack(&image).to_string();
        assert!(
            error.starts_with(&format!("image {name}: layer {layer}: ")),
            "{error}"
        );
    }
}

fn blob_path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

#[test]
fn a_document_is_named_with_its_image() {
    let dir = tempfile::tempdir().unwrap();
    image_of(dir.path(), &Tar::new().end());
    let name = named(dir.path());
    let config = open(&name).unwrap().config().digest().clone();
    let path = blob_path(dir.path(), &config);
    let good = fs::read(&path).unwrap();
    let mut changed = good.clone();
    changed[0] = b'[';
    for bytes in [&good[..good.len() - 1], &changed, b""] {
        fs::write(&path, bytes).unwrap();
        let error = open(&name).unwrap_err().to_string();
        assert!(error.starts_with(&format!("image {name}: ")), "{error}");
        assert!(error.contains(&config.to_string()), "{error}");
    }
    fs::remove_file(&path).unwrap();
    assert_holds(&open(&name).unwrap_err(), &[&name, &config.to_string()]);
}
