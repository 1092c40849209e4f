//! Random trees come back as they were packed; random damage is refused or read as Python reads it.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{Arena, Head, Tar, unpack};
use oci_image::{
    Compression, Contents, Entry, EntryKind, LayerWriter, Limits, Metadata, PackOptions, TarKind,
    TarReader, walk,
};
use proptest::prelude::*;

/// A moderate number of cases unless `PROPTEST_CASES` asks for more.
fn config(cases: u32) -> ProptestConfig {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return ProptestConfig::default();
    }
    ProptestConfig {
        cases,
        ..ProptestConfig::default()
    }
}

#[derive(Clone, Debug)]
enum Node {
    Directory,
    File(Vec<u8>),
    Symlink(Vec<u8>),
    Fifo,
    /// Another name of an earlier file, which one is told modulo their number.
    Hardlink(usize),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => "[a-d]{1,2}".prop_map(String::into_bytes),
        1 => "[ -~]{1,12}".prop_map(String::into_bytes),
        1 => prop::collection::vec(1u8..=255, 1..20),
        1 => (90usize..255).prop_map(|length| vec![b'n'; length]),
    ]
    .prop_filter("a name that a file can have", |name| {
        !name.contains(&b'/') && name != b"." && name != b".." && !name.starts_with(b".wh.")
    })
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        3 => Just(Node::Directory),
        4 => prop::collection::vec(any::<u8>(), 0..1500).prop_map(Node::File),
        2 => prop::collection::vec(1u8..=255, 1..300).prop_map(Node::Symlink),
        1 => Just(Node::Fifo),
        2 => any::<usize>().prop_map(Node::Hardlink),
    ]
}

fn metadata() -> impl Strategy<Value = Metadata> {
    let xattrs = prop::collection::btree_map(
        "user\\.[a-z]{1,8}",
        prop::collection::vec(any::<u8>(), 0..80),
        0..3,
    );
    // Readable and searchable by the owner, so that every user can pack it again.
    (
        0u32..0o1000,
        -2_000_000_000i64..4_000_000_000,
        0u32..1_000_000_000,
        xattrs,
    )
        .prop_map(|(mode, seconds, nanos, xattrs)| {
            let mut metadata = Metadata::new(mode | 0o500);
            metadata.mtime = (seconds, nanos / 1000 * 1000);
            metadata.xattrs = xattrs
                .into_iter()
                .map(|(key, value)| (key.into_bytes(), value))
                .collect();
            metadata
        })
}

type Tree = BTreeMap<Vec<Vec<u8>>, (Node, Metadata)>;

fn tree() -> impl Strategy<Value = Tree> {
    let path = prop::collection::vec(name(), 1..4);
    prop::collection::vec((path, node(), metadata()), 1..30).prop_map(|list| {
        let mut tree = Tree::new();
        for (path, node, metadata) in list {
            // What is above an entry is a directory.
            if (1..path.len()).any(|n| {
                tree.get(&path[..n])
                    .is_some_and(|(node, _)| !matches!(node, Node::Directory))
            }) {
                continue;
            }
            for n in 1..path.len() {
                tree.entry(path[..n].to_vec())
                    .or_insert((Node::Directory, Metadata::new(0o755)));
            }
            let taken = tree.keys().any(|known| known.starts_with(&path));
            if !taken {
                tree.insert(path, (node, metadata));
            }
        }
        tree
    })
}

