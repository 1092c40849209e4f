//! Random trees come back as they were packed, and Python reads them so; random damage is refused or read as Python
//! reads it.

mod common;

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::damage::damaged;
use common::tar_crate::{both_read, disagreement};
use common::trees::{Node, config, entries, options, tree};
use common::{Arena, Head, Tar, checksum, run, unpack};
use oci_image::{LayerWriter, Limits, Metadata, TarKind, TarReader, Unpacker, Whiteouts, walk};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn what_is_packed_is_unpacked(tree in tree()) {
        let mut writer = LayerWriter::new(Vec::new(), options()).unwrap();
        writer.append_all(entries(&tree).into_iter().map(Ok)).unwrap();
        let (layer, bytes) = writer.finish().unwrap();
        let arena = Arena::new();
        let report = unpack(&bytes, &arena.root()).unwrap();
        prop_assert!(report.skipped.is_empty(), "{:?}", report.skipped);
        let mut writer = LayerWriter::new(Vec::new(), options()).unwrap();
        writer.append_all(walk(arena.root()).unwrap()).unwrap();
        let (again, _) = writer.finish().unwrap();
        prop_assert_eq!(&again.diff_id, &layer.diff_id);
        arena.assert_untouched();

        // Also with directories that are finished before the end.
        let arena = Arena::new();
        let mut limits = Limits::default();
        limits.deferred_bytes = 400;
        let root = fs::File::open(arena.root()).unwrap();
        match Unpacker::new(common::options(Whiteouts::Apply), limits).unpack(&bytes[..], root) {
            Ok(_) => {
                let mut writer = LayerWriter::new(Vec::new(), options()).unwrap();
                writer.append_all(walk(arena.root()).unwrap()).unwrap();
                prop_assert_eq!(writer.finish().unwrap().0.diff_id, layer.diff_id);
            }
            Err(error) => {
                let closed = |(node, metadata): &(Node, Metadata)| {
                    matches!(node, Node::Directory) && metadata.mode & 0o200 == 0
                };
                prop_assert!(tree.values().any(closed), "{error}");
            }
        }
    }

    #[test]
    fn damage_never_gets_out(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6)) {
        let archive = damaged(&damage);
        let arena = Arena::new();
        let _ = unpack(&archive, &arena.root());
        arena.assert_untouched();
    }
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// Name, kind, size and link of an entry.
type Seen = (String, String, u64, String);

/// The entries as we see them; nothing if we refuse the archive.
fn ours(archive: &[u8]) -> Option<Vec<Seen>> {
    let mut reader = TarReader::new(archive, &Limits::default());
    let mut list = Vec::new();
    loop {
        match reader.next_entry() {
            Ok(Some(entry)) => {
                let text = |bytes: &[u8]| hex(bytes);
                let kind = match entry.kind {
                    TarKind::Regular => "regular",
                    TarKind::Hardlink => "hard",
                    TarKind::Symlink => "symlink",
                    TarKind::Char => "char",
                    TarKind::Block => "block",
                    TarKind::Directory => "directory",
                    TarKind::Fifo => "fifo",
                };
                let size = if entry.kind == TarKind::Regular {
                    entry.size
                } else {
                    0
                };
                let link = match entry.kind {
                    TarKind::Hardlink | TarKind::Symlink => text(&entry.link),
                    _ => String::new(),
                };
                let path: &[u8] = &entry.path;
                let end = path
                    .iter()
                    .rposition(|&b| b != b'/')
                    .map_or(0, |last| last + 1);
                list.push((text(&path[..end]), kind.to_owned(), size, link));
            }
            Ok(None) => return Some(list),
            Err(_) => return None,
        }
    }
}

#[test]
fn a_hard_link_with_a_size_is_no_disagreement() {
    let mut link = Head::new("hard", b'1');
    link.link = b"file".to_vec();
    link.size = 512;
    // What follows is passed over by the one reader, and an entry to the others.
    let archive = Tar::new()
        .file("file", "")
        .head(&link)
        .file("empty", "")
        .end();
    assert_eq!(disagreement(&archive), None);
    assert!(ours(&archive).is_some_and(|list| list.len() == 3));
}

#[test]
fn a_number_that_ends_the_archive_for_another_reader_is_refused() {
    // Python looks at a device's numbers in headers of every format.
    let mut head = Head::new("file", b'0');
    head.magic = &[0; 8];
    let mut block = head.block();
    assert!(ours(&Tar(block.to_vec()).end()).is_some());
    block[335] = b'W';
    checksum(&mut block);
    assert_eq!(ours(&Tar(block.to_vec()).end()), None);
}

