//! Random operations on mounted overlays: what this crate says of the layers is what the
//! kernel shows.

mod common;
mod operations;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::Scratch;
use operations::{Facts, Operation, of_directory, of_merged, operations, perform};
use overlayfs::{
    Below, Change, ChangeKind, CopyOptions, Durability, Error, Index, Merged, Metacopy, Options,
    Overlay, RedirectDir, Upper, Xino,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRng, TestRunner};

/// Fewer cases than proptest's default, since each of them mounts several times.
fn config(cases: u32) -> Config {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => Config::default(),
        None => Config {
            cases,
            ..Config::default()
        },
    }
}

#[derive(Clone, Copy, Debug)]
struct Combination {
    redirect_dir: RedirectDir,
    metacopy: Metacopy,
    index: Index,
    xino: Xino,
}

impl Combination {
    /// Every combination that is not a contradiction.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for redirect_dir in [
            RedirectDir::On,
            RedirectDir::Follow,
            RedirectDir::NoFollow,
            RedirectDir::Off,
        ] {
            for metacopy in [Metacopy::On, Metacopy::Off] {
                if metacopy == Metacopy::On && redirect_dir != RedirectDir::On {
                    continue;
                }
                for index in [Index::On, Index::Off] {
                    for xino in [Xino::On, Xino::Auto, Xino::Off] {
                        all.push(Combination {
                            redirect_dir,
                            metacopy,
                            index,
                            xino,
                        });
                    }
                }
            }
        }
        all
    }

    fn options(self) -> Options {
        Options::new()
            .redirect_dir(self.redirect_dir)
            .metacopy(self.metacopy)
            .index(self.index)
            .xino(self.xino)
    }
}

/// What is done to each layer, the bottom one first; the last is the upper one.
fn histories() -> impl Strategy<Value = Vec<Vec<Operation>>> {
    prop::collection::vec(operations(24), 2..=7)
}

type Tree = BTreeMap<PathBuf, Facts>;

/// The layers of one case: each was the upper layer of an overlay over those below it.
struct Layers {
    scratch: Scratch,
    combination: Combination,
}

impl Layers {
    fn lower(&self, count: usize) -> Vec<PathBuf> {
        (0..count)
            .map(|level| self.scratch.path(&format!("layer{level}")))
            .collect()
    }

    fn work(&self, level: usize) -> PathBuf {
        self.scratch.path(&format!("work{level}"))
    }

    fn mount(&self, level: usize) -> overlayfs::Mounted {
        Overlay::bottom_up(self.lower(level))
            .upper(
                self.scratch.dir(&format!("layer{level}")),
                self.scratch.dir(&format!("work{level}")),
            )
            .options(self.combination.options())
            .mount(self.scratch.dir("merged"))
            .unwrap()
    }

    fn merged(&self, level: usize) -> Merged {
        Merged::bottom_up(self.lower(level))
            .unwrap()
            .upper(self.scratch.path(&format!("layer{level}")))
            .unwrap()
            .index(self.work(level))
            .unwrap()
    }
}

impl Layers {
    /// What is reported, done to a copy of what was there before, gives what is there now.
    fn check_changes(&self, level: usize, expected: &Tree) {
        let options = CopyOptions::new().durability(Durability::ProcessDeath);
        let copy = self.scratch.path("copy");
        let lower = Merged::bottom_up(self.lower(level)).unwrap();
        lower.flatten(&copy, options).unwrap();
        let before = of_directory(&copy);
        assert_same("the copy differs", &of_merged(&lower), &before);
        let upper = Upper::over_bottom_up(
            self.lower(level),
            self.scratch.path(&format!("layer{level}")),
        )
        .unwrap()
        .index(self.work(level))
        .unwrap();
        upper.apply(&copy, options).unwrap();
        let after = of_directory(&copy);
        let changes: Vec<_> = upper.changes().map(Result::unwrap).collect();
        check_report(&before, expected, &changes);
        assert_same(
            &format!("applied, {changes:?} give something else"),
            expected,
            &after,
        );
        fs::remove_dir_all(&copy).unwrap();
    }

