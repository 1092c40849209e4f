//! Images are found in layouts, archives and `docker save` files, and what is wrong with them is told exactly.

mod common;

use std::fs;
use std::path::Path;

use common::{
    Arena, Layer, Tar, assert_cause, gzip, gzip_layer, layout, noise, plain_layer, tar_directory,
    zstd,
};
use oci_image::{Digest, Error, MediaType, Platform, Source, SourceKind, open};

fn hello() -> Vec<u8> {
    Tar::new().dir("etc/").file("etc/motd", "hello\n").end()
}

fn hello_layer() -> Layer {
    gzip_layer(&hello())
}

fn assert_unpacks(image: &oci_image::Image) {
    let arena = Arena::new();
    arena.unpack(image).unwrap();
    assert_eq!(fs::read(arena.root().join("etc/motd")).unwrap(), b"hello\n");
}

#[test]
fn a_layout_directory_by_path_and_by_name() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), "one", &[hello_layer()]);
    assert_unpacks(&open(dir.path()).unwrap());
    layout(dir.path(), "two", &[plain_layer(&hello()), hello_layer()]);
    let source = Source::open(dir.path()).unwrap();
    assert_eq!(source.kind(), SourceKind::OciLayout);
    assert_eq!(source.names(), ["one", "two"]);
    let at = |name: &str| open(format!("{}:{name}", dir.path().display()));
    assert_eq!(at("one").unwrap().layers().len(), 1);
    assert_eq!(at("two").unwrap().layers().len(), 2);
    let error = open(dir.path()).unwrap_err();
    assert_cause!(error, Error::SeveralImages { .. });
    assert!(error.to_string().contains("one, two"), "{error}");
    let error = at("three").unwrap_err();
    assert_cause!(error, Error::NoSuchImage { .. });
}

#[test]
fn every_compression_is_told_by_its_bytes() {
    // The media type says gzip each time.
    for stored in [
        hello(),
        gzip(&hello()),
        zstd(&hello()),
        [gzip(&hello()[..700]), gzip(&hello()[700..])].concat(),
    ] {
        let dir = tempfile::tempdir().unwrap();
        layout(
            dir.path(),
            "x",
            &[(MediaType::OCI_LAYER_GZIP, hello(), stored)],
        );
        assert_unpacks(&open(dir.path()).unwrap());
    }
}

#[test]
fn an_oci_archive_plain_and_compressed() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    layout(&tree, "latest", &[hello_layer()]);
    let archive = dir.path().join("image.tar");
    tar_directory(&tree, &archive, &[]);
    assert_eq!(
        Source::open(&archive).unwrap().kind(),
        SourceKind::OciArchive
    );
    assert_unpacks(&open(format!("{}:latest", archive.display())).unwrap());
    for packed in [
        gzip(&fs::read(&archive).unwrap()),
        zstd(&fs::read(&archive).unwrap()),
    ] {
        let path = dir.path().join("image.tar.packed");
        fs::write(&path, packed).unwrap();
        assert_unpacks(&open(&path).unwrap());
    }
}

/// An archive as `docker save` wrote it: layers in directories, one of them a symbolic link to the other.
fn docker_archive(path: &Path, layer: &[u8]) -> String {
    let diff_id = Digest::sha256(&hello()).to_string();
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux",
        "config": {"Entrypoint": ["/bin/cat"], "Cmd": ["/etc/motd"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id, diff_id]},
    })
    .to_string();
    let config_name = format!("{}.json", Digest::sha256(config.as_bytes()).hex());
    let manifest = serde_json::json!([{
        "Config": config_name, "RepoTags": ["example/hello:1", "hello:latest"],
        "Layers": ["aaaa/layer.tar", "bbbb/layer.tar"],
    }])
    .to_string();
    let archive = Tar::new()
        .file(&config_name, &config)
        .dir("aaaa/")
        .file("aaaa/layer.tar", layer)
        .dir("bbbb/")
        .symlink("bbbb/layer.tar", "../aaaa/layer.tar")
        .file("manifest.json", &manifest)
        .end();
    fs::write(path, archive).unwrap();
    config_name
}

