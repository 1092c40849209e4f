//! Directories that appear whole or not at all, and the one in which a machine's snapshots are.
//!
//! Everything is done from an open directory: in the jail there are no paths.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, Mode, OFlags, RenameFlags, mkdirat, openat, renameat_with, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

/// The files of a snapshot, and no others.
pub(crate) const FILES: [&str; 3] = ["memory", "state", "machine"];

/// A directory of the host in which snapshots are saved.
#[derive(Debug)]
pub(crate) struct Store {
    directory: OwnedFd,
    path: PathBuf,
}

fn open_directory(at: impl std::os::fd::AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(openat(at, path, flags, Mode::empty())?)
}

/// Opens one of a directory's own directories: not one that a link leads to.
fn open_child(at: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(at, name, flags, Mode::empty())?)
}

impl Store {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            directory: open_directory(CWD, path)?,
            path: path.to_owned(),
        })
    }

    /// The directory and name of a snapshot with this path, and what to call it.
    pub(crate) fn of_path(path: &Path) -> io::Result<(Self, OsString)> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok((Self::open(parent)?, name.to_owned()))
    }

    /// Makes it a tree of its own, out of which no path leads, not even `..`. It stays when the root
    /// of this process goes.
    pub(crate) fn seal(&mut self) -> io::Result<()> {
        self.directory = open_directory(sealed(&self.directory)?, Path::new("."))?;
        Ok(())
    }

    pub(crate) fn path(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// Begins a directory that is to have this name.
    pub(crate) fn create(&self, name: &OsStr) -> io::Result<New<'_>> {
        let mut temporary = name.to_owned();
        temporary.push(".new");
        if self.holds_other_files(name)? {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it is there already and is no snapshot: choose another place",
            ));
        }
        // What a machine that was killed left behind.
        self.remove(&temporary)?;
        mkdirat(&self.directory, &temporary, Mode::from(0o700))?;
        Ok(New {
            directory: open_child(&self.directory, &temporary)?,
            store: self,
            temporary,
            done: false,
        })
    }

    /// Whether there is something of this name that is no snapshot.
    fn holds_other_files(&self, name: &OsStr) -> io::Result<bool> {
        let directory = match open_child(&self.directory, name) {
            Ok(directory) => directory,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            let known = |file: &&str| file.as_bytes() == name;
            if !matches!(name, b"." | b"..") && !FILES.iter().any(known) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        let ignore_missing = |result| match result {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        };
        for file in FILES {
            let path = Path::new(name).join(file);
            ignore_missing(unlinkat(&self.directory, path, AtFlags::empty()))?;
        }
        Ok(ignore_missing(unlinkat(
            &self.directory,
            name,
            AtFlags::REMOVEDIR,
        ))?)
    }
}

/// A copy of this place in the tree of mounts, for whoever has its file descriptor.
pub(crate) fn sealed(directory: &OwnedFd) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE
        | OpenTreeFlags::AT_EMPTY_PATH;
    Ok(open_tree(directory, "", flags)?)
}

/// Whether this can name a snapshot in a directory that was handed in.
pub(crate) fn is_name(path: &Path) -> bool {
    let mut parts = path.components();
    matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    )
}

/// A directory under a temporary name; removed unless it is [put in place](New::put_in_place).
pub(crate) struct New<'s> {
    store: &'s Store,
    directory: OwnedFd,
    temporary: OsString,
    done: bool,
}

impl New<'_> {
    /// Makes a file in it.
    pub(crate) fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        Ok(openat(&self.directory, name, flags, Mode::from(0o600))?.into())
    }

    /// Gives it its name, in the place of the snapshot that may have had it, which is removed. Its
    /// files are to be durable before.
    pub(crate) fn put_in_place(mut self, name: &OsStr) -> io::Result<()> {
        let at = &self.store.directory;
        rustix::fs::fsync(&self.directory)?;
        match renameat_with(at, &self.temporary, at, name, RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => {
                renameat_with(at, &self.temporary, at, name, RenameFlags::NOREPLACE)?;
            }
            other => other?,
        }
        rustix::fs::fsync(at)?;
        self.done = true;
        self.store.remove(&self.temporary)
    }
}

impl Drop for New<'_> {
    fn drop(&mut self) {
        if !self.done {
            // The next snapshot of this name tries again.
            let _ = self.store.remove(&self.temporary);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;

    #[test]
    fn a_directory_appears_whole_and_replaces_only_its_like() {
        let dir = tempfile::tempdir().unwrap();
        let (store, name) = Store::of_path(&dir.path().join("saved")).unwrap();
        for text in ["first", "second"] {
            let new = store.create(&name).unwrap();
            new.file("state")
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            assert_ne!(
                fs::read(dir.path().join("saved/state")).unwrap_or_default(),
                text.as_bytes()
            );
            new.put_in_place(&name).unwrap();
            assert_eq!(
                fs::read(dir.path().join("saved/state")).unwrap(),
                text.as_bytes()
            );
            assert!(!dir.path().join("saved.new").exists());
        }
        // One that is given up leaves nothing, and the one before stays.
        let new = store.create(&name).unwrap();
        new.file("memory").unwrap();
        drop(new);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // One that was killed is in nobody's way.
        fs::create_dir(dir.path().join("saved.new")).unwrap();
        fs::write(dir.path().join("saved.new/memory"), "half").unwrap();
        store.create(&name).unwrap().put_in_place(&name).unwrap();
        // What is no snapshot is not replaced.
        fs::write(dir.path().join("saved/letter"), "dear").unwrap();
        let refused = store.create(&name).err().unwrap();
        assert!(refused.to_string().contains("no snapshot"), "{refused}");
        assert_eq!(fs::read(dir.path().join("saved/letter")).unwrap(), b"dear");
    }

    #[test]
    fn a_name_is_one_component() {
        for (path, is) in [
            ("a", true),
            ("a/b", false),
            ("..", false),
            ("/a", false),
            ("", false),
            ("./a", false),
        ] {
            assert_eq!(is_name(Path::new(path)), is, "{path}");
        }
    }
}
