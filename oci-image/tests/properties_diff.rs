//! What differs between two random trees, laid over the one, gives the other.

mod common;

use std::path::Path;

use common::trees::{Tree, config, entries, options, tree};
use common::{Arena, unpack};
use oci_image::{ChangeKind, Entry, LayerWriter, diff, walk};
use proptest::prelude::*;

fn pack(entries: impl IntoIterator<Item = oci_image::Result<Entry>>) -> (String, Vec<u8>) {
    let mut writer = LayerWriter::new(Vec::new(), options()).unwrap();
    writer.append_all(entries).unwrap();
    let (layer, bytes) = writer.finish().unwrap();
    (layer.diff_id.to_string(), bytes)
}

fn write(tree: &Tree, root: &Path) {
    let (_, bytes) = pack(entries(tree).into_iter().map(Ok));
    unpack(&bytes, root).unwrap();
}

/// A tree and what became of it: some of it stays, some is something else, some is gone, some is new.
fn trees() -> impl Strategy<Value = (Tree, Tree)> {
    (tree(), tree(), prop::collection::vec(0u8..4, 64)).prop_map(|(old, other, fates)| {
        let mut new = Tree::new();
        for ((path, node), fate) in old.iter().zip(fates.iter().cycle()) {
            let has_parent = path.len() == 1 || new.contains_key(&path[..path.len() - 1]);
            if *fate > 0 && has_parent {
                new.insert(path.clone(), node.clone());
            }
        }
        for (path, (node, metadata)) in other {
            let parent = &path[..path.len() - 1];
            let is_directory = |path: &[Vec<u8>]| {
                new.get(path)
                    .is_some_and(|(node, _)| matches!(node, common::trees::Node::Directory))
            };
            if !parent.is_empty() && !is_directory(parent) {
                continue;
            }
            if !matches!(node, common::trees::Node::Directory) {
                // What is in its way is gone with all that is below.
                new.retain(|known, _| !known.starts_with(&path));
            }
            new.insert(path, (node, metadata));
        }
        (old, new)
    })
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn a_difference_laid_over_the_old_tree_gives_the_new((old, new) in trees()) {
        let (ours, theirs) = (Arena::new(), Arena::new());
        write(&old, &ours.root());
        write(&new, &theirs.root());
        let wanted = pack(walk(theirs.root()).unwrap()).0;
        let before = pack(walk(ours.root()).unwrap()).0;
        let changes: Vec<_> = diff(ours.root(), theirs.root())
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        prop_assert_eq!(changes.is_empty(), before == wanted);
        let (_, layer) = pack(changes.into_iter().map(|change| Ok(change.into())));
        unpack(&layer, &ours.root()).unwrap();
        prop_assert_eq!(pack(walk(ours.root()).unwrap()).0, wanted);
        let left: Vec<_> = diff(ours.root(), theirs.root()).unwrap().collect();
        prop_assert!(left.is_empty(), "{:?}", left);
    }

    #[test]
    fn what_was_added_one_way_is_removed_the_other((old, new) in trees()) {
        let (one, two) = (Arena::new(), Arena::new());
        write(&old, &one.root());
        write(&new, &two.root());
        // Below what is gone as a whole nothing is named, so only what has a directory on both sides can be compared.
        let names = |from: &Path, to: &Path, kind| -> Vec<_> {
            diff(from, to)
                .unwrap()
                .map(Result::unwrap)
                .filter(|change| change.kind == kind)
                .map(|change| change.entry.path)
                .filter(|path| {
                    let parent = path.parent().unwrap();
                    [from, to].iter().all(|root| {
                        std::fs::symlink_metadata(root.join(parent)).is_ok_and(|stat| stat.is_dir())
                    })
                })
                .collect()
        };
        prop_assert_eq!(
            names(&one.root(), &two.root(), ChangeKind::Added),
            names(&two.root(), &one.root(), ChangeKind::Removed)
        );
    }
}
