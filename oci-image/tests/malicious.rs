//! A corpus of layers that mean harm. None writes outside the root, changes a file outside, or exhausts memory.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};

use common::{Arena, Head, Tar, assert_cause, options, unpack, unpack_with};
use oci_image::{Error, Limits, MediaType, TarProblem, Unpacker, Whiteouts};

/// Unpacks into a fresh arena, both ways; the neighbour stays as it was. Returns what was said the second time.
fn attack(archive: &[u8]) -> Result<(), Error> {
    let mut result = Ok(());
    for whiteouts in [Whiteouts::OverlayUser, Whiteouts::Apply] {
        let arena = Arena::new();
        result = unpack_with(archive, &arena.root(), &options(whiteouts)).map(drop);
        arena.assert_untouched();
    }
    result
}

#[track_caller]
fn refused(archive: &[u8], why: impl Fn(&Error) -> bool) {
    let error = attack(archive).expect_err("it was taken");
    assert!(why(error.cause()), "{error}");
}

fn tar_problem(error: &Error) -> Option<&TarProblem> {
    match error {
        Error::Tar { problem, .. } => Some(problem),
        _ => None,
    }
}

#[track_caller]
fn ambiguous(archive: &[u8]) {
    refused(archive, |error| {
        matches!(tar_problem(error), Some(TarProblem::Ambiguous(_)))
    });
}

#[test]
fn names_that_climb() {
    for name in [
        "../outside/secret",
        "a/../../outside/secret",
        "..",
        "a/..",
        "./../x",
        "/../outside/secret",
    ] {
        refused(&Tar::new().file(name, "owned").end(), |error| {
            matches!(error, Error::UnsafePath { .. })
        });
    }
}

#[test]
fn names_that_climb_in_extended_headers() {
    let climb = b"../outside/secret";
    refused(
        &Tar::new().pax(&[("path", climb)]).file("a", "owned").end(),
        |error| matches!(error, Error::UnsafePath { .. }),
    );
    let long = Tar::new()
        .with_data("././@LongLink", b'L', climb)
        .file("a", "owned")
        .end();
    refused(&long, |error| matches!(error, Error::UnsafePath { .. }));
    let mut prefixed = Head::new("secret", b'0').block();
    prefixed[345..355].copy_from_slice(b"../outside");
    common::checksum(&mut prefixed);
    refused(&Tar(prefixed.to_vec()).end(), |error| {
        matches!(error, Error::UnsafePath { .. })
    });
}

#[test]
fn absolute_names_are_in_the_root() {
    let arena = Arena::new();
    let name = arena.outside().join("secret");
    let name = name.to_str().unwrap();
    unpack(&Tar::new().file(name, "owned").end(), &arena.root()).unwrap();
    arena.assert_untouched();
    assert_eq!(
        fs::read(arena.root().join(name.trim_start_matches('/'))).unwrap(),
        b"owned"
    );
}

#[test]
fn a_symlink_and_a_file_through_it() {
    for target in [
        "../outside",
        "../../../../../../../../tmp",
        "/",
        "/proc/self/cwd",
        "/proc/self/root",
        ".",
    ] {
        attack(
            &Tar::new()
                .symlink("link", target)
                .file("link/secret", "owned")
                .end(),
        )
        .ok();
        attack(
            &Tar::new()
                .symlink("link", target)
                .file("link/deep/secret", "owned")
                .end(),
        )
        .ok();
    }
    let arena = Arena::new();
    let outside = arena.outside();
    let archive = Tar::new()
        .symlink("link", outside.to_str().unwrap())
        .file("link/secret", "owned")
        .end();
    unpack(&archive, &arena.root()).unwrap();
    arena.assert_untouched();
}

#[test]
fn a_symlink_with_the_name_of_the_file_that_follows() {
    let arena = Arena::new();
    let secret = arena.outside().join("secret");
    let archive = Tar::new()
        .symlink("a", secret.to_str().unwrap())
        .file("a", "owned")
        .end();
    unpack(&archive, &arena.root()).unwrap();
    arena.assert_untouched();
    assert!(
        fs::symlink_metadata(arena.root().join("a"))
            .unwrap()
            .is_file()
    );
}