#[test]
fn a_legacy_docker_archive_with_a_symlinked_layer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar");
    for layer in [hello(), gzip(&hello())] {
        let config_name = docker_archive(&path, &layer);
        let source = Source::open(&path).unwrap();
        assert_eq!(source.kind(), SourceKind::DockerArchive);
        assert_eq!(source.names(), ["example/hello:1", "hello:latest"]);
        for name in ["", ":hello:latest", ":hello", ":example/hello:1"] {
            let image = open(format!("{}{name}", path.display())).unwrap();
            assert_eq!(image.process(&[]).unwrap().args, ["/bin/cat", "/etc/motd"]);
            assert_eq!(
                format!("{}.json", image.config().digest().hex()),
                config_name
            );
            assert_eq!(image.layers().len(), 2);
            assert_unpacks(&image);
        }
        let error = open(format!("{}:hello:2", path.display())).unwrap_err();
        assert_cause!(error, Error::NoSuchImage { .. });
    }
}

#[test]
fn a_tampered_legacy_layer_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("saved.tar");
    let other = Tar::new().dir("etc/").file("etc/motd", "hullo\n").end();
    docker_archive(&path, &other);
    let error = Arena::new().unpack(&open(&path).unwrap()).unwrap_err();
    let Error::DigestMismatch {
        expected, found, ..
    } = error.cause()
    else {
        panic!("{error}");
    };
    assert_eq!(*expected, Digest::sha256(&hello()));
    assert_eq!(*found, Digest::sha256(&other));
    assert!(error.to_string().contains("saved.tar"), "{error}");
}

#[test]
fn what_is_no_image_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = open(dir.path().join("nowhere")).unwrap_err();
    assert_cause!(missing, Error::NoSuchPath { .. });
    let empty = open(dir.path()).unwrap_err();
    assert_cause!(empty, Error::NotAnImage { .. });
    for (name, bytes) in [
        ("empty", vec![]),
        ("text", b"hello".repeat(300)),
        ("zeros", vec![0; 4096]),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        let error = open(&path).unwrap_err();
        assert!(
            matches!(error.cause(), Error::NotAnImage { .. }),
            "{name}: {error}"
        );
        assert_eq!(error.to_string().lines().count(), 1);
    }
}

fn blob_of(dir: &Path, digest: &Digest) -> std::path::PathBuf {
    dir.join("blobs/sha256").join(digest.hex())
}

#[test]
fn damaged_blobs_are_told_with_both_digests() {
    let dir = tempfile::tempdir().unwrap();
    let manifest = layout(dir.path(), "x", &[hello_layer()]);
    let layer = Digest::sha256(&gzip(&hello()));
    let path = blob_of(dir.path(), &layer);
    let good = fs::read(&path).unwrap();
    let arena = Arena::new();
    let unpack = || arena.unpack(&open(dir.path())?);

    let mut bad = good.clone();
    // The modification time in the gzip header: the contents inflate to the same bytes.
    bad[4] ^= 1;
    fs::write(&path, &bad).unwrap();
    let error = unpack().unwrap_err();
    let Error::DigestMismatch {
        expected, found, ..
    } = error.cause()
    else {
        panic!("{error}")
    };
    assert_eq!((expected, found), (&layer, &Digest::sha256(&bad)));
    for part in [&layer.to_string(), &dir.path().display().to_string()] {
        assert!(error.to_string().contains(part.as_str()), "{error}");
    }

    fs::write(&path, &good[..good.len() - 1]).unwrap();
    let error = unpack().unwrap_err();
    assert_cause!(error, Error::Truncated { .. });

    fs::write(&path, [good.as_slice(), b"x"].concat()).unwrap();
    let error = unpack().unwrap_err();
    assert_cause!(error, Error::Oversized { .. });

    fs::remove_file(&path).unwrap();
    let error = unpack().unwrap_err();
    assert_cause!(error, Error::MissingBlob { digest, .. } if *digest == layer);
    fs::write(&path, &good).unwrap();
    unpack().unwrap();

    let path = blob_of(dir.path(), &manifest);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("\"schemaVersion\":2", "\"schemaVersion\":3"),
    )
    .unwrap();
    let error = unpack().unwrap_err();
    assert_cause!(error, Error::DigestMismatch { .. });
}

