//! Other tools read what this crate writes, and the reverse.

mod common;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use common::{Arena, run, with_storage};
use oci_image::{
    ArtifactBuilder, Compression, Entry, ImageBuilder, LayoutWriter, PackOptions, Platform,
    Reference, Source, SourceKind, Store, UnpackOptions, Whiteouts, open,
};

/// An image of two layers, the second compressed by `second`.
fn write_layout(path: &Path, second: Compression) -> String {
    let mut layout = LayoutWriter::open(path).unwrap();
    let mut image = ImageBuilder::new(&Platform::host()).created(0);
    let first = [
        Entry::directory("bin", 0o755),
        Entry::file("bin/tool", 0o4755, vec![7; 70_000]),
        Entry::symlink("sbin", "bin"),
        Entry::file(format!("long/{}", "n".repeat(200)), 0o644, "long"),
    ];
    let motd = [Entry::file("etc/motd", 0o600, "hello\n")];
    for (number, entries) in [Vec::from(first), Vec::from(motd)].into_iter().enumerate() {
        let compression = if number == 0 {
            Compression::Gzip
        } else {
            second
        };
        let options = PackOptions::new().compression(compression);
        let layer = layout.layer(entries.into_iter().map(Ok), &options).unwrap();
        image = image.layer(layer, "test");
    }
    let image = image.cmd(["/bin/tool"]).env("PATH", "/bin");
    layout
        .image(Some("latest"), image)
        .unwrap()
        .digest()
        .to_string()
}

fn unpacked(image: &oci_image::Image) -> Arena {
    let arena = Arena::new();
    image
        .unpack_flat(
            File::open(arena.root()).unwrap(),
            &UnpackOptions::new(Whiteouts::Apply),
        )
        .unwrap();
    arena
}

fn assert_is_ours(image: &oci_image::Image) {
    let arena = unpacked(image);
    let root = arena.root();
    assert_eq!(fs::read(root.join("bin/tool")).unwrap(), vec![7; 70_000]);
    assert_eq!(fs::read(root.join("etc/motd")).unwrap(), b"hello\n");
    assert_eq!(fs::read_link(root.join("sbin")).unwrap(), Path::new("bin"));
    assert_eq!(image.process(&[]).unwrap().args, ["/bin/tool"]);
}

/// Runs skopeo, which keeps what it needs for a moment in `tmp`.
fn skopeo(tmp: &Path, args: &[&str]) -> String {
    run(Command::new("skopeo")
        .args(["--insecure-policy", "--tmpdir"])
        .arg(tmp)
        .args(args))
}

fn copy_by_skopeo(tmp: &Path, from: &str, to: &str) {
    skopeo(tmp, &["copy", from, to]);
}

#[test]
#[ignore = "needs root"]
fn skopeo_reads_and_writes_all_forms() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    let digest = write_layout(&ours, Compression::Gzip);
    let oci = format!("oci:{}:latest", ours.display());
    let inspected: serde_json::Value =
        serde_json::from_str(&skopeo(dir.path(), &["inspect", &oci])).unwrap();
    assert_eq!(inspected["Digest"], digest.as_str());
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), 2);
    for (form, suffix, kind) in [
        ("oci", ":x", SourceKind::OciLayout),
        ("oci-archive", ":x", SourceKind::OciArchive),
        ("docker-archive", ":example/x:1", SourceKind::DockerArchive),
    ] {
        let path = dir.path().join(form);
        copy_by_skopeo(
            dir.path(),
            &oci,
            &format!("{form}:{}{suffix}", path.display()),
        );
        let source = Source::open(&path).unwrap();
        assert_eq!(source.kind(), kind);
        // skopeo puts the registry before the names of Docker's form.
        assert!(
            source.names()[0].ends_with(&suffix[1..]),
            "{:?}",
            source.names()
        );
        let image = open(format!("{}{suffix}", path.display())).unwrap();
        assert_is_ours(&image);
        if kind != SourceKind::DockerArchive {
            assert_eq!(image.manifest().digest().to_string(), digest);
        }
    }
    // Of the forms only OCI's have zstd.
    let zstd = dir.path().join("zstd");
    let digest = write_layout(&zstd, Compression::Zstd);
    let copied = dir.path().join("copied");
    copy_by_skopeo(
        dir.path(),
        &format!("oci:{}:latest", zstd.display()),
        &format!("oci:{}:x", copied.display()),
    );
    let image = open(&copied).unwrap();
    assert_eq!(image.manifest().digest().to_string(), digest);
    assert_is_ours(&image);
}