#[test]
fn symlinks_that_were_there_before() {
    // A layer below, or somebody else, left them.
    let arena = Arena::new();
    symlink(arena.outside(), arena.root().join("dir")).unwrap();
    symlink(arena.outside().join("secret"), arena.root().join("file")).unwrap();
    let archive = Tar::new()
        .file("file", "owned")
        .file("dir/secret", "owned")
        .file("dir/.wh.secret", "")
        .file("dir/.wh..wh..opq", "")
        .end();
    unpack(&archive, &arena.root()).unwrap();
    arena.assert_untouched();
}

#[test]
fn a_directory_entry_over_a_symlink_does_not_change_its_target() {
    let arena = Arena::new();
    let before = fs::metadata(arena.outside()).unwrap();
    symlink(arena.outside(), arena.root().join("dir")).unwrap();
    let mut head = Head::new("dir/", b'5');
    head.mode = 0o777;
    unpack(
        &Tar::new().head(&head).file("dir/x", "").end(),
        &arena.root(),
    )
    .unwrap();
    arena.assert_untouched();
    let after = fs::metadata(arena.outside()).unwrap();
    assert_eq!(
        (before.mode(), before.mtime()),
        (after.mode(), after.mtime())
    );
    assert!(
        fs::symlink_metadata(arena.root().join("dir"))
            .unwrap()
            .is_dir()
    );
}

#[test]
fn a_directory_replaced_by_a_symlink_before_its_metadata_is_set() {
    let arena = Arena::new();
    let before = fs::metadata(arena.outside()).unwrap();
    let mut head = Head::new("dir/", b'5');
    head.mode = 0o777;
    let archive = Tar::new()
        .head(&head)
        .symlink("dir", arena.outside().to_str().unwrap())
        .end();
    unpack(&archive, &arena.root()).unwrap();
    let after = fs::metadata(arena.outside()).unwrap();
    assert_eq!(
        (before.mode(), before.mtime()),
        (after.mode(), after.mtime())
    );
}

#[test]
fn hard_links_to_what_is_outside() {
    let arena = Arena::new();
    let outside = arena.outside();
    for target in [
        "../outside/secret",
        outside.join("secret").to_str().unwrap(),
        "/etc/passwd",
        "..",
        "/",
        "",
    ] {
        let result = unpack(
            &Tar::new().hardlink("a", target).file("a", "owned").end(),
            &arena.root(),
        );
        assert!(
            matches!(
                result.as_ref().map_err(Error::cause),
                Err(Error::UnsafePath { .. } | Error::HardlinkTarget { .. })
            ),
            "{target}: {result:?}"
        );
        arena.assert_untouched();
    }
    // Through a symlink, to a symlink, and writing through the latter.
    let through = Tar::new()
        .symlink("dir", outside.to_str().unwrap())
        .hardlink("a", "dir/secret")
        .end();
    assert!(matches!(
        unpack(&through, &arena.root()).unwrap_err().cause(),
        Error::HardlinkTarget { .. }
    ));
    let to = Tar::new()
        .symlink("s", outside.join("secret").to_str().unwrap())
        .hardlink("h", "s")
        .file("h", "owned")
        .end();
    unpack(&to, &arena.root()).unwrap();
    arena.assert_untouched();
}

#[test]
fn a_hard_link_to_itself_and_to_a_directory() {
    let arena = Arena::new();
    unpack(
        &Tar::new().file("a", "kept").hardlink("a", "a").end(),
        &arena.root(),
    )
    .unwrap();
    assert_eq!(fs::read(arena.root().join("a")).unwrap(), b"kept");
    let error = unpack(
        &Tar::new().dir("d/").hardlink("l", "d").end(),
        &arena.root(),
    )
    .unwrap_err();
    assert_cause!(error, Error::Unpack { .. });
}

