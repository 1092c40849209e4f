//! Random trees of files of all types, with attributes, hard links and odd names.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use oci_image::{Compression, Contents, Entry, EntryKind, Metadata, PackOptions};
use proptest::prelude::*;

/// A moderate number of cases unless `PROPTEST_CASES` asks for more.
pub fn config(cases: u32) -> ProptestConfig {
    if std::env::var_os("PROPTEST_CASES").is_some() {
        return ProptestConfig::default();
    }
    ProptestConfig {
        cases,
        ..ProptestConfig::default()
    }
}

#[derive(Clone, Debug)]
pub enum Node {
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

pub type Tree = BTreeMap<Vec<Vec<u8>>, (Node, Metadata)>;

pub fn tree() -> impl Strategy<Value = Tree> {
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
pub fn entries(tree: &Tree) -> Vec<Entry> {
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

pub fn options() -> PackOptions {
    PackOptions::new()
        .compression(Compression::None)
        .owner(0, 0)
}