/// The entries in the order in which a directory would be walked.
fn entries(tree: &Tree) -> Vec<Entry> {
    use std::os::unix::ffi::OsStringExt;
    let path = |parts: &[Vec<u8>]| PathBuf::from(std::ffi::OsString::from_vec(parts.join(&b'/')));
    let mut entries = Vec::new();
    let mut files: Vec<(PathBuf, Metadata)> = Vec::new();
    for (parts, (node, metadata)) in tree {
        let mut metadata = metadata.clone();
        let kind = match node {
            Node::Directory => EntryKind::Directory,
            Node::File(bytes) => EntryKind::Regular(Contents::Bytes(bytes.clone())),
            Node::Symlink(target) => {
                EntryKind::Symlink(std::ffi::OsString::from_vec(target.clone()).into())
            }
            Node::Fifo => EntryKind::Fifo,
            Node::Hardlink(_) if files.is_empty() => {
                EntryKind::Regular(Contents::Bytes(Vec::new()))
            }
            Node::Hardlink(which) => {
                let (target, of_target) = &files[which % files.len()];
                metadata = of_target.clone();
                EntryKind::Hardlink(target.clone())
            }
        };
        match kind {
            EntryKind::Symlink(_) => {
                metadata.mode = 0o777;
                metadata.xattrs.clear();
            }
            EntryKind::Fifo => metadata.xattrs.clear(),
            EntryKind::Regular(_) => files.push((path(parts), metadata.clone())),
            _ => {}
        }
        entries.push(Entry {
            path: path(parts),
            kind,
            metadata,
        });
    }
    entries
}

fn options() -> PackOptions {
    PackOptions::new()
        .compression(Compression::None)
        .owner(0, 0)
}

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
        prop_assert_eq!(again.diff_id, layer.diff_id);
        arena.assert_untouched();
    }

    #[test]
    fn damage_never_gets_out(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..6)) {
        let archive = damaged(&damage);
        let arena = Arena::new();
        let _ = unpack(&archive, &arena.root());
        arena.assert_untouched();
    }
}

/// An archive of all formats.
fn sample() -> Vec<u8> {
    let mut gnu = Head::new("gnu", b'0');
    gnu.magic = b"ustar  \0";
    Tar::new()
        .dir("dir/")
        .file("dir/file", "contents")
        .symlink("dir/link", "../../outside/secret")
        .hardlink("hard", "dir/file")
        .pax(&[("path", b"dir/pax"), ("mtime", b"1.5"), ("size", b"3")])
        .file("short", "abc")
        .with_data("././@LongLink", b'L', [b'l'; 120])
        .file("cut", "long")
        .head(&gnu)
        .head(&Head::new("fifo", b'6'))
        .file("dir/.wh.gone", "")
        .file("last", [7; 600])
        .end()
}

/// Changes bytes; where it says so, makes the header's sum right again, so that the change gets further.
fn damaged(damage: &[(prop::sample::Index, u8, bool)]) -> Vec<u8> {
    let mut archive = sample();
    for (at, byte, mend) in damage {
        let at = at.index(archive.len());
        archive[at] = *byte;
        let start = at / 512 * 512;
        if let (true, Ok(block)) = (
            *mend,
            <&mut [u8; 512]>::try_from(&mut archive[start..start + 512]),
        ) {
            common::checksum(block);
        }
    }
    archive
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// Name, kind, size and link of each entry, as we see them; nothing if we refuse the archive.
fn ours(archive: &[u8]) -> Option<Vec<(String, String, u64, String)>> {
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

#[test]
fn what_we_read_python_reads_likewise() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
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
    for chunk in accepted.chunks(500) {
        let output = Command::new("python3")
            .args(["-c", PYTHON])
            .args(chunk.iter().map(|(path, _)| path))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = String::from_utf8(output.stdout).unwrap();
        assert_eq!(lines.lines().count(), chunk.len());
        for (line, (path, list)) in lines.lines().zip(chunk) {
            let theirs: Option<Vec<(String, String, u64, String)>> =
                serde_json::from_str(line).unwrap();
            if theirs.as_ref() != Some(list) {
                let kept = std::env::temp_dir().join("cofferdam-disagreement.tar");
                fs::copy(path, &kept).unwrap();
                panic!("{}:\nours   {list:?}\ntheirs {theirs:?}", kept.display());
            }
        }
    }
}