    /// What is copied out is what was mounted.
    fn check_flattened(&self, level: usize, expected: &Tree) {
        let options = CopyOptions::new().durability(Durability::ProcessDeath);
        let copy = self.scratch.path("copy");
        self.merged(level).flatten(&copy, options).unwrap();
        assert_same("copied out it differs", expected, &of_directory(&copy));
        fs::remove_dir_all(&copy).unwrap();
    }

    /// A squashed run of layers means the same in their place.
    fn check_squash(&self, count: usize, first: usize, last: usize) {
        let options = CopyOptions::new().durability(Durability::ProcessDeath);
        let mut stack = self.lower(count);
        let before = of_merged(&Merged::bottom_up(&stack).unwrap());
        let squashed = self.scratch.path("squashed");
        let run: Vec<_> = stack.splice(first..last, [squashed.clone()]).collect();
        let below = if first == 0 {
            Below::Nothing
        } else {
            Below::Layers
        };
        Merged::bottom_up(run)
            .unwrap()
            .squash(&squashed, below, options)
            .unwrap();
        let view = of_merged(&Merged::bottom_up(&stack).unwrap());
        assert_same(
            &format!("squashing {first}..{last} of {count} changes the view"),
            &before,
            &view,
        );
        if stack.len() > 1 {
            let mounted = Overlay::bottom_up(&stack)
                .options(self.combination.options())
                .mount(self.scratch.dir("merged"))
                .unwrap();
            assert_same("and the mount", &before, &of_directory(mounted.target()));
            mounted.close().unwrap();
        }
        fs::remove_dir_all(&squashed).unwrap();
    }

    /// Committing the upper layer onto the one below leaves the same to be seen without it.
    fn check_commit(&self, level: usize, expected: &Tree) {
        let options = CopyOptions::new().durability(Durability::ProcessDeath);
        let upper = Upper::over_bottom_up(
            self.lower(level),
            self.scratch.path(&format!("layer{level}")),
        )
        .unwrap()
        .index(self.work(level))
        .unwrap();
        let onto = self.scratch.path(&format!("layer{}", level - 1));
        match upper.commit(&onto, options) {
            Ok(()) => {}
            Err(Error::SharedWithLowerLayer { .. }) if self.combination.index == Index::On => {
                return;
            }
            Err(error) => panic!("{error}"),
        }
        let view = of_merged(&Merged::bottom_up(self.lower(level)).unwrap());
        assert_same("after the commit something else is seen", expected, &view);
    }
}

/// What the changes say, word by word, is all that happened: done to what was there before as
/// data, they give what is there now. Names and contents are taken from the latter only where a
/// change says that they are new.
fn check_report(before: &Tree, after: &Tree, changes: &[Change]) {
    let mut tree = before.clone();
    let remove = |tree: &mut Tree, path: &Path| tree.retain(|other, _| !other.starts_with(path));
    for change in changes {
        let path = &change.path;
        if path.as_os_str().is_empty() {
            continue;
        }
        match &change.kind {
            ChangeKind::Deleted => {
                assert!(tree.contains_key(path), "{change:?}: there was nothing");
                remove(&mut tree, path);
            }
            ChangeKind::Modified { contents, metadata } => {
                let new = &after[path];
                let facts = tree.get_mut(path).unwrap();
                assert_eq!(facts.kind, new.kind, "{change:?}: of another type");
                if *contents {
                    assert_ne!(
                        (&facts.contents, facts.device),
                        (&new.contents, new.device),
                        "{change:?}: the same contents"
                    );
                    facts.contents.clone_from(&new.contents);
                    facts.device = new.device;
                }
                if *metadata {
                    let old = facts.clone();
                    facts.mode = new.mode;
                    facts.owner = new.owner;
                    facts.modified = new.modified;
                    facts.xattrs.clone_from(&new.xattrs);
                    assert_ne!(*facts, old, "{change:?}: the same metadata");
                }
            }
            ChangeKind::Renamed { from, replaces } => {
                assert_eq!(tree.contains_key(path), *replaces, "{change:?}");
                remove(&mut tree, path);
                // From where it was before anything was changed.
                for (old, facts) in before {
                    if let Ok(rest) = old.strip_prefix(from) {
                        // Joining nothing would append a slash.
                        let new = if rest.as_os_str().is_empty() {
                            path.clone()
                        } else {
                            path.join(rest)
                        };
                        tree.insert(new, facts.clone());
                    }
                }
                tree.insert(path.clone(), after[path].clone());
            }
            kind => {
                let existed = tree.contains_key(path);
                assert_eq!(existed, *kind != ChangeKind::Added, "{change:?}");
                if existed {
                    let same_type = tree[path].kind == after[path].kind;
                    assert_eq!(same_type, *kind == ChangeKind::Replaced, "{change:?}");
                }
                remove(&mut tree, path);
                tree.insert(path.clone(), after[path].clone());
            }
        }
    }
    // Which names are of one file is not part of a change.
    let (mut tree, mut after) = (tree, after.clone());
    for facts in tree.values_mut().chain(after.values_mut()) {
        facts.first_name = PathBuf::new();
    }
    assert_same(&format!("{changes:?} are not what happened"), &after, &tree);
}