#[test]
fn the_root_is_replaced() {
    for name in [".", "./", "/", "./.", "//"] {
        for flag in [b'2', b'1', b'6', b'3', b'\0'] {
            // Afresh: the root may get the entry's mode.
            let arena = Arena::new();
            let mut head = Head::new(name, flag);
            head.link = b"../outside".to_vec();
            let result = unpack(
                &Tar::new().head(&head).file("secret", "owned").end(),
                &arena.root(),
            );
            if flag != b'\0' || name == "." || name == "./." {
                assert!(
                    matches!(
                        result.as_ref().map_err(Error::cause),
                        Err(Error::RootNotDirectory { .. })
                    ),
                    "{name} {}: {result:?}",
                    char::from(flag)
                );
            }
            arena.assert_untouched();
        }
    }
}

#[test]
fn whiteouts_that_climb_or_name_nothing() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..."] {
        refused(&Tar::new().file(name, "").end(), |error| {
            matches!(error, Error::BadWhiteout { .. })
        });
    }
    for name in [
        "../.wh.outside",
        "a/../../.wh.outside",
        "../.wh..wh..opq",
        "../outside/.wh..wh..opq",
    ] {
        refused(&Tar::new().file(name, "").end(), |error| {
            matches!(error, Error::UnsafePath { .. })
        });
    }
    for link in ["..", "/", "../outside"] {
        attack(
            &Tar::new()
                .symlink("up", link)
                .file("up/.wh.outside", "")
                .end(),
        )
        .unwrap();
        attack(
            &Tar::new()
                .symlink("up", link)
                .file("up/.wh..wh..opq", "")
                .end(),
        )
        .unwrap();
    }
}

#[test]
fn device_nodes_are_made_only_when_asked_for() {
    for flag in [b'3', b'4'] {
        let mut head = Head::new("disk", flag);
        head.device = (8, 0);
        let arena = Arena::new();
        let report = unpack(&Tar::new().head(&head).end(), &arena.root()).unwrap();
        assert_eq!(report.skipped.len(), 1);
        assert!(fs::symlink_metadata(arena.root().join("disk")).is_err());
    }
}

#[test]
fn sizes_that_are_negative_or_huge() {
    let with_size = |field: [u8; 12]| {
        let mut block = Head::new("a", b'0').block();
        block[124..136].copy_from_slice(&field);
        common::checksum(&mut block);
        Tar(block.to_vec()).data(b"data").end()
    };
    let number = |error: &Error| matches!(tar_problem(error), Some(TarProblem::Number { .. }));
    refused(&with_size([0xff; 12]), number);
    refused(&with_size(*b"-0000000001\0"), number);
    refused(&with_size(*b"99999999999\0"), number);
    let mut huge = [0u8; 12];
    huge[0] = 0x80;
    huge[4..].fill(0x7f);
    refused(&with_size(huge), |error| {
        matches!(tar_problem(error), Some(TarProblem::Truncated))
    });
    let mut larger = [0xff; 12];
    larger[0] = 0xbf;
    refused(&with_size(larger), number);
    for size in [
        &b"-1"[..],
        b"18446744073709551615",
        b"9223372036854775808",
        b"99999999999999999999",
        b"1e3",
        b" 1",
    ] {
        refused(
            &Tar::new().pax(&[("size", size)]).file("a", "").end(),
            number,
        );
    }
    // The end of the address space, in an extended header that would have to be held in memory.
    let mut head = Head::new("x", b'x');
    head.size = 0o77_777_777_777;
    refused(&Tar::new().head(&head).end(), |error| {
        matches!(
            error,
            Error::Limit {
                setting: "extension_bytes",
                ..
            }
        )
    });
    for flag in [b'L', b'K', b'g'] {
        let mut head = Head::new("x", flag);
        head.size = 1 << 30;
        refused(&Tar::new().head(&head).end(), |error| {
            matches!(
                error,
                Error::Limit {
                    setting: "extension_bytes",
                    ..
                }
            )
        });
    }
}