/// A fuzz target does the same with whatever it thinks of.
#[test]
fn what_we_read_the_tar_crate_reads_likewise() {
    let mut runner = TestRunner::new(config(1));
    let cases = config(4096).cases;
    let damage = prop::collection::vec(
        (any::<prop::sample::Index>(), any::<u8>(), Just(true)),
        1..4,
    );
    let mut compared = 0;
    for _ in 0..cases {
        let archive = damaged(&damage.new_tree(&mut runner).unwrap().current());
        if let Some((ours, theirs)) = disagreement(&archive) {
            let kept = std::env::temp_dir().join("cofferdam-disagreement.tar");
            fs::write(&kept, archive).unwrap();
            panic!("{}:\nours   {ours:?}\ntheirs {theirs:?}", kept.display());
        }
        compared += u32::from(both_read(&archive));
    }
    assert!(
        compared * 10 > cases,
        "damage is refused too often to compare anything"
    );
}

const PYTHON: &str = r#"
import json, os, sys, tarfile
kinds = {b"0": "regular", b"\0": "regular", b"7": "regular", b"S": "regular", b"1": "hard", b"2": "symlink",
         b"3": "char", b"4": "block", b"5": "directory", b"6": "fifo"}
text = lambda name: os.fsencode(name).hex()
for path in sys.argv[1:]:
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as archive:
            print(json.dumps([(text(m.name.rstrip("/")), kinds.get(m.type, "?"), m.size if m.isreg() else 0,
                               text(m.linkname) if m.issym() or m.islnk() else "") for m in archive]))
    except Exception as error:
        print("null")
"#;

/// Python takes the times in a GNU header for a prefix of the name, as POSIX headers have one; GNU tar and Go do not.
fn has_gnu_times(archive: &[u8]) -> bool {
    archive
        .chunks(512)
        .any(|block| block[257..].starts_with(b"ustar  ") && block[345] != 0)
}

/// Compares what Python reads of each archive with what we read.
fn python_agrees(archives: &[(PathBuf, Vec<Seen>)]) {
    for chunk in archives.chunks(500) {
        let lines = run(Command::new("python3")
            .args(["-c", PYTHON])
            .args(chunk.iter().map(|(path, _)| path)));
        assert_eq!(lines.lines().count(), chunk.len());
        for (line, (path, list)) in lines.lines().zip(chunk) {
            let theirs: Option<Vec<Seen>> = serde_json::from_str(line).unwrap();
            if theirs.as_ref() != Some(list) {
                let kept = std::env::temp_dir().join("cofferdam-disagreement.tar");
                fs::copy(path, &kept).unwrap();
                panic!("{}:\nours   {list:?}\ntheirs {theirs:?}", kept.display());
            }
        }
    }
}

#[test]
fn what_we_pack_python_reads_likewise() {
    let mut runner = TestRunner::new(config(1));
    let dir = tempfile::tempdir().unwrap();
    let mut archives = Vec::new();
    for case in 0..config(48).cases {
        let tree = tree().new_tree(&mut runner).unwrap().current();
        let mut writer = LayerWriter::new(Vec::new(), options()).unwrap();
        writer
            .append_all(entries(&tree).into_iter().map(Ok))
            .unwrap();
        let archive = writer.finish().unwrap().1;
        let list = ours(&archive).expect("what we wrote");
        // What was meant to be written, not only what we read of it.
        let names: Vec<_> = tree.keys().map(|path| hex(&path.join(&b'/'))).collect();
        let read: Vec<_> = list.iter().map(|(name, ..)| name.clone()).collect();
        assert_eq!(names, read, "{tree:?}");
        let path = dir.path().join(case.to_string());
        fs::write(&path, archive).unwrap();
        archives.push((path, list));
    }
    python_agrees(&archives);
}

#[test]
fn what_we_read_python_reads_likewise() {
    let cases = config(256).cases;
    let mut runner = TestRunner::new(config(1));
    let damage = prop::collection::vec(
        (any::<prop::sample::Index>(), any::<u8>(), Just(true)),
        1..4,
    );
    let dir = tempfile::tempdir().unwrap();
    let mut accepted = Vec::new();
    for case in 0..cases {
        let archive = damaged(&damage.new_tree(&mut runner).unwrap().current());
        if let Some(list) =
            ours(&archive).filter(|list| !list.is_empty() && !has_gnu_times(&archive))
        {
            let path = dir.path().join(case.to_string());
            fs::write(&path, archive).unwrap();
            accepted.push((path, list));
        }
    }
    assert!(
        accepted.len() * 10 > cases as usize,
        "damage is refused too often to compare anything"
    );
    python_agrees(&accepted);
}
