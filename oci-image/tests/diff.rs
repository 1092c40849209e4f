//! What differs between two directories, case by case.

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Arena, run, unpack};
use oci_image::{ChangeKind, Compression, Entry, EntryKind, LayerWriter, PackOptions, diff};

/// Two directories with the same files, the second ready to be changed.
struct Pair(tempfile::TempDir);

impl Pair {
    fn new() -> Pair {
        let pair = Pair(tempfile::tempdir().unwrap());
        fs::create_dir_all(pair.old().join("dir/sub")).unwrap();
        fs::write(pair.old().join("dir/file"), "contents").unwrap();
        fs::write(pair.old().join("one"), "linked").unwrap();
        fs::hard_link(pair.old().join("one"), pair.old().join("two")).unwrap();
        symlink("one", pair.old().join("link")).unwrap();
        let copy = ["-a", "old", "new"];
        run(Command::new("cp").args(copy).current_dir(pair.0.path()));
        pair
    }

    fn old(&self) -> PathBuf {
        self.0.path().join("old")
    }

    fn new_path(&self, name: &str) -> PathBuf {
        self.0.path().join("new").join(name)
    }

    /// The changes as `A name`, `M name`, `D name`; of hard links with what they link to.
    fn changes(&self) -> Vec<String> {
        diff(self.old(), self.new_path(""))
            .unwrap()
            .map(|change| {
                let change = change.unwrap();
                let letter = match change.kind {
                    ChangeKind::Added => 'A',
                    ChangeKind::Modified => 'M',
                    ChangeKind::Removed => 'D',
                };
                let name = change.entry.path.display();
                match &change.entry.kind {
                    EntryKind::Hardlink(to) => format!("{letter} {name} -> {}", to.display()),
                    _ => format!("{letter} {name}"),
                }
            })
            .collect()
    }

    /// Lays the changes over the old directory, which then is what the new one is.
    fn apply(&self) {
        let options = PackOptions::new().compression(Compression::None);
        let mut writer = LayerWriter::new(Vec::new(), options).unwrap();
        let changes = diff(self.old(), self.new_path("")).unwrap();
        writer
            .append_all(changes.map(|change| change.map(Entry::from)))
            .unwrap();
        let (_, layer) = writer.finish().unwrap();
        unpack(&layer, &self.old()).unwrap();
        assert_eq!(self.changes(), [""; 0]);
    }
}

/// The time of a directory changes with what is in it; this puts it back.
fn keep_time(directory: &Path, change: impl FnOnce()) {
    let time = fs::metadata(directory).unwrap().modified().unwrap();
    change();
    fs::File::open(directory)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

#[test]
fn copies_do_not_differ() {
    assert_eq!(Pair::new().changes(), [""; 0]);
}

#[test]
fn contents_of_the_same_length_and_time_differ() {
    let pair = Pair::new();
    let path = pair.new_path("dir/file");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "CONTENTS").unwrap();
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(pair.changes(), ["M dir", "M dir/file"]);
    pair.apply();
}

#[test]
fn modes_types_and_targets_differ() {
    let pair = Pair::new();
    fs::set_permissions(pair.new_path("dir/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(pair.new_path("link")).unwrap();
    symlink("two", pair.new_path("link")).unwrap();
    fs::remove_file(pair.new_path("dir/file")).unwrap();
    keep_time(&pair.new_path("dir"), || {
        fs::create_dir(pair.new_path("dir/file")).unwrap();
    });
    fs::write(pair.new_path("dir/file/below"), "").unwrap();
    let changes = pair.changes();
    for change in ["M dir/file", "A dir/file/below", "M dir/sub", "M link"] {
        assert!(changes.iter().any(|one| one == change), "{changes:?}");
    }
    pair.apply();
}

#[test]
fn of_what_is_gone_only_the_top_is_named() {
    let pair = Pair::new();
    fs::remove_dir_all(pair.new_path("dir")).unwrap();
    assert_eq!(pair.changes(), ["D dir"]);
    pair.apply();
}

#[test]
fn links_are_made_cut_and_taken_along() {
    // Another name of what is there already.
    let pair = Pair::new();
    fs::hard_link(pair.new_path("one"), pair.new_path("three")).unwrap();
    assert_eq!(pair.changes(), ["A three -> one"]);
    pair.apply();

    // Two names of one file become two files.
    let pair = Pair::new();
    let time = fs::metadata(pair.new_path("two"))
        .unwrap()
        .modified()
        .unwrap();
    fs::remove_file(pair.new_path("two")).unwrap();
    fs::write(pair.new_path("two"), "linked").unwrap();
    fs::File::open(pair.new_path("two"))
        .unwrap()
        .set_modified(time)
        .unwrap();
    assert_eq!(pair.changes(), ["M one", "M two"]);
    pair.apply();

    // Both names have new contents.
    let pair = Pair::new();
    fs::write(pair.new_path("one"), "changed").unwrap();
    assert_eq!(pair.changes(), ["M one", "M two -> one"]);
    pair.apply();
}

#[test]
fn sockets_do_not_count() {
    let pair = Pair::new();
    let socket = std::os::unix::net::UnixListener::bind(pair.new_path("socket"));
    assert!(socket.is_ok());
    assert_eq!(pair.changes(), [""; 0]);
}

#[test]
fn attributes_of_directories_are_replaced() {
    let pair = Pair::new();
    let set = |path: &Path, name: &str| {
        rustix::fs::setxattr(path, name, b"x", rustix::fs::XattrFlags::empty()).unwrap();
    };
    set(&pair.old().join("dir"), "user.old");
    set(&pair.new_path("dir"), "user.new");
    assert_eq!(pair.changes(), ["M dir"]);
    pair.apply();
}

#[test]
fn a_directory_that_is_not_there_is_named_in_the_error() {
    let arena = Arena::new();
    let error = diff(arena.root().join("none"), arena.root()).unwrap_err();
    assert!(error.to_string().contains("/none"), "{error}");
}
