//! Entries of a layer become files, by any user and without privilege.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use common::{Arena, Head, Tar, assert_cause, options, unpack, unpack_with};
use oci_image::{Devices, Error, Limits, SkipReason, Unpacker, Whiteouts};

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn all_kinds_of_entries() {
    let arena = Arena::new();
    let root = arena.root();
    let long = "n".repeat(150);
    let archive = Tar::new()
        .dir("./")
        .dir("bin/")
        .file("bin/tool", "contents")
        .symlink("bin/link", "/bin/tool")
        .hardlink("bin/hard", "./bin/tool")
        .head(&Head::new("pipe", b'6'))
        .pax(&[
            ("path", long.as_bytes()),
            ("mtime", b"1234567890.123456789"),
        ])
        .file("short", "long name")
        .with_data("././@LongLink", b'L', format!("gnu/{long}\0"))
        .file("gnu", "GNU")
        .file("empty", "")
        .with_data("old-style", b'\0', "v7")
        .dir("old-directory/")
        .end();
    let report = unpack(&archive, &root).unwrap();
    assert_eq!(read(root.join("bin/tool")), "contents");
    assert_eq!(
        fs::read_link(root.join("bin/link")).unwrap(),
        Path::new("/bin/tool")
    );
    assert_eq!(fs::metadata(root.join("bin/tool")).unwrap().nlink(), 2);
    assert!(
        fs::metadata(root.join("pipe"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert_eq!(read(root.join("gnu").join(&long)), "GNU");
    let stat = fs::metadata(root.join(&long)).unwrap();
    assert_eq!(
        (stat.mtime(), stat.mtime_nsec()),
        (1_234_567_890, 123_456_789)
    );
    assert_eq!(
        fs::metadata(root.join("bin")).unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(
        fs::symlink_metadata(root.join("bin/link")).unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(report.entries, 11);
    assert!(report.skipped.is_empty());
    arena.assert_untouched();
}

#[test]
fn modes_are_exact_whatever_the_umask() {
    let arena = Arena::new();
    let root = arena.root();
    let with_mode = |name: &str, flag: u8, mode: u32| {
        let mut head = Head::new(name, flag);
        head.mode = mode;
        head
    };
    // A directory nobody may write to gets its mode after its contents.
    let archive = Tar::new()
        .head(&with_mode("closed/", b'5', 0o555))
        .file("closed/file", "x")
        .head(&with_mode("sticky/", b'5', 0o1777))
        .head(&with_mode("suid", b'0', 0o4755))
        .head(&with_mode("sgid", b'0', 0o2755))
        .head(&with_mode("all", b'0', 0o666))
        .head(&with_mode("none", b'0', 0))
        .head(&with_mode("fifo", b'6', 0o622))
        .end();
    unpack(&archive, &root).unwrap();
    for (name, expected) in [
        ("closed", 0o555),
        ("closed/file", 0o644),
        ("sticky", 0o1777),
        ("suid", 0o4755),
        ("sgid", 0o2755),
        ("all", 0o666),
        ("none", 0),
        ("fifo", 0o622),
    ] {
        assert_eq!(mode(root.join(name)), expected, "{name}");
    }
    fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn later_entries_replace_earlier_ones() {
    let arena = Arena::new();
    let root = arena.root();
    let archive = Tar::new()
        .file("a", "first")
        .file("a", "second")
        .dir("d/")
        .dir("d/deep/")
        .file("d/deep/file", "x")
        .file("d", "now a file")
        .symlink("s", "d")
        .dir("s/")
        .file("s/inside", "y")
        .file("f", "z")
        .dir("f/")
        .dir("merged/")
        .file("merged/kept", "kept")
        .dir("merged/")
        .end();
    unpack(&archive, &root).unwrap();
    assert_eq!(read(root.join("a")), "second");
    assert_eq!(read(root.join("d")), "now a file");
    assert_eq!(read(root.join("s/inside")), "y");
    assert!(fs::symlink_metadata(root.join("s")).unwrap().is_dir());
    assert!(root.join("f").is_dir());
    assert_eq!(read(root.join("merged/kept")), "kept");
}

#[test]
fn a_replaced_file_does_not_change_its_other_names() {
    let arena = Arena::new();
    let root = arena.root();
    unpack(&Tar::new().file("a", "old").hardlink("b", "a").end(), &root).unwrap();
    unpack(&Tar::new().file("a", "new").end(), &root).unwrap();
    assert_eq!(read(root.join("a")), "new");
    assert_eq!(read(root.join("b")), "old");
}

#[test]
fn parents_are_made_and_links_to_them_followed_within_the_root() {
    let arena = Arena::new();
    let root = arena.root();
    let archive = Tar::new()
        .file("made/on/the/way", "1")
        .dir("usr/")
        .symlink("bin", "/usr/bin")
        .file("bin/sh", "2")
        .symlink("up", "../../../../etc")
        .file("up/passwd", "3")
        .end();
    unpack(&archive, &root).unwrap();
    assert_eq!(read(root.join("made/on/the/way")), "1");
    assert_eq!(mode(root.join("made/on")), 0o755);
    assert_eq!(read(root.join("usr/bin/sh")), "2");
    assert_eq!(read(root.join("etc/passwd")), "3");
    arena.assert_untouched();
}

#[test]
fn whiteouts_are_carried_out() {
    let arena = Arena::new();
    let root = arena.root();
    let below = Tar::new()
        .file("gone", "")
        .dir("gone-dir/")
        .file("gone-dir/x", "")
        .dir("opaque/")
        .file("opaque/below", "")
        .dir("opaque/sub/")
        .file("opaque/sub/below", "")
        .file("kept", "")
        .end();
    unpack(&below, &root).unwrap();
    let above = Tar::new()
        .file(".wh.gone", "")
        .file(".wh.gone-dir", "")
        .file(".wh.never-was", "")
        .dir("opaque/")
        .file("opaque/sub/above", "")
        .file("opaque/above", "")
        // After what it must spare.
        .file("opaque/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "")
        .file("again", "made by this layer")
        .file(".wh.again", "")
        .end();
    let report = unpack(&above, &root).unwrap();
    for gone in [
        "gone",
        "gone-dir",
        "opaque/below",
        "opaque/sub/below",
        ".wh.gone",
    ] {
        assert!(!root.join(gone).exists(), "{gone}");
    }
    for kept in ["kept", "opaque/above", "opaque/sub/above", "again"] {
        assert!(root.join(kept).exists(), "{kept}");
    }
    assert_eq!(report.whiteouts, 5);
    assert_eq!(report.skipped.len(), 1);
    assert_eq!(report.skipped[0].reason, SkipReason::Aufs);
}

#[test]
fn whiteouts_for_overlayfs_in_a_user_namespace() {
    let arena = Arena::new();
    let root = arena.root();
    let archive = Tar::new()
        .file(".wh.gone", "")
        .dir("opaque/")
        .file("opaque/.wh..wh..opq", "")
        .file(".wh.replaced", "")
        .dir("replaced/")
        .dir("first/")
        .file(".wh.first", "")
        .file("file", "")
        .file(".wh.file", "")
        .end();
    let report = unpack_with(&archive, &root, &options(Whiteouts::OverlayUser)).unwrap();
    let stat = fs::symlink_metadata(root.join("gone")).unwrap();
    assert!(stat.file_type().is_char_device());
    assert_eq!(stat.rdev(), 0);
    for dir in ["opaque", "replaced", "first"] {
        let mut value = [0u8; 8];
        let n =
            rustix::fs::getxattr(root.join(dir), "user.overlay.opaque", &mut value[..]).unwrap();
        assert_eq!(&value[..n], b"y", "{dir}");
    }
    assert!(root.join("file").is_file());
    assert!(!report.opaque_root);
}

#[test]
fn a_layer_that_hides_everything_says_so() {
    let arena = Arena::new();
    let archive = Tar::new().file(".wh..wh..opq", "").file("a", "").end();
    let report = unpack_with(&archive, &arena.root(), &options(Whiteouts::OverlayUser)).unwrap();
    assert!(report.opaque_root);
}

#[test]
fn devices_that_cannot_be_made_are_reported() {
    let arena = Arena::new();
    let mut device = Head::new("dev/null", b'3');
    device.device = (1, 3);
    let report = unpack(&Tar::new().head(&device).end(), &arena.root()).unwrap();
    assert_eq!(report.skipped.len(), 1);
    assert_eq!(report.skipped[0].entry, "dev/null");
    assert_eq!(
        report.skipped[0].reason,
        SkipReason::Device { major: 1, minor: 3 }
    );
    assert!(!arena.root().join("dev/null").exists());
}

#[test]
fn a_whiteout_device_in_the_archive_hides_nothing() {
    let arena = Arena::new();
    let options = options(Whiteouts::OverlayUser).devices(Devices::Create);
    let report = unpack_with(
        &Tar::new().head(&Head::new("null", b'3')).end(),
        &arena.root(),
        &options,
    )
    .unwrap();
    assert_eq!(report.skipped[0].reason, SkipReason::WhiteoutDevice);
    assert!(!arena.root().join("null").exists());
}

#[test]
fn attributes_are_set_and_those_of_overlayfs_are_not() {
    let arena = Arena::new();
    let root = arena.root();
    let archive = Tar::new()
        .pax(&[
            ("SCHILY.xattr.user.color", b"blue=\n\0."),
            ("SCHILY.xattr.user.empty", b""),
            ("SCHILY.xattr.user.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.nonsense", b"x"),
        ])
        .file("file", "")
        .end();
    let report = unpack(&archive, &root).unwrap();
    let get = |name: &str| {
        let mut value = [0u8; 64];
        rustix::fs::getxattr(root.join("file"), name, &mut value[..]).map(|n| value[..n].to_vec())
    };
    assert_eq!(get("user.color").unwrap(), b"blue=\n\0.");
    assert_eq!(get("user.empty").unwrap(), b"");
    assert!(get("user.overlay.redirect").is_err());
    let reasons: Vec<_> = report
        .skipped
        .iter()
        .map(|skipped| skipped.reason.clone())
        .collect();
    assert_eq!(
        reasons,
        [
            SkipReason::OverlayXattr("user.overlay.redirect".to_owned()),
            SkipReason::Xattr("nonsense".to_owned()),
        ]
    );
    let error = unpack_with(
        &archive,
        &root,
        &options(Whiteouts::Apply).xattrs(oci_image::Xattrs::Strict),
    )
    .unwrap_err();
    assert_cause!(error, Error::Unpack { .. });
    assert!(error.to_string().contains("\"file\""), "{error}");
}

#[test]
fn sparse_files_in_all_formats() {
    // 4 bytes at 1000, 3 bytes at 5000, 8192 in all.
    let mut expected = vec![0u8; 8192];
    expected[1000..1004].copy_from_slice(b"abcd");
    expected[5000..5003].copy_from_slice(b"xyz");
    let data = b"abcdxyz";
    let v00 = Tar::new()
        .pax(&[
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.numblocks", b"3"),
            ("GNU.sparse.offset", b"1000"),
            ("GNU.sparse.numbytes", b"4"),
            ("GNU.sparse.offset", b"5000"),
            ("GNU.sparse.numbytes", b"3"),
            ("GNU.sparse.offset", b"8192"),
            ("GNU.sparse.numbytes", b"0"),
        ])
        .file("sparse", data)
        .end();
    let v01 = Tar::new()
        .pax(&[
            ("GNU.sparse.size", b"8192"),
            ("GNU.sparse.map", b"1000,4,5000,3"),
            ("GNU.sparse.name", b"sparse"),
        ])
        .file("GNUSparseFile.0/sparse", data)
        .end();
    let mut with_map = b"2\n1000\n4\n5000\n3\n".to_vec();
    with_map.resize(512, 0);
    with_map.extend_from_slice(data);
    let v10 = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"8192"),
        ])
        .file("GNUSparseFile.0/sparse", with_map)
        .end();
    let mut head = Head::new("sparse", b'S');
    head.magic = b"ustar  \0";
    head.size = data.len() as u64;
    let mut block = head.block();
    for (i, (offset, length)) in [(1000, 4), (5000, 3)].into_iter().enumerate() {
        let at = 386 + i * 24;
        block[at..at + 12].copy_from_slice(format!("{offset:011o}\0").as_bytes());
        block[at + 12..at + 24].copy_from_slice(format!("{length:011o}\0").as_bytes());
    }
    block[483..495].copy_from_slice(format!("{:011o}\0", 8192).as_bytes());
    common::checksum(&mut block);
    let gnu = Tar(block.to_vec()).data(data).end();
    for (format, archive) in [("0.0", v00), ("0.1", v01), ("1.0", v10), ("GNU", gnu)] {
        let arena = Arena::new();
        unpack(&archive, &arena.root()).unwrap_or_else(|error| panic!("{format}: {error}"));
        assert_eq!(
            fs::read(arena.root().join("sparse")).unwrap(),
            expected,
            "{format}"
        );
    }
}

#[test]
fn caps_hold() {
    let limits = |set: fn(&mut Limits)| {
        let mut limits = Limits::default();
        set(&mut limits);
        limits
    };
    let check = |archive: &[u8], limits: Limits, setting: &str| {
        let arena = Arena::new();
        let root = fs::File::open(arena.root()).unwrap();
        let error = Unpacker::new(options(Whiteouts::Apply), limits)
            .unpack(archive, &root)
            .unwrap_err();
        let Error::Limit { setting: found, .. } = error.cause() else {
            panic!("{error}");
        };
        assert_eq!(*found, setting);
    };
    let two = Tar::new().file("a", "").file("b", "").end();
    check(&two, limits(|limits| limits.entries = 1), "entries");
    let deep = Tar::new().file("a/b/c/d", "").end();
    check(&deep, limits(|limits| limits.depth = 3), "depth");
    let long = Tar::new()
        .pax(&[("comment", &[b'x'; 3000])])
        .file("a", "")
        .end();
    check(
        &long,
        limits(|limits| limits.extension_bytes = 1000),
        "extension_bytes",
    );
    let sparse = Tar::new()
        .pax(&[
            ("GNU.sparse.size", b"1099511627776"),
            ("GNU.sparse.map", b"0,0"),
        ])
        .file("bomb", "")
        .end();
    check(&sparse, Limits::default(), "layer_bytes");
}

/// There are so many directories that those before are finished already when something is put into them.
#[test]
fn directories_that_are_finished_early_are_the_same_in_the_end() {
    let limits = |bytes| {
        let mut limits = Limits::default();
        limits.deferred_bytes = bytes;
        limits
    };
    let directory = |name: &str, mode| {
        let mut head = Head::new(name, b'5');
        head.mode = mode;
        head
    };
    let archive = || {
        Tar::new()
            .head(&directory("a/", 0o750))
            .head(&directory("a/b/", 0o1711))
            .head(&directory("c/", 0o700))
            .file("file", "")
    };
    let archive_open = archive()
        .file("a/file", "")
        .hardlink("a/b/link", "file")
        .file("c/new/deep/file", "")
        .head(&directory("c/", 0o710))
        .symlink("link", "a/b")
        .file("link/through", "")
        .file("a/b/.wh.link", "")
        .end();
    let arena = Arena::new();
    fs::write(arena.root().join("there"), "").unwrap();
    let into = |archive: &[u8], bytes| {
        Unpacker::new(options(Whiteouts::Apply), limits(bytes))
            .unpack(archive, fs::File::open(arena.root()).unwrap())
    };
    into(&archive_open, 200).unwrap();
    for (name, wanted) in [("a", 0o750), ("a/b", 0o1711), ("c", 0o710)] {
        let path = arena.root().join(name);
        assert_eq!(mode(&path), wanted, "{name}");
        assert_eq!(
            fs::metadata(&path).unwrap().mtime(),
            1_000_000_000,
            "{name}"
        );
    }
    assert!(arena.root().join("a/b/through").exists());
    // What would keep us out cannot be finished before the end.
    let mut closed = archive();
    for number in 0..10 {
        closed = closed.head(&directory(&format!("closed{number}/"), 0o500));
    }
    let closed = closed.end();
    let error = into(&closed, 500).unwrap_err();
    assert_cause!(
        error,
        Error::Limit {
            setting: "deferred_bytes",
            ..
        }
    );
    into(&closed, 5000).unwrap();
    assert_eq!(mode(arena.root().join("closed9")), 0o500);
}

#[test]
fn what_links_copy_from_below_is_capped() {
    let (below, above) = (Arena::new(), Arena::new());
    let contents = [7; 3000];
    let lower = Tar::new()
        .file("one", contents)
        .hardlink("two", "one")
        .end();
    unpack(&lower, &below.root()).unwrap();
    let lower: std::os::fd::OwnedFd = fs::File::open(below.root()).unwrap().into();
    let options = options(Whiteouts::OverlayUser).below([std::sync::Arc::new(lower)]);
    let mut limits = Limits::default();
    limits.layer_bytes = 5000;
    let unpacker = Unpacker::new(options, limits);
    let into =
        |archive: Vec<u8>| unpacker.unpack(&archive[..], fs::File::open(above.root()).unwrap());
    // The second name leads to the copy that the first has made.
    let once = Tar::new().hardlink("a", "one").hardlink("b", "one").end();
    into(once).unwrap();
    assert_eq!(fs::read(above.root().join("b")).unwrap(), contents);
    fs::remove_file(above.root().join("one")).unwrap();
    let twice = Tar::new().hardlink("c", "one").hardlink("d", "two").end();
    let error = into(twice).unwrap_err();
    assert_cause!(
        error,
        Error::Limit {
            setting: "layer_bytes",
            ..
        }
    );
}