#[test]
fn the_size_in_the_extended_header_counts() {
    // One reader that looks at the header's size sees `hidden`, all others skip it as contents of `a`.
    let inner = Tar::new().file("hidden", "owned").end();
    let mut head = Head::new("a", b'0');
    head.size = 0;
    let archive = Tar::new()
        .pax(&[("size", inner.len().to_string().as_bytes())])
        .head(&head)
        .data(&inner)
        .file("b", "")
        .end();
    let arena = Arena::new();
    unpack(&archive, &arena.root()).unwrap();
    assert!(!arena.root().join("hidden").exists());
    assert!(arena.root().join("b").exists());
    assert_eq!(fs::read(arena.root().join("a")).unwrap(), inner);
}

#[test]
fn what_readers_disagree_about_is_refused() {
    // Contents of things that have none: some readers skip them, others read headers in them.
    for flag in [b'2', b'3', b'4', b'5', b'6'] {
        let inner = Tar::new().file("hidden", "owned").end();
        let name = if flag == b'5' { "a/" } else { "a" };
        ambiguous(&Tar::new().with_data(name, flag, &inner).end());
    }
    ambiguous(&Tar::new().file("directory/", "").end());
    ambiguous(
        &Tar::new()
            .pax(&[("path", b"a")])
            .pax(&[("path", b"b")])
            .file("c", "")
            .end(),
    );
    ambiguous(
        &Tar::new()
            .with_data("L", b'L', "a")
            .with_data("L", b'L', "b")
            .file("c", "")
            .end(),
    );
    ambiguous(
        &Tar::new()
            .with_data("L", b'L', "a")
            .pax(&[("path", b"b")])
            .file("c", "")
            .end(),
    );
    ambiguous(
        &Tar::new()
            .with_data("g", b'g', "10 path=a\n")
            .file("c", "")
            .end(),
    );
    // A name for a sparse file counts to some readers whatever the file is.
    for records in [
        &[("GNU.sparse.name", &b"other"[..])][..],
        &[("GNU.sparse.minor", b"0")],
        &[("GNU.sparse.map", b"0,4")],
        &[("GNU.sparse.offset", b"0"), ("GNU.sparse.numbytes", b"4")],
        &[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"4"),
            ("GNU.sparse.map", b"0,4"),
        ],
        &[
            ("GNU.sparse.size", b"4"),
            ("GNU.sparse.map", b"0,4"),
            ("GNU.sparse.name", b"directory/"),
        ],
    ] {
        ambiguous(&Tar::new().pax(records).file("c", "abcd").end());
    }
    ambiguous(
        &Tar::new()
            .with_data("L", b'L', "a")
            .pax(&[
                ("GNU.sparse.size", b"4"),
                ("GNU.sparse.map", b"0,4"),
                ("GNU.sparse.name", b"b"),
            ])
            .file("c", "abcd")
            .end(),
    );
}

#[test]
fn extended_headers_that_lie_about_their_length() {
    for data in [
        "30 path=a\n",
        "9 path=ab\n",
        "11 path=\n",
        "x path=a\n",
        "10 path a\n",
        "10 path=a\n10 path=b",
    ] {
        let archive = Tar::new().with_data("x", b'x', data).file("a", "").end();
        refused(&archive, |error| {
            matches!(tar_problem(error), Some(TarProblem::Pax(_)))
        });
    }
    let zero = Tar::new().pax(&[("path", b"a\0b")]).file("a", "").end();
    refused(&zero, |error| {
        matches!(tar_problem(error), Some(TarProblem::ZeroInName))
    });
    let zero = Tar::new()
        .pax(&[
            ("GNU.sparse.size", b"4"),
            ("GNU.sparse.map", b"0,4"),
            ("GNU.sparse.name", b"a\0b"),
        ])
        .file("c", "abcd")
        .end();
    refused(&zero, |error| {
        matches!(tar_problem(error), Some(TarProblem::ZeroInName))
    });
    let alone = Tar::new().pax(&[("path", b"a")]).end();
    refused(&alone, |error| {
        matches!(tar_problem(error), Some(TarProblem::Pax(_)))
    });
}