#[track_caller]
fn assert_same(what: &str, expected: &Tree, found: &Tree) {
    if expected == found {
        return;
    }
    for (path, facts) in expected {
        match found.get(path) {
            None => eprintln!("missing {}: {facts:?}", path.display()),
            Some(other) if other != facts => {
                eprintln!(
                    "differs {}:\n  expected {facts:?}\n  found    {other:?}",
                    path.display()
                );
            }
            Some(_) => {}
        }
    }
    for (path, facts) in found
        .iter()
        .filter(|(path, _)| !expected.contains_key(*path))
    {
        eprintln!("too much {}: {facts:?}", path.display());
    }
    panic!("{what}");
}

fn check(combination: Combination, histories: &[Vec<Operation>]) {
    let layers = Layers {
        scratch: Scratch::new(),
        combination,
    };
    let bottom = layers.scratch.dir("layer0");
    for operation in &histories[0] {
        perform(&bottom, operation);
    }
    for (level, history) in histories.iter().enumerate().skip(1) {
        let mounted = layers.mount(level);
        let root = mounted.target().to_owned();
        let is_last = level == histories.len() - 1;
        for operation in history {
            perform(&root, operation);
            if is_last {
                let shown = of_directory(&root);
                let merged = of_merged(&layers.merged(level));
                assert_same(
                    &format!("after {operation:?} the merged view differs"),
                    &shown,
                    &merged,
                );
            }
        }
        let before = of_directory(&root);
        assert_same(
            "the merged view differs",
            &before,
            &of_merged(&layers.merged(level)),
        );
        mounted.close().unwrap();
        layers.check_changes(level, &before);
        layers.check_flattened(level, &before);
        let again = layers.mount(level);
        assert_same("mounted again it differs", &before, &of_directory(&root));
        again.close().unwrap();
        if is_last {
            for first in 0..level {
                layers.check_squash(level, first, (first + 2).min(level));
            }
            layers.check_squash(level, 0, level);
            layers.check_commit(level, &before);
        }
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    #[ignore = "needs root"]
    fn the_merged_view_is_what_the_kernel_shows(
        combination in prop::sample::select(Combination::all()),
        histories in histories(),
    ) {
        check(combination, &histories);
    }
}

/// The random choice above may leave a combination out; this one does not.
#[test]
#[ignore = "needs root"]
fn every_combination_of_options_shows_the_same() {
    let config = config(1);
    let cases = config.cases.div_ceil(16);
    let rng = TestRng::deterministic_rng(config.rng_algorithm);
    let mut runner = TestRunner::new_with_rng(config, rng);
    for combination in Combination::all() {
        for _ in 0..cases {
            let histories = histories().new_tree(&mut runner).unwrap().current();
            eprintln!("{combination:?} {histories:?}");
            check(combination, &histories);
        }
    }
}
