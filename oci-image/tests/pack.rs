//! Packing gives the same bytes each time, and unpacking gives back what was packed.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{Arena, unpack};
use oci_image::{
    Compression, Entry, EntryKind, Error, ImageBuilder, LayerWriter, LayoutWriter, Metadata,
    PackOptions, PackedLayer, Platform, open, walk,
};

fn pack(directory: &Path, options: &PackOptions) -> (PackedLayer, Vec<u8>) {
    let mut writer = LayerWriter::new(Vec::new(), options.clone()).unwrap();
    writer.append_all(walk(directory).unwrap()).unwrap();
    writer.finish().unwrap()
}

fn tree(root: &Path, names: &[&str]) {
    fs::create_dir(root).unwrap();
    for name in names {
        let path = root.join(name);
        if let Some(directory) = name.strip_suffix('/') {
            fs::create_dir_all(root.join(directory)).unwrap();
        } else {
            fs::write(path, *name).unwrap();
        }
    }
}

#[test]
fn the_order_of_creation_and_the_time_do_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let names = ["z/", "z/last", "a/", "a/b", "a/a", "a-b", "file"];
    tree(&dir.path().join("one"), &names);
    let mut reversed = names;
    reversed.sort_by_key(|name| !name.ends_with('/'));
    reversed[2..].reverse();
    tree(&dir.path().join("two"), &reversed);
    let file = File::open(dir.path().join("two/file")).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(99))
        .unwrap();
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let options = PackOptions::new()
            .clamp_times(1_000_000_000)
            .owner(0, 0)
            .compression(compression);
        let (one, bytes) = pack(&dir.path().join("one"), &options);
        assert_eq!(one, pack(&dir.path().join("two"), &options).0);
        assert_eq!(one.descriptor.size, bytes.len() as u64);
        assert_eq!(one.descriptor.digest, oci_image::Digest::sha256(&bytes));
        assert_eq!(Compression::detect(&bytes), compression);
    }
}

#[test]
fn unpacking_gives_back_what_was_packed() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("tree");
    let long: PathBuf = ["d".repeat(90), "e".repeat(90), "f".repeat(200)]
        .iter()
        .collect();
    tree(&from, &["empty/", "plain", "sub/", "sub/file"]);
    fs::create_dir_all(from.join(long.parent().unwrap())).unwrap();
    fs::write(from.join(&long), vec![7; 100_000]).unwrap();
    fs::hard_link(from.join("plain"), from.join("sub/hard")).unwrap();
    symlink("t".repeat(300), from.join("far")).unwrap();
    symlink("plain", from.join("near")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        from.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o1750)).unwrap();
    File::open(from.join("plain"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789))
        .unwrap();
    File::open(from.join("sub/file"))
        .unwrap()
        .set_modified(SystemTime::UNIX_EPOCH - Duration::from_millis(1250))
        .unwrap();
    rustix::fs::setxattr(
        from.join("plain"),
        "user.note",
        b"\xff\n=",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let options = PackOptions::new().compression(Compression::None);
    let (layer, bytes) = pack(&from, &options);
    let arena = Arena::new();
    unpack(&bytes, &arena.root()).unwrap();
    assert_eq!(pack(&arena.root(), &options).0, layer);
    let stat = fs::metadata(arena.root().join("sub/file")).unwrap();
    assert_eq!((stat.mtime(), stat.mtime_nsec()), (-2, 750_000_000));
}

#[test]
fn whiteouts_and_attributes_are_written() {
    let mut writer = LayerWriter::new(
        Vec::new(),
        PackOptions::new().compression(Compression::None),
    )
    .unwrap();
    let marker = |path: &str, kind| Entry {
        path: path.into(),
        kind,
        metadata: Metadata::new(0),
    };
    writer.append(Entry::directory("d", 0o755)).unwrap();
    writer.append(marker("d", EntryKind::Opaque)).unwrap();
    writer.append(marker("gone", EntryKind::Whiteout)).unwrap();
    writer
        .append(marker("d/sub/gone", EntryKind::Whiteout))
        .unwrap();
    let (_, bytes) = writer.finish().unwrap();
    let arena = Arena::new();
    for path in ["d/old", "d/sub/gone", "gone"] {
        fs::create_dir_all(arena.root().join(path)).unwrap();
    }
    unpack(&bytes, &arena.root()).unwrap();
    let left: Vec<_> = fs::read_dir(arena.root())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["d"]);
    assert!(!arena.root().join("d/old").exists());
    assert!(!arena.root().join("d/sub/gone").exists());
}

