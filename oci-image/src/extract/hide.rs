//! Whiteouts: what becomes of what the layers below have.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, XattrFlags, fstat, mknodat, openat};
use rustix::io::Errno;

use super::{Extractor, failed};
use crate::error::Result;
use crate::rootdir::{self, proc_path};
use crate::whiteout::Whiteouts;

/// What a whiteout does.
pub(super) enum Hiding {
    /// It is made, for overlayfs.
    Made,
    /// Nothing: all that is there is this layer's own, which whiteouts spare.
    Nothing,
    /// What it names is removed, except for what this layer made.
    Removed(Made),
}

/// Names that a layer made. There may be millions, so of each there is a keyed hash alone, which whoever makes the
/// layer cannot foresee.
#[derive(Default)]
pub(super) struct Made {
    key: RandomState,
    hashes: HashSet<u64>,
}

impl Made {
    fn hash(&self, directory: u64, name: &[u8]) -> u64 {
        self.key.hash_one((directory, name))
    }

    fn contains(&self, directory: u64, name: &[u8]) -> bool {
        self.hashes.contains(&self.hash(directory, name))
    }
}

impl Hiding {
    pub(super) fn new(whiteouts: Whiteouts, root: &OwnedFd) -> Result<Hiding, Errno> {
        if whiteouts != Whiteouts::Apply {
            return Ok(Hiding::Made);
        }
        Ok(if rootdir::is_empty(root)? {
            Hiding::Nothing
        } else {
            Hiding::Removed(Made::default())
        })
    }

    /// Notes that this layer made `name` in the directory with the inode number `directory`.
    pub(super) fn made(&mut self, directory: u64, name: &[u8]) {
        if let Hiding::Removed(made) = self {
            let hash = made.hash(directory, name);
            made.hashes.insert(hash);
        }
    }
}

impl Extractor<'_> {
    /// Hides a name of the layers below, in the current directory.
    pub(super) fn hide(&mut self, name: &[u8]) -> Result<()> {
        let parent = self.parent()?;
        let os_name = OsStr::from_bytes(name);
        match &self.hiding {
            Hiding::Made => {}
            Hiding::Nothing => return Ok(()),
            Hiding::Removed(made) => {
                let keep = |directory: u64, name: &[u8]| made.contains(directory, name);
                return rootdir::remove(parent.fd.as_fd(), name, &keep)
                    .map(drop)
                    .map_err(failed("remove what the whiteout names"));
            }
        }
        let device = rustix::fs::makedev(0, 0);
        match mknodat(
            &parent.fd,
            os_name,
            FileType::CharacterDevice,
            Mode::empty(),
            device,
        ) {
            Ok(()) => Ok(()),
            // The layer has something of that name itself, which hides what is below; a directory must be told to.
            Err(Errno::EXIST) => {
                let fd = openat(
                    &parent.fd,
                    os_name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(failed("open what the whiteout names"))?;
                let stat = fstat(&fd).map_err(failed("look at what the whiteout names"))?;
                if rootdir::file_type(&stat) == FileType::Directory {
                    self.set_opaque(&fd)?;
                }
                Ok(())
            }
            Err(errno) => Err(failed("make a whiteout (a character device 0/0)")(errno)),
        }
    }

    /// Hides everything of the layers below in the current directory.
    pub(super) fn hide_all(&mut self) -> Result<()> {
        let parent = self.parent()?;
        if let Hiding::Removed(made) = &self.hiding {
            let keep = |directory: u64, name: &[u8]| made.contains(directory, name);
            let dir = openat(
                &parent.fd,
                ".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(failed("open the opaque directory"))?;
            rootdir::remove_contents(&dir, &keep).map_err(failed("empty the opaque directory"))?;
            return Ok(());
        }
        // On the root overlayfs does not look at it; who stacks the directories does.
        self.set_opaque(&parent.fd)
    }

    pub(super) fn set_opaque(&self, fd: &OwnedFd) -> Result<()> {
        let Some(name) = self.options.whiteouts.opaque_attribute() else {
            return Ok(());
        };
        rustix::fs::setxattr(proc_path(fd), name, b"y", XattrFlags::empty())
            .map_err(failed("set the attribute of an opaque directory"))
    }
}
