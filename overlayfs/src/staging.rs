//! A tree that takes its place in one step.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, fsync, mkdirat, openat, renameat_with,
    syncfs,
};
use rustix::io::Errno;

use crate::copy::{CopyOptions, Durability};
use crate::error::{Error, Result};

/// A directory beside the target, in which the new tree is made.
///
/// Its name follows from the target's, and it is locked while it is used: what a killed
/// process left is found by the next one and removed.
pub(crate) struct Staging {
    parent: OwnedFd,
    parent_path: PathBuf,
    /// Of the staging directory.
    name: OsString,
    directory: OwnedFd,
    target: PathBuf,
    target_name: OsString,
}

/// The name of the new tree in the staging directory.
const TREE: &str = "tree";

impl Staging {
    pub(crate) fn beside(target: &Path) -> Result<Self> {
        let fail = |source| Error::io("make a staging directory beside", target, source);
        let Some(target_name) = target.file_name() else {
            return Err(fail(Errno::INVAL));
        };
        let parent_path = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = openat(CWD, &parent_path, flags, Mode::empty()).map_err(fail)?;
        let mut name = OsString::from(".");
        name.push(target_name);
        name.push(".cofferdam");
        let mut staging = None;
        // Made by another process between the removal and the making: then it is in use.
        for _ in 0..2 {
            match mkdirat(&parent, &name, Mode::RWXU) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(source) => return Err(fail(source)),
            }
            let directory =
                openat(&parent, &name, flags | OFlags::NOFOLLOW, Mode::empty()).map_err(fail)?;
            match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    return Err(Error::TargetBusy {
                        target: target.to_owned(),
                    });
                }
                Err(source) => return Err(fail(source)),
            }
            match mkdirat(&directory, TREE, Mode::RWXU) {
                Ok(()) => {
                    staging = Some(directory);
                    break;
                }
                // Left by a process that died. (Or removed just now by one that finished.)
                Err(_) => remove(&parent_path, &name)?,
            }
        }
        let Some(directory) = staging else {
            return Err(Error::TargetBusy {
                target: target.to_owned(),
            });
        };
        Ok(Staging {
            parent,
            parent_path,
            name,
            directory,
            target: target.to_owned(),
            target_name: target_name.to_owned(),
        })
    }

    /// Opens the directory that the new tree is to be written into.
    pub(crate) fn tree(&self) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.directory, TREE, flags, Mode::empty())
            .map_err(|source| Error::io("open the staging directory of", &self.target, source))
    }

    /// Puts the new tree in its place.
    pub(crate) fn publish(self, options: CopyOptions) -> Result<()> {
        let durable = options.durability == Durability::PowerLoss;
        let fail = |operation| {
            let target = self.target.clone();
            move |source: Errno| Error::io(operation, target, source)
        };
        if durable {
            syncfs(&self.directory).map_err(fail("sync the new contents of"))?;
        }
        let rename = |flags| {
            renameat_with(
                &self.directory,
                TREE,
                &self.parent,
                &self.target_name,
                flags,
            )
        };
        match rename(RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) if options.replace => {
                rename(RenameFlags::EXCHANGE).map_err(fail("replace"))?;
            }
            other => other.map_err(fail("put the new tree at"))?,
        }
        if durable {
            fsync(&self.parent).map_err(fail("sync the directory of"))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // The new tree if it was not published, else the old one. What cannot be removed
        // now is removed by the next operation on the same target.
        let _ = remove(&self.parent_path, &self.name);
    }
}

fn remove(parent: &Path, name: &OsStr) -> Result<()> {
    let path = parent.join(name);
    std::fs::remove_dir_all(&path).map_err(|source| Error::io("remove", path, source))
}
