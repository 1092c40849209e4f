//! Images are copied between all forms and stay what they are.

mod common;

use std::fs;
use std::path::Path;

use common::{Arena, Tar, assert_cause, gzip_layer, layout, layout_by, options, plain_layer};
use oci_image::{Algorithm, Destination, Error, Image, Store, Whiteouts, copy, open};

fn source(path: &Path) -> Image {
    let first = Tar::new().dir("etc/").file("etc/motd", "hello\n").end();
    let second = Tar::new()
        .file("etc/.wh.motd", "")
        .file("etc/issue", "two\n")
        .end();
    layout(
        path,
        "latest",
        &[
            gzip_layer(&first),
            plain_layer(&second),
            // Twice, as empty layers often are.
            gzip_layer(&first),
        ],
    );
    open(path).unwrap()
}

fn contents(image: &Image) -> Vec<(String, String)> {
    let arena = Arena::new();
    arena.unpack(image).unwrap();
    let mut files: Vec<_> = fs::read_dir(arena.root().join("etc"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let text = fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), text)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn from_every_form_to_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let original = source(&at("source"));
    let expected = contents(&original);
    let forms = |prefix: &str| {
        [
            (
                format!("oci:{}:x", at(&format!("{prefix}-layout")).display()),
                ":x",
            ),
            (
                format!(
                    "oci-archive:{}:x",
                    at(&format!("{prefix}-oci.tar")).display()
                ),
                ":x",
            ),
            (
                format!(
                    "docker-archive:{}:team/app:x",
                    at(&format!("{prefix}-docker.tar")).display()
                ),
                ":team/app:x",
            ),
        ]
    };
    for (first, name) in forms("a") {
        let path = first.split(':').nth(1).unwrap().to_owned();
        copy(&original, &first.parse().unwrap()).unwrap();
        let copied = open(format!("{path}{name}")).unwrap();
        assert_eq!(contents(&copied), expected, "{first}");
        assert_eq!(
            copied.config().bytes(),
            original.config().bytes(),
            "{first}"
        );
        if !first.starts_with("docker") {
            assert_eq!(
                copied.manifest().bytes(),
                original.manifest().bytes(),
                "{first}"
            );
        }
        for (second, name) in forms(&format!("{}-b", path.rsplit('/').next().unwrap())) {
            copy(&copied, &second.parse().unwrap()).unwrap();
            let path = second.split(':').nth(1).unwrap();
            let again = open(format!("{path}{name}")).unwrap();
            assert_eq!(contents(&again), expected, "{first} {second}");
            assert_eq!(again.config().digest(), original.config().digest());
        }
    }
}

#[test]
fn archives_are_the_same_bytes_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let image = source(&dir.path().join("source"));
    for form in ["oci-archive", "docker-archive"] {
        let write = |name: &str| {
            let path = dir.path().join(format!("{form}-{name}"));
            copy(
                &image,
                &format!("{form}:{}:n", path.display()).parse().unwrap(),
            )
            .unwrap();
            fs::read(path).unwrap()
        };
        assert_eq!(write("one"), write("two"));
    }
}

#[test]
fn damage_is_noticed_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = source(&dir.path().join("source"));
    let layer = image.layers().nth(1).unwrap().descriptor().clone();
    let blob = dir
        .path()
        .join("source/blobs/sha256")
        .join(layer.digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[600] ^= 1;
    fs::write(&blob, bytes).unwrap();
    for form in ["oci", "oci-archive", "docker-archive"] {
        let path = dir.path().join(form);
        let error = copy(
            &image,
            &format!("{form}:{}", path.display()).parse().unwrap(),
        )
        .unwrap_err();
        assert_cause!(error, Error::DigestMismatch { .. });
        assert!(error.to_string().contains("source"), "{error}");
        if form == "oci" {
            let found = open(&path).unwrap_err();
            assert_cause!(found, Error::NoSuchImage { .. });
            assert!(!path.join("blobs/sha256").join(layer.digest.hex()).exists());
        }
    }
    let mut left: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["oci", "source"]);
}

#[test]
fn an_existing_file_is_not_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let image = source(&dir.path().join("source"));
    let path = dir.path().join("precious");
    fs::write(&path, "keep").unwrap();
    for form in ["oci-archive", "docker-archive"] {
        let error = copy(
            &image,
            &format!("{form}:{}", path.display()).parse().unwrap(),
        )
        .unwrap_err();
        assert_cause!(error, Error::Io { .. });
    }
    assert_eq!(fs::read(&path).unwrap(), b"keep");
}

#[test]
fn digests_by_sha512_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let layer = Tar::new().file("etc/motd", "hello\n").end();
    let above = Tar::new().file("etc/issue", "two\n").end();
    let layers = [layer, above].map(|tar| gzip_layer(&tar));
    let digest = layout_by(Algorithm::Sha512, &at("source"), "x", &layers);
    let image = open(at("source")).unwrap();
    let expected = contents(&image);
    assert_eq!(expected.len(), 2);
    for form in ["oci", "oci-archive", "docker-archive"] {
        let path = at(form);
        copy(
            &image,
            &format!("{form}:{}", path.display()).parse().unwrap(),
        )
        .unwrap();
        let copied = open(&path).unwrap();
        assert_eq!(contents(&copied), expected, "{form}");
        if form != "docker-archive" {
            assert_eq!(*copied.manifest().digest(), digest, "{form}");
        }
    }
    let store = Store::open(at("store")).unwrap();
    let stored = store.add(&image, &"x".parse().unwrap()).unwrap();
    let unpacked = store
        .unpack(&stored, &options(Whiteouts::OverlayUser))
        .unwrap();
    let motd = unpacked.layers[0].join("etc/motd");
    assert_eq!(fs::read(motd).unwrap(), b"hello\n");
    assert_eq!(store.collect().unwrap().blobs, 0);
    assert!(store.verify().unwrap().is_empty());
    let blob = at("source")
        .join("blobs/sha512")
        .join(image.layers().next().unwrap().descriptor().digest.hex());
    let mut bytes = fs::read(&blob).unwrap();
    bytes[4] ^= 1;
    fs::write(&blob, bytes).unwrap();
    let error = copy(
        &image,
        &format!("oci:{}", at("other").display()).parse().unwrap(),
    )
    .unwrap_err();
    assert_cause!(error, Error::DigestMismatch { .. });
}

#[test]
fn destinations_as_text() {
    for bad in [
        "",
        "x",
        "oci:",
        "oci::x",
        "oci:x:",
        "docker:x",
        "docker-archive:x:A B",
    ] {
        assert!(bad.parse::<Destination>().is_err(), "{bad}");
    }
    let Destination::DockerArchive { name, .. } = "docker-archive:p:a:1".parse().unwrap() else {
        panic!("another form");
    };
    assert_eq!(name.unwrap().to_string(), "docker.io/library/a:1");
}