#[test]
fn unknown_and_obsolete_types() {
    for flag in [b'8', b'V', b'M', b'D', b'N', b'A', b'Z', 0xff] {
        refused(&Tar::new().head(&Head::new("a", flag)).end(), |error| {
            matches!(tar_problem(error), Some(TarProblem::Type(_)))
        });
    }
}

#[test]
fn a_wrong_checksum() {
    let mut archive = Tar::new().file("a", "x").end();
    archive[0] = b'b';
    refused(&archive, |error| {
        matches!(tar_problem(error), Some(TarProblem::Checksum { .. }))
    });
}

#[test]
fn archives_that_end_early() {
    let whole = Tar::new()
        .pax(&[("path", &[b'p'; 150])])
        .file("a", [1; 2000])
        .dir("d/")
        .with_data("././@LongLink", b'L', [b'l'; 600])
        .file("b", [2; 1000])
        .end();
    let end = whole.len() - 1024;
    // Every block's edges, and some places within.
    let within = (1..end).step_by(173);
    for cut in (512..end)
        .step_by(512)
        .flat_map(|edge| [edge - 1, edge, edge + 1])
        .chain(within)
    {
        // Between entries is a good end for every reader.
        let result = attack_once(&whole[..cut]);
        if !cut.is_multiple_of(512) {
            assert!(result.is_err(), "cut at {cut} of {end}");
        }
    }
}

fn attack_once(archive: &[u8]) -> Result<(), Error> {
    let arena = Arena::new();
    unpack(archive, &arena.root()).map(drop)
}

#[test]
fn nothing_after_the_end_is_read() {
    let mut archive = Tar::new().file("a", "").end();
    archive.extend(Tar::new().file("hidden", "owned").end());
    let arena = Arena::new();
    unpack(&archive, &arena.root()).unwrap();
    assert!(!arena.root().join("hidden").exists());
}

#[test]
fn links_in_a_circle() {
    let archive = Tar::new()
        .symlink("a", "b")
        .symlink("b", "a")
        .file("a/file", "")
        .end();
    refused(&archive, |error| matches!(error, Error::Unpack { .. }));
    let itself = Tar::new().symlink("a", "a/a").file("a/x/y", "").end();
    refused(&itself, |error| matches!(error, Error::Unpack { .. }));
}

#[test]
fn a_file_where_a_directory_is_needed() {
    let archive = Tar::new().file("a", "").file("a/b", "").end();
    refused(&archive, |error| matches!(error, Error::Unpack { .. }));
}

#[test]
fn names_that_no_filesystem_takes() {
    let long = "n".repeat(300);
    refused(
        &Tar::new()
            .pax(&[("path", long.as_bytes())])
            .file("a", "")
            .end(),
        |error| matches!(error, Error::Unpack { .. }),
    );
    let deep = "d/".repeat(3000);
    refused(
        &Tar::new()
            .pax(&[("path", format!("{deep}f").as_bytes())])
            .file("a", "")
            .end(),
        |error| {
            matches!(
                error,
                Error::Limit {
                    setting: "depth",
                    ..
                }
            )
        },
    );
}

/// Each name is short; together they would lead deeper than a directory can be removed again.
#[test]
fn links_that_lead_ever_deeper() {
    let down = "d/".repeat(200);
    let first = || {
        Tar::new()
            .pax(&[("path", format!("{down}f").as_bytes())])
            .file("f", "")
            .pax(&[("linkpath", down.as_bytes())])
            .symlink("link", "")
    };
    let too_deep = |error: &Error| match error {
        Error::Unpack { source, .. } => source.kind() == std::io::ErrorKind::InvalidFilename,
        _ => false,
    };
    // All at once, and one by one.
    let name = format!("link/{down}f");
    refused(
        &first()
            .pax(&[("path", name.as_bytes())])
            .file("f", "")
            .end(),
        too_deep,
    );
    let mut archive = first();
    for number in 0..100 {
        let name = format!("link/{}", "e/".repeat(number + 1));
        archive = archive.pax(&[("path", name.as_bytes())]).dir("e/");
    }
    refused(&archive.end(), too_deep);
}

