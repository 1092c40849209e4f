//! What unpacking gives is what GNU tar gives: of ordinary, of random and of damaged archives.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::beside_tar::{NEW, XATTRS, facts, ours, theirs};
use common::damage::damaged;
use common::trees::{config, entries, options, tree};
use common::{run, tar_directory};
use oci_image::{LayerWriter, Limits, SkipReason, Skipped, TarReader};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

/// Whether the filesystem has attributes of users. On tmpfs it does from Linux 6.6 on.
fn has_user_xattrs(dir: &Path) -> bool {
    let flags = rustix::fs::XattrFlags::empty();
    match rustix::fs::setxattr(dir, "user.test", b"", flags) {
        Ok(()) => true,
        Err(rustix::io::Errno::OPNOTSUPP) => false,
        Err(errno) => panic!("{errno}"),
    }
}

#[test]
#[ignore = "needs root"]
fn the_result_is_that_of_gnu_tar() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let script = r#"
        mkdir -p "$1/usr/bin" "$1/var/empty" "$1/tmp" && cd "$1" &&
        head -c 300000 /dev/urandom > usr/bin/tool && ln usr/bin/tool usr/bin/other && ln -s usr/bin bin &&
        mknod usr/fifo p && mknod usr/null c 1 3 && mknod usr/disk b 8 17 &&
        truncate -s 5M usr/sparse && printf data | dd of=usr/sparse bs=1 seek=3000000 conv=notrunc 2>/dev/null &&
        chown -h 12:34 bin usr/fifo && chown 1000:2000000 var && chmod 4711 usr/bin/tool && chmod 1777 tmp &&
        chmod 0 var/empty && touch -d '1969-12-31 23:59:58.25 UTC' var/old &&
        touch "$(printf 'name with\nnewline')" "$(printf '\377latin')" "$(printf 'n%.0s' $(seq 200))" &&
        mkdir -p $(printf 'deep%.0s/' $(seq 40)) && ln -s "$(printf 't%.0s' $(seq 180))" long
    "#;
    run(Command::new("sh").args(["-ec", script, "sh"]).arg(&tree));
    for format in [
        &["--format=posix"][..],
        &["--format=gnu"],
        &["--format=posix", "--sparse"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
    ] {
        let archive = dir.path().join("archive.tar");
        tar_directory(&tree, &archive, format);
        let (one, two) = (dir.path().join("ours"), dir.path().join("theirs"));
        let skipped = ours(&archive, &one).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        assert_eq!(skipped, [], "{format:?}");
        let output = theirs(&archive, &two, XATTRS);
        assert!(output.status.success(), "{format:?}: {output:?}");
        assert_eq!(facts(&one), facts(&two), "{format:?}");
        fs::remove_dir_all(&one).unwrap();
        fs::remove_dir_all(&two).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn random_archives_give_what_gnu_tar_gives() {
    let mut runner = TestRunner::new(config(32));
    for _ in 0..config(32).cases {
        let tree = tree().new_tree(&mut runner).unwrap().current();
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive.tar");
        let mut writer = LayerWriter::new(Vec::new(), options()).unwrap();
        writer
            .append_all(entries(&tree).into_iter().map(Ok))
            .unwrap();
        fs::write(&archive, writer.finish().unwrap().1).unwrap();
        let (one, two) = (dir.path().join("ours"), dir.path().join("theirs"));
        let mut skipped = ours(&archive, &one).unwrap();
        if !has_user_xattrs(dir.path()) {
            let of_a_user = |s: &Skipped| matches!(&s.reason, SkipReason::Xattr(name) if name.starts_with("user."));
            skipped.retain(|s| !of_a_user(s));
        }
        assert_eq!(skipped, [], "{tree:?}");
        let output = theirs(&archive, &two, XATTRS);
        assert!(output.status.success(), "{output:?} {tree:?}");
        let (one, two) = (facts_below(&one), facts_below(&two));
        assert_eq!(one, two, "{tree:?}");
    }
}

/// All but the root itself, of which the archives do not speak.
fn facts_below(root: &Path) -> BTreeMap<String, String> {
    let mut facts = facts(root);
    facts.remove("");
    facts
}

/// Why an archive that both accept may give different files.
fn excuse(archive: &[u8]) -> Option<&'static str> {
    let mut reader = TarReader::new(archive, &Limits::default());
    while let Ok(Some(entry)) = reader.next_entry() {
        if entry.path.windows(4).any(|part| part == b".wh.") {
            return Some("to tar, whiteouts are files");
        }
    }
    None
}

#[test]
#[ignore = "needs root"]
fn damaged_archives_give_what_gnu_tar_gives_or_are_refused() {
    let cases = config(192).cases;
    let mut runner = TestRunner::new(config(1));
    let damage = prop::collection::vec(
        (any::<prop::sample::Index>(), any::<u8>(), Just(true)),
        1..4,
    );
    let mut compared = 0;
    for _ in 0..cases {
        let bytes = damaged(&damage.new_tree(&mut runner).unwrap().current());
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive.tar");
        fs::write(&archive, &bytes).unwrap();
        let (one, two) = (dir.path().join("ours"), dir.path().join("theirs"));
        // A device that overlayfs would take for a whiteout is left out.
        let whole = ours(&archive, &one).is_ok_and(|skipped| skipped.is_empty());
        if !whole || excuse(&bytes).is_some() {
            continue;
        }
        let output = theirs(&archive, &two, XATTRS);
        if !output.status.success() {
            continue;
        }
        compared += 1;
        let (mut one, two) = (facts_below(&one), facts_below(&two));
        for (ours, theirs) in one.values_mut().zip(two.values()) {
            // GNU tar sets the time of a directory when the next entry is not in it, and not again
            // when a later one is.
            if theirs.split(' ').nth(2) == Some(NEW) {
                let mut fields: Vec<_> = ours.split(' ').collect();
                fields[2] = NEW;
                *ours = fields.join(" ");
            }
        }
        if one != two {
            let kept = std::env::temp_dir().join("cofferdam-disagreement.tar");
            fs::copy(&archive, &kept).unwrap();
            panic!("{}:\nours   {one:#?}\ntheirs {two:#?}", kept.display());
        }
    }
    assert!(
        compared * 10 > cases,
        "{compared} of {cases} were compared: damage is refused too often"
    );
}