#[test]
fn a_layer_that_is_not_what_the_configuration_promises_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let other = Tar::new().file("etc/motd", "hullo\n").end();
    // The blob's digest is right, the uncompressed digest is not.
    layout(
        dir.path(),
        "x",
        &[(MediaType::OCI_LAYER_GZIP, hello(), gzip(&other))],
    );
    let error = Arena::new().unpack(&open(dir.path()).unwrap()).unwrap_err();
    let Error::DigestMismatch { what, found, .. } = error.cause() else {
        panic!("{error}")
    };
    assert_eq!(
        (*what, found),
        ("the uncompressed layer", &Digest::sha256(&other))
    );
}

#[test]
fn a_truncated_archive_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    layout(&tree, "latest", &[hello_layer()]);
    let path = dir.path().join("image.tar");
    tar_directory(&tree, &path, &[]);
    let whole = fs::read(&path).unwrap();
    let mut kinds = 0;
    // GNU tar pads with zeros to 10 KiB; what matters ends before.
    let end = whole.iter().rposition(|&b| b != 0).unwrap();
    for cut in (1..end).step_by(97) {
        fs::write(&path, &whole[..cut]).unwrap();
        let Err(error) = open(&path).and_then(|image| Arena::new().unpack(&image)) else {
            panic!("an archive cut at {cut} of {end} was taken for whole");
        };
        assert!(error.to_string().contains("image.tar"), "{error}");
        kinds |= match error.cause() {
            Error::Truncated { .. } => 1,
            Error::Tar { .. } => 2,
            Error::MissingBlob { .. } | Error::NotAnImage { .. } => 4,
            _ => panic!("{error}"),
        };
    }
    assert_eq!(kinds & 1, 1);
}

#[test]
fn the_platform_is_chosen_in_an_index() {
    let dir = tempfile::tempdir().unwrap();
    let first = layout(dir.path(), "a", &[hello_layer()]);
    let second = layout(dir.path(), "b", &[plain_layer(&hello())]);
    let size = |digest: &Digest| fs::metadata(blob_of(dir.path(), digest)).unwrap().len();
    let entry = |digest: &Digest, architecture: &str, variant: Option<&str>| {
        let mut platform = serde_json::json!({"os": "linux", "architecture": architecture});
        if let Some(variant) = variant {
            platform["variant"] = variant.into();
        }
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest.to_string(), "size": size(digest), "platform": platform,
        })
    };
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [
            entry(&first, "arm", Some("v6")), entry(&second, "arm", Some("v7")), entry(&first, "riscv64", None),
            {
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": first.to_string(),
                "size": size(&first), "platform": {"os": "unknown", "architecture": "unknown"},
            },
        ],
    })
    .to_string();
    let digest = Digest::sha256(index.as_bytes());
    fs::write(blob_of(dir.path(), &digest), &index).unwrap();
    let top = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": digest.to_string(), "size": index.len(),
        }],
    });
    fs::write(dir.path().join("index.json"), top.to_string()).unwrap();
    let choose = |platform: &str| {
        Source::open(dir.path())
            .unwrap()
            .image(None, &platform.parse().unwrap())
    };
    assert_eq!(*choose("linux/arm/v7").unwrap().manifest().digest(), second);
    assert_eq!(*choose("linux/arm/v6").unwrap().manifest().digest(), first);
    assert_eq!(*choose("linux/arm").unwrap().manifest().digest(), second);
    assert_eq!(*choose("linux/riscv64").unwrap().manifest().digest(), first);
    let error = choose("linux/s390x").unwrap_err();
    assert_cause!(error, Error::NoPlatform { .. });
    assert!(
        error.to_string().contains("linux/arm/v6, linux/arm/v7"),
        "{error}"
    );
}