#[test]
#[ignore = "needs root"]
fn skopeo_and_umoci_read_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    let digest = write_layout(&ours, Compression::Gzip);
    let store = Store::open(dir.path().join("store")).unwrap();
    let name: Reference = "example.org/team/app:1".parse().unwrap();
    let stored = store.add(&open(&ours).unwrap(), &name).unwrap();
    drop(
        store
            .unpack(&stored, &UnpackOptions::new(Whiteouts::Overlay))
            .unwrap(),
    );
    let copied = dir.path().join("copied");
    let from = format!("oci:{}:{name}", store.path().display());
    copy_by_skopeo(dir.path(), &from, &format!("oci:{}:x", copied.display()));
    let image = open(&copied).unwrap();
    assert_eq!(image.manifest().digest().to_string(), digest);
    assert_is_ours(&image);
    let list = run(Command::new("umoci")
        .args(["ls", "--layout"])
        .arg(store.path()));
    assert_eq!(list.trim(), name.to_string());
}

#[test]
#[ignore = "needs root"]
fn skopeo_copies_artifacts_with_what_they_refer_to() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    write_layout(&ours, Compression::Gzip);
    let image = open(&ours).unwrap().manifest().descriptor().clone();
    let mut layout = LayoutWriter::open(&ours).unwrap();
    let blob = layout.blob("text/plain", &b"signed"[..]).unwrap();
    let signature = ArtifactBuilder::new("application/x.signature")
        .subject(image.clone())
        .blob(blob);
    let signature = layout.artifact(Some("signature"), signature).unwrap();
    let from = format!("oci:{}:signature", ours.display());
    let copied = dir.path().join("copied");
    let raw = skopeo(dir.path(), &["inspect", "--raw", &from]);
    assert_eq!(raw.as_bytes(), signature.bytes());
    copy_by_skopeo(dir.path(), &from, &format!("oci:{}:s", copied.display()));
    let source = Source::open(&copied).unwrap();
    let [found] = source
        .referrers(&image.digest, None)
        .unwrap()
        .try_into()
        .unwrap();
    assert_eq!(found.digest, *signature.digest());
    let artifact = source.artifact(&found).unwrap();
    let mut text = String::new();
    artifact
        .blob(&artifact.manifest().layers[0])
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "signed");
}

#[test]
#[ignore = "needs root"]
fn umoci_reads_and_changes_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    write_layout(&ours, Compression::None);
    let image = format!("{}:latest", ours.display());
    let bundle = dir.path().join("bundle");
    run(Command::new("umoci")
        .args(["unpack", "--image", &image])
        .arg(&bundle));
    let rootfs = bundle.join("rootfs");
    assert_eq!(fs::read(rootfs.join("etc/motd")).unwrap(), b"hello\n");
    fs::remove_file(rootfs.join("etc/motd")).unwrap();
    fs::write(rootfs.join("added"), "by umoci").unwrap();
    run(Command::new("umoci")
        .args(["repack", "--image", &format!("{}:changed", ours.display())])
        .arg(&bundle));
    let changed = open(format!("{}:changed", ours.display())).unwrap();
    assert_eq!(changed.layers().len(), 3);
    let arena = unpacked(&changed);
    assert_eq!(fs::read(arena.root().join("added")).unwrap(), b"by umoci");
    assert!(!arena.root().join("etc/motd").exists());
    assert!(arena.root().join("bin/tool").exists());
}

