//! What unpacking gives is what GNU tar gives: of ordinary, of random and of damaged archives.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use common::damage::damaged;
use common::trees::{config, entries, options, tree};
use oci_image::{
    Error, LayerWriter, Limits, SkipReason, Skipped, TarReader, UnpackOptions, Unpacker, Whiteouts,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 64 << 10];
    let n = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    names[..n]
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let n = rustix::fs::lgetxattr(path, name, value.as_mut_slice()).unwrap();
            (
                String::from_utf8_lossy(name).into_owned(),
                value[..n].to_vec(),
            )
        })
        .collect()
}

/// Whether the filesystem has attributes of users. On tmpfs it does from Linux 6.6 on.
fn has_user_xattrs(dir: &Path) -> bool {
    let flags = rustix::fs::XattrFlags::empty();
    match rustix::fs::setxattr(dir, "user.test", b"", flags) {
        Ok(()) => true,
        Err(rustix::io::Errno::OPNOTSUPP) => false,
        Err(errno) => panic!("{errno}"),
    }
}

/// The time of a directory that was changed during the test.
const NEW: &str = "new";

/// Everything that can be known of a tree, by name.
fn facts(root: &Path) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    let mut inodes = BTreeMap::new();
    while let Some(path) = todo.pop() {
        let stat = fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let contents = if stat.is_file() {
            oci_image::Digest::sha256(&fs::read(&path).unwrap()).to_string()
        } else if stat.is_symlink() {
            fs::read_link(&path).unwrap().display().to_string()
        } else {
            stat.rdev().to_string()
        };
        if stat.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&path)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            names.sort();
            todo.extend(names.into_iter().rev());
        }
        let links = if stat.is_dir() {
            String::new()
        } else {
            inodes
                .entry(stat.ino())
                .or_insert_with(|| name.clone())
                .clone()
        };
        let attributes: Vec<String> = xattrs(&path)
            .into_iter()
            .map(|(name, value)| format!("{name}={value:x?}"))
            .collect();
        // A directory that no entry speaks of is of the moment when it was made.
        let is_new = stat.is_dir()
            && (stat.modified().unwrap().elapsed()).is_ok_and(|age| age < Duration::from_hours(1));
        let modified = if is_new {
            NEW.to_owned()
        } else {
            format!("{}.{:09}", stat.mtime(), stat.mtime_nsec())
        };
        let fact = format!(
            "{:o} {}:{} {modified} {contents} {links} {attributes:?}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
        );
        facts.insert(name, fact);
    }
    facts
}

/// Unpacks as we do it, and tells what was left out.
fn ours(archive: &Path, dir: &Path) -> Result<Vec<Skipped>, Error> {
    fs::create_dir(dir).unwrap();
    Unpacker::new(UnpackOptions::new(Whiteouts::Apply), Limits::default())
        .unpack(
            std::io::BufReader::new(File::open(archive).unwrap()),
            File::open(dir).unwrap(),
        )
        .map(|report| report.skipped)
}

/// Unpacks as GNU tar does it.
fn theirs(archive: &Path, dir: &Path) -> Output {
    fs::create_dir(dir).unwrap();
    Command::new("tar")
        .args([
            "--numeric-owner",
            "--xattrs",
            "--xattrs-include=*",
            "-p",
            "-C",
        ])
        .arg(dir)
        .arg("-xf")
        .arg(archive)
        .env("LC_ALL", "C")
        .output()
        .unwrap()
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
    let status = Command::new("sh")
        .args(["-ec", script, "sh"])
        .arg(&tree)
        .status()
        .unwrap();
    assert!(status.success());
    for format in [
        &["--format=posix"][..],
        &["--format=gnu"],
        &["--format=posix", "--sparse"],
        &["--format=gnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
    ] {
        let archive = dir.path().join("archive.tar");
        let status = Command::new("tar")
            .args(format)
            .arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status()
            .unwrap();
        assert!(status.success());
        let (one, two) = (dir.path().join("ours"), dir.path().join("theirs"));
        let skipped = ours(&archive, &one).unwrap_or_else(|error| panic!("{format:?}: {error}"));
        assert_eq!(skipped, [], "{format:?}");
        let output = theirs(&archive, &two);
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
        let output = theirs(&archive, &two);
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
        let output = theirs(&archive, &two);
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