#[test]
fn an_index_that_holds_itself_ends() {
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), "a", &[hello_layer()]);
    // A digest cannot contain itself, so a chain stands for it: six indexes, one in the other.
    let mut inner = fs::read_to_string(dir.path().join("index.json")).unwrap();
    for _ in 0..6 {
        let digest = Digest::sha256(inner.as_bytes());
        fs::write(blob_of(dir.path(), &digest), &inner).unwrap();
        inner = serde_json::json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.index.v1+json",
                "digest": digest.to_string(), "size": inner.len(),
            }],
        })
        .to_string();
    }
    fs::write(dir.path().join("index.json"), inner).unwrap();
    let error = open(dir.path()).unwrap_err();
    assert_cause!(error, Error::IndexDepth { .. });
}

/// Layers of this size are read, inflated and hashed by several threads.
fn large() -> Vec<u8> {
    Tar::new()
        .file("noise", noise(3 << 20))
        .file("last", "end")
        .end()
}

#[test]
fn large_layers_are_verified_as_small_ones_are() {
    let plain = large();
    for stored in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let dir = tempfile::tempdir().unwrap();
        layout(
            dir.path(),
            "x",
            &[(MediaType::OCI_LAYER_GZIP, plain.clone(), stored.clone())],
        );
        let unpack = || {
            let arena = Arena::new();
            let result = open(dir.path()).and_then(|image| arena.unpack(&image));
            result.map(|_| fs::read(arena.root().join("noise")).unwrap())
        };
        assert!(unpack().unwrap() == plain[512..512 + (3 << 20)]);

        let path = blob_of(dir.path(), &Digest::sha256(&stored));
        for at in [100, stored.len() / 2, stored.len() - 3] {
            let mut bad = stored.clone();
            bad[at] ^= 4;
            fs::write(&path, &bad).unwrap();
            let error = unpack().unwrap_err();
            assert_cause!(
                error,
                Error::DigestMismatch { .. } | Error::Decompress { .. } | Error::Tar { .. }
            );
        }
        fs::write(&path, &stored[..stored.len() / 2]).unwrap();
        let error = unpack().unwrap_err();
        assert_cause!(error, Error::Truncated { .. });

        // Right bytes, but not those that the configuration promises.
        let other = tempfile::tempdir().unwrap();
        layout(
            other.path(),
            "x",
            &[(MediaType::OCI_LAYER_GZIP, hello(), stored.clone())],
        );
        let error = Arena::new()
            .unpack(&open(other.path()).unwrap())
            .unwrap_err();
        assert_cause!(error, Error::DigestMismatch { .. });
    }
}

#[test]
fn an_error_in_the_middle_of_a_large_layer_ends_its_threads() {
    let threads = || {
        fs::read_dir("/proc/self/task")
            .unwrap()
            .filter(|task| {
                let name = fs::read_to_string(task.as_ref().unwrap().path().join("comm"));
                name.is_ok_and(|name| name.starts_with("layer-"))
            })
            .count()
    };
    // The first entry is refused, and all of the rest is never asked for.
    let mut plain = Tar::new().file("../up", "").0;
    plain.extend(large());
    let dir = tempfile::tempdir().unwrap();
    layout(dir.path(), "x", &[gzip_layer(&plain)]);
    let arena = Arena::new();
    for _ in 0..20 {
        let error = arena.unpack(&open(dir.path()).unwrap()).unwrap_err();
        assert_cause!(error, Error::UnsafePath { .. });
    }
    // Other tests of this file have at most two threads each meanwhile.
    assert!(threads() <= 8, "{} threads are left", threads());
}
