//! What only root can unpack: owners, devices, privileged attributes, overlayfs's own marks.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use common::{Arena, Head, Tar, assert_cause, unpack_with};
use oci_image::{IdRange, Ownership, UnpackOptions, Whiteouts};

fn owned(name: &str, flag: u8, uid: u64) -> Head {
    let mut head = Head::new(name, flag);
    head.uid = uid;
    head
}

#[test]
#[ignore = "needs root"]
fn owners_and_devices_are_kept() {
    let arena = Arena::new();
    let root = arena.root();
    let device = |name: &str, flag, major, minor| {
        let mut head = owned(name, flag, 7);
        head.device = (major, minor);
        head.mode = 0o660;
        head
    };
    let mut suid = owned("suid", b'0', 1000);
    suid.mode = 0o6755;
    let mut link = owned("link", b'2', 1002);
    link.link = b"nowhere".to_vec();
    let archive = Tar::new()
        .head(&owned("./", b'5', 3))
        .head(&owned("dir/", b'5', 1001))
        .head(&suid)
        .head(&link)
        .head(&device("null", b'3', 1, 3))
        .head(&device("loop", b'4', 7, 200))
        .head(&owned("fifo", b'6', 9))
        .pax(&[("uid", b"3000000"), ("gid", b"3000001")])
        .file("large", "")
        .end();
    let report = unpack_with(&archive, &root, &UnpackOptions::new(Whiteouts::Apply)).unwrap();
    assert!(report.skipped.is_empty());
    let stat = |name: &str| fs::symlink_metadata(root.join(name)).unwrap();
    for (name, uid) in [
        (".", 3),
        ("dir", 1001),
        ("suid", 1000),
        ("link", 1002),
        ("null", 7),
        ("loop", 7),
        ("fifo", 9),
    ] {
        assert_eq!((stat(name).uid(), stat(name).gid()), (uid, uid), "{name}");
    }
    assert_eq!(
        (stat("large").uid(), stat("large").gid()),
        (3_000_000, 3_000_001)
    );
    assert_eq!(
        stat("suid").mode() & 0o7777,
        0o6755,
        "giving a file away clears these bits; they are set after"
    );
    assert!(stat("null").file_type().is_char_device());
    assert!(stat("loop").file_type().is_block_device());
    assert_eq!(stat("null").rdev(), rustix::fs::makedev(1, 3));
    assert_eq!(stat("loop").rdev(), rustix::fs::makedev(7, 200));
    assert_eq!(stat("null").mode() & 0o7777, 0o660);
}

#[test]
#[ignore = "needs root"]
fn owners_are_mapped() {
    let arena = Arena::new();
    let ranges = vec![
        IdRange {
            inside: 0,
            outside: 1000,
            count: 1,
        },
        IdRange {
            inside: 1,
            outside: 100_000,
            count: 65535,
        },
    ];
    let options = UnpackOptions::new(Whiteouts::Apply).ownership(Ownership::Mapped {
        uids: ranges.clone(),
        gids: ranges,
    });
    let archive = Tar::new()
        .head(&owned("a", b'0', 0))
        .head(&owned("made/b", b'0', 33))
        .end();
    unpack_with(&archive, &arena.root(), &options).unwrap();
    let uid = |name: &str| fs::symlink_metadata(arena.root().join(name)).unwrap().uid();
    assert_eq!(
        (uid("a"), uid("made"), uid("made/b")),
        (1000, 1000, 100_032)
    );
    let error = unpack_with(
        &Tar::new().head(&owned("c", b'0', 70_000)).end(),
        &arena.root(),
        &options,
    )
    .unwrap_err();
    assert_cause!(error, oci_image::Error::UnmappedId { id: 70_000, .. });
}

#[test]
#[ignore = "needs root"]
fn capabilities_survive_writing_and_giving_away() {
    let arena = Arena::new();
    // Version 2, effective, cap_net_bind_service permitted.
    let capability =
        b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let mut head = owned("ping", b'0', 1000);
    head.size = 4;
    let archive = Tar::new()
        .pax(&[("SCHILY.xattr.security.capability", capability)])
        .head(&head)
        .data(b"ping")
        .end();
    unpack_with(
        &archive,
        &arena.root(),
        &UnpackOptions::new(Whiteouts::Apply),
    )
    .unwrap();
    let mut value = [0u8; 64];
    let n = rustix::fs::getxattr(
        arena.root().join("ping"),
        "security.capability",
        &mut value[..],
    )
    .unwrap();
    assert_eq!(&value[..n], capability);
}

#[test]
#[ignore = "needs root"]
fn whiteouts_for_overlayfs() {
    let arena = Arena::new();
    // Attributes `trusted.*` need a filesystem that has them; tmpfs does.
    let archive = Tar::new()
        .file("d/.wh.gone", "")
        .dir("o/")
        .file("o/.wh..wh..opq", "")
        .end();
    unpack_with(
        &archive,
        &arena.root(),
        &UnpackOptions::new(Whiteouts::Overlay),
    )
    .unwrap();
    let stat = fs::symlink_metadata(arena.root().join("d/gone")).unwrap();
    assert!(stat.file_type().is_char_device() && stat.rdev() == 0);
    let mut value = [0u8; 8];
    let n = rustix::fs::getxattr(
        arena.root().join("o"),
        "trusted.overlay.opaque",
        &mut value[..],
    )
    .unwrap();
    assert_eq!(&value[..n], b"y");
}

#[test]
#[ignore = "needs root"]
fn a_layer_takes_from_the_layers_below_what_it_relies_on() {
    let (below, above) = (Arena::new(), Arena::new());
    let mut tmp = owned("tmp/", b'5', 5);
    tmp.mode = 0o1777;
    let lower = Tar::new()
        .head(&tmp)
        .file("tmp/file", "below")
        .symlink("tmp/link", "file")
        .file("gone", "")
        .end();
    unpack_with(
        &lower,
        &below.root(),
        &UnpackOptions::new(Whiteouts::Overlay),
    )
    .unwrap();
    let lower = Arc::new(File::open(below.root()).unwrap().into());
    let options = UnpackOptions::new(Whiteouts::Overlay).below([lower]);
    let upper = Tar::new()
        .file("tmp/new", "")
        .hardlink("hard", "tmp/file")
        .hardlink("soft", "tmp/link")
        .end();
    unpack_with(&upper, &above.root(), &options).unwrap();
    let stat = fs::metadata(above.root().join("tmp")).unwrap();
    assert_eq!(
        (stat.uid(), stat.mode() & 0o7777, stat.mtime()),
        (5, 0o1777, 1_000_000_000)
    );
    assert_eq!(fs::read(above.root().join("hard")).unwrap(), b"below");
    assert_eq!(
        fs::metadata(above.root().join("tmp/file")).unwrap().nlink(),
        2
    );
    assert_eq!(
        fs::read_link(above.root().join("soft")).unwrap(),
        Path::new("file")
    );
    let hidden = Tar::new()
        .file(".wh.gone", "")
        .hardlink("link", "gone")
        .end();
    let error = unpack_with(&hidden, &above.root(), &options).unwrap_err();
    assert_cause!(error, oci_image::Error::HardlinkTarget { .. });
}