/// By itself, zstd would want readers to remember 128 MiB at its last level.
#[test]
fn what_the_hardest_levels_write_every_reader_reads() {
    for (compression, level) in [(Compression::Gzip, 9), (Compression::Zstd, 22)] {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = LayoutWriter::open(dir.path()).unwrap();
        let options = PackOptions::new().compression(compression).level(level);
        let zeros = [Entry::file("zeros", 0o644, vec![0; 1 << 20])];
        let layer = layout.layer(zeros.map(Ok), &options).unwrap();
        let image = ImageBuilder::new(&Platform::host()).layer(layer, "test");
        layout.image(None, image).unwrap();
        let arena = Arena::new();
        let report = arena.unpack(&open(dir.path()).unwrap()).unwrap();
        assert_eq!(report.bytes, 1 << 20);
    }
}

#[test]
fn names_that_cannot_be_in_a_layer_are_refused() {
    for path in [
        "../up",
        "a/../b",
        "",
        ".wh.trick",
        "a/.wh..wh..opq",
        "nul\0",
    ] {
        let mut writer = LayerWriter::new(Vec::new(), PackOptions::new()).unwrap();
        let error = writer.append(Entry::file(path, 0o644, "")).unwrap_err();
        assert!(matches!(error, Error::BadValue { .. }), "{path}: {error}");
    }
}

#[test]
fn a_file_that_shrinks_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, vec![0; 10_000]).unwrap();
    let entry = Entry::copy_of("file", 0o644, &path).unwrap();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(5_000)
        .unwrap();
    let mut writer = LayerWriter::new(Vec::new(), PackOptions::new()).unwrap();
    let error = writer.append(entry).unwrap_err();
    assert!(
        matches!(
            error,
            Error::Truncated {
                expected: 10_000,
                found: 5_000,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_layout_holds_several_images_and_replaces_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let write = |name: &str, text: &str| {
        let mut layout = LayoutWriter::open(&path).unwrap();
        let layer = layout
            .layer([Ok(Entry::file("text", 0o644, text))], &PackOptions::new())
            .unwrap();
        let image = ImageBuilder::new(&Platform::host())
            .created(0)
            .layer(layer, "test")
            .entrypoint(["/bin/cat"])
            .cmd(["/text"])
            .env("PATH", "/bin")
            .working_dir("/work")
            .user("1:2")
            .expose("80/tcp")
            .label("a", "b");
        layout.image(Some(name), image).unwrap().digest().clone()
    };
    write("one", "1");
    let two = write("two", "2");
    let one = write("one", "changed");
    assert_eq!(
        two,
        write("two", "2"),
        "the same image again has the same digest"
    );
    let at = |name: &str| open(format!("{}:{name}", path.display())).unwrap();
    assert_eq!(*at("one").manifest().digest(), one);
    assert_eq!(
        oci_image::Source::open(&path).unwrap().names(),
        ["one", "two"]
    );
    let arena = Arena::new();
    arena.unpack(&at("one")).unwrap();
    assert_eq!(fs::read(arena.root().join("text")).unwrap(), b"changed");
    let process = at("two").process(&["/etc/passwd".to_owned()]).unwrap();
    assert_eq!(process.args, ["/bin/cat", "/etc/passwd"]);
    assert_eq!(process.cwd, Path::new("/work"));
    assert_eq!(process.ports[0].first, 80);
    // No temporary file is left.
    for directory in [path.clone(), path.join("blobs/sha256")] {
        for entry in fs::read_dir(directory).unwrap() {
            assert!(
                !entry
                    .unwrap()
                    .file_name()
                    .as_encoded_bytes()
                    .starts_with(b".")
            );
        }
    }
}