#[test]
#[ignore = "needs root"]
fn buildah_makes_images_that_we_read() {
    let dir = tempfile::tempdir().unwrap();
    let buildah = |args: &[&str]| with_storage("buildah", dir.path(), args);
    let file = dir.path().join("motd");
    fs::write(&file, "from buildah\n").unwrap();
    let container = buildah(&["from", "scratch"]);
    buildah(&["copy", &container, file.to_str().unwrap(), "/etc/motd"]);
    buildah(&[
        "config",
        "--entrypoint",
        r#"["/bin/cat"]"#,
        "--cmd",
        "/etc/motd",
        "--user",
        "7:8",
        &container,
    ]);
    for (format, transport, suffix) in [
        ("oci", "oci-archive", ""),
        ("docker", "docker-archive", ":b:1"),
        ("oci", "oci", ":b"),
    ] {
        let path = dir.path().join(format!("{transport}-out"));
        let target = format!("{transport}:{}{suffix}", path.display());
        buildah(&["commit", "--quiet", "--format", format, &container, &target]);
        let image = open(format!("{}{suffix}", path.display())).unwrap();
        let process = image.process(&[]).unwrap();
        assert_eq!(process.args, ["/bin/cat", "/etc/motd"], "{target}");
        assert_eq!(process.user, "7:8".parse().unwrap());
        let arena = unpacked(&image);
        assert_eq!(
            fs::read(arena.root().join("etc/motd")).unwrap(),
            b"from buildah\n"
        );
    }
}

#[test]
#[ignore = "needs root"]
fn skopeo_reads_what_we_copy() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    write_layout(&ours, Compression::Gzip);
    let image = open(&ours).unwrap();
    for (form, name) in [
        ("oci", ":x"),
        ("oci-archive", ":x"),
        ("docker-archive", ":example/x:1"),
    ] {
        let target = format!("{form}:{}{name}", dir.path().join(form).display());
        oci_image::copy(&image, &target.parse().unwrap()).unwrap();
        let back = dir.path().join(format!("{form}-back"));
        copy_by_skopeo(dir.path(), &target, &format!("oci:{}:y", back.display()));
        assert_is_ours(&open(&back).unwrap());
    }
    // What comes from an archive of Docker's, where there is no manifest, gets one that is found in a layout.
    let saved = open(dir.path().join("docker-archive")).unwrap();
    let layout = format!("oci:{}:z", dir.path().join("layout").display());
    oci_image::copy(&saved, &layout.parse().unwrap()).unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    store.add(&saved, &"z".parse().unwrap()).unwrap();
    let stored = format!("oci:{}:docker.io/library/z:latest", store.path().display());
    for (number, from) in [layout, stored].iter().enumerate() {
        let back = dir.path().join(format!("back{number}"));
        copy_by_skopeo(dir.path(), from, &format!("oci:{}:y", back.display()));
        assert_is_ours(&open(&back).unwrap());
    }
}

#[test]
#[ignore = "needs root"]
fn buildah_reads_all_forms_and_podman_gives_them_back() {
    let dir = tempfile::tempdir().unwrap();
    let ours = dir.path().join("ours");
    write_layout(&ours, Compression::Gzip);
    let image = open(&ours).unwrap();
    for (form, name, back) in [
        ("oci", ":x", "oci-archive"),
        ("oci-archive", ":x", "docker-archive"),
        ("docker-archive", ":example/x:1", "docker-archive"),
    ] {
        let target = format!("{form}:{}{name}", dir.path().join(form).display());
        oci_image::copy(&image, &target.parse().unwrap()).unwrap();
        // It makes a name of the path and wants it in lower case, which the directory's is not.
        let from = format!("{form}:{form}{name}");
        let id = with_storage("buildah", dir.path(), &["pull", "--quiet", &from]);
        assert_eq!(id, image.config().digest().hex(), "{target}");
        let saved = dir.path().join(format!("{form}-back"));
        let output = saved.to_str().unwrap();
        let save = ["save", "--quiet", "--format", back, "--output", output, &id];
        with_storage("podman", dir.path(), &save);
        assert_is_ours(&open(&saved).unwrap());
        with_storage("podman", dir.path(), &["image", "rm", "--force", &id]);
    }
}