#[test]
fn sparse_maps_that_lie() {
    let sparse = |map: &[u8], size: &[u8]| {
        Tar::new()
            .pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", size)])
            .file("a", "abcd")
            .end()
    };
    for (map, size) in [
        (&b"0,5"[..], &b"10"[..]),
        (b"0,2,1,2", b"10"),
        (b"5,2,0,2", b"10"),
        (b"8,4", b"10"),
        (b"18446744073709551615,4", b"10"),
        (b"0,4,", b"10"),
        (b"0", b"10"),
        (b"0,-4", b"10"),
    ] {
        refused(&sparse(map, size), |error| {
            matches!(tar_problem(error), Some(TarProblem::Sparse(_)))
        });
    }
    for (major, minor) in [
        (&b"2"[..], &b"0"[..]),
        (b"1", b"1"),
        (b"0", b"2"),
        (b"1", b""),
    ] {
        let archive = Tar::new()
            .pax(&[
                ("GNU.sparse.major", major),
                ("GNU.sparse.minor", minor),
                ("GNU.sparse.realsize", b"0"),
            ])
            .file("a", "")
            .end();
        refused(&archive, |error| {
            matches!(tar_problem(error), Some(TarProblem::Sparse(_)))
        });
    }
    let mut map = b"99999999999\n".to_vec();
    map.resize(512, 0);
    let endless = Tar::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"10"),
        ])
        .file("a", map)
        .end();
    refused(&endless, |error| {
        matches!(tar_problem(error), Some(TarProblem::Sparse(_)))
    });
}

#[test]
fn bombs_stop_at_the_caps() {
    let dir = tempfile::tempdir().unwrap();
    // 64 MiB of zeros in one file; as gzip they are 64 KiB.
    let mut plain = Vec::new();
    plain.extend_from_slice(&{
        let mut head = Head::new("zeros", b'0');
        head.size = 64 << 20;
        head.block()
    });
    plain.resize(plain.len() + (64 << 20) + 1024, 0);
    for stored in [common::gzip(&plain), common::zstd(&plain)] {
        let path = dir.path().join(stored.len().to_string());
        common::layout(
            &path,
            "x",
            &[(MediaType::OCI_LAYER_GZIP, plain.clone(), stored)],
        );
        let image = common::open_with(&path, |limits| limits.layer_bytes = 1 << 20);
        let arena = Arena::new();
        let error = arena.unpack(&image).unwrap_err();
        assert_cause!(
            error,
            Error::Limit {
                setting: "layer_bytes",
                ..
            }
        );
        assert!(fs::metadata(arena.root().join("zeros")).unwrap().len() <= 1 << 20);
    }
}

#[test]
fn a_parent_swapped_for_a_symlink_while_unpacking() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let arena = Arena::new();
    let root = arena.root();
    fs::create_dir(root.join("dir")).unwrap();
    symlink(arena.outside(), root.join("swap")).unwrap();
    let mut archive = Tar::new();
    for i in 0..100 {
        // Names in turn, so that the directory is looked up each time.
        archive = archive
            .file(format!("dir/f{i}"), "owned")
            .file(format!("other/f{i}"), "");
    }
    let archive = archive.end();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (dir, swap) = (root.join("dir"), root.join("swap"));
            while !done.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &dir,
                    rustix::fs::CWD,
                    &swap,
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        for _ in 0..2 {
            // It may fail or not; what counts is where it writes.
            let _ = Unpacker::new(options(Whiteouts::Apply), Limits::default())
                .unpack(archive.as_slice(), File::open(&root).unwrap());
        }
        done.store(true, Ordering::Relaxed);
    });
    arena.assert_untouched();
}
