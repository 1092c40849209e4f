//! Doing to one directory what an upper layer did to its lower layers.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, mkdirat, statat, unlinkat};
use rustix::io::Errno;

use crate::changes::{Change, ChangeKind, Upper};
use crate::copy::{CopyOptions, Form, Spot, Writer};
use crate::error::{Error, Result};
use crate::lookup::Node;
use crate::merged::Merged;
use crate::root::{self, Root};
use crate::staging::Staging;

impl Upper {
    /// Applies the changes to `target`, an ordinary directory that holds what the lower
    /// layers show, for instance a copy of them. Afterwards it holds what the overlay shows.
    ///
    /// The target is replaced in one step by a new tree in which the files that did not
    /// change are the same files as before.
    ///
    /// # Errors
    ///
    /// Those of [`changes`](Upper::changes), [`Error::TargetBusy`] while another process
    /// writes there, and [`Error::Io`]. The target is then as it was.
    pub fn apply(&self, target: impl AsRef<Path>, options: CopyOptions) -> Result<()> {
        let target = target.as_ref();
        let old = Merged::bottom_up([target])?.without_marks();
        let staging = Staging::beside(target)?;
        let mut unchanged =
            Writer::new(&old.layers, staging.tree()?, Form::Plain, options)?.sharing_from(0);
        unchanged.tree(old.layers.top()?, PathBuf::new())?;
        let mut applying = Applying {
            upper: self,
            old: &old,
            tree: Root::open(&staging.tree()?.into(), crate::error::Role::Target)?,
            changed: Writer::new(&self.merged.layers, staging.tree()?, Form::Plain, options)?,
            unchanged,
            directories: BTreeSet::new(),
        };
        for change in self.changes().with_links() {
            applying.apply(&change?)?;
        }
        applying.finish()?;
        staging.publish(options.replace(true))
    }
}

struct Applying<'a> {
    upper: &'a Upper,
    old: &'a Merged,
    /// The new tree; nobody else writes to it.
    tree: Root,
    /// Writes what comes from the overlay.
    changed: Writer<'a>,
    /// Writes what was in the target before.
    unchanged: Writer<'a>,
    /// Those whose metadata is to be set at the end, because things in them were changed.
    directories: BTreeSet<PathBuf>,
}

impl Applying<'_> {
    fn apply(&mut self, change: &Change) -> Result<()> {
        let path = &change.path;
        if let Some(parent) = path.parent() {
            self.directories.insert(parent.to_owned());
        }
        let Some(name) = path.file_name() else {
            self.directories.insert(PathBuf::new());
            return Ok(());
        };
        let parent = self
            .tree
            .directory(path.parent().unwrap_or(Path::new("")))?;
        if change.kind == ChangeKind::Deleted {
            return remove(&parent, name, path);
        }
        let node = self.node(path)?;
        let is_directory = node.is_directory();
        if is_directory {
            self.directories.insert(path.clone());
            if matches!(change.kind, ChangeKind::Modified { .. }) {
                return Ok(());
            }
        }
        // Never in place: what is there may be a second name of a file of the old tree.
        remove(&parent, name, path)?;
        if is_directory {
            mkdirat(&parent, name, Mode::RWXU).map_err(|source| Error::io("make", path, source))?;
            if let ChangeKind::Renamed { from, .. } = &change.kind {
                let source = self
                    .old
                    .layers
                    .resolve(from)?
                    .ok_or_else(|| Error::io("find what was renamed at", from, Errno::NOENT))?;
                self.unchanged.tree(source, path.clone())?;
            }
            return Ok(());
        }
        let (directory, source, _) = self.upper.merged.layers.top_of(&node)?;
        let from = Spot {
            directory: directory.as_fd(),
            name: &source,
        };
        let to = Spot {
            directory: parent.as_fd(),
            name,
        };
        self.changed.entry(&node, from, to, path, None)
    }

    fn node(&self, path: &Path) -> Result<Node> {
        self.upper
            .merged
            .layers
            .resolve(path)?
            .ok_or_else(|| Error::io("find", path, Errno::NOENT))
    }

    /// Sets the metadata of directories, the inner ones first: setting it changes nothing
    /// further out.
    fn finish(&self) -> Result<()> {
        for path in self.directories.iter().rev() {
            let target = match self.tree.directory(path) {
                Ok(target) => target,
                // Deleted after something in it was.
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let node = self.node(path)?;
            let place = node.top().map_or(Path::new(""), |place| &place.path);
            let layer = node.top().map_or(0, |place| place.layer);
            let source = self.upper.merged.layers.root(layer).directory(place)?;
            let itself = OsStr::new("");
            let from = Spot {
                directory: source.as_fd(),
                name: itself,
            };
            let to = Spot {
                directory: target.as_fd(),
                name: itself,
            };
            self.changed
                .replace_attributes(from, to, path, &node.stat, &target)?;
        }
        Ok(())
    }
}

/// Removes whatever has a name; nothing may.
fn remove(parent: &OwnedFd, name: &OsStr, path: &Path) -> Result<()> {
    let fail = |source| Error::io("remove", path, source);
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(source) => return Err(fail(source)),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return unlinkat(parent, name, AtFlags::empty()).map_err(fail);
    }
    let directory = root::open_directory_in(parent, name).map_err(fail)?;
    for inner in root::names(&directory, path)? {
        remove(&directory, &inner, &path.join(&inner))?;
    }
    unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(fail)
}
