//! A mount that is attached, and goes away with its guard.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{MoveMountFlags, UnmountFlags, move_mount, unmount};

use crate::error::{Error, Result, Role, Step};
use crate::layer::{fd_path, open_directory};

/// An overlay that is attached at a path; dropping the guard unmounts it.
///
/// Dropping detaches the mount also while files in it are open: it disappears from the tree
/// at once, and from the kernel with the last open file. [`close`](Mounted::close) is
/// stricter and tells.
#[derive(Debug)]
pub struct Mounted {
    /// The root of the mount; none once it is given away.
    root: Option<OwnedFd>,
    target: PathBuf,
}

impl Mounted {
    /// Where the overlay is attached, as it was given.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Unmounts the overlay.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with `EBUSY` when files in the overlay are still open or a process
    /// works in it. It is then detached all the same, as by dropping the guard.
    #[doc(alias = "umount2")]
    pub fn close(mut self) -> Result<()> {
        let Some(root) = self.root.take() else {
            return Ok(());
        };
        let same = open_directory(&self.target, Role::Target)
            .is_ok_and(|now| is_same_mount(now.as_fd(), root.as_fd()));
        if !same {
            // Something covers the target or its path is gone; the descriptor still knows.
            return detach(&root).map_err(|source| Error::io("unmount", &self.target, source));
        }
        // The guard's own descriptor would make the mount busy.
        let keep = self.target.clone();
        drop(root);
        match unmount(&keep, UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(source) => {
                let _ = unmount(&keep, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH);
                Err(Error::io("unmount", keep, source))
            }
        }
    }

    /// Leaves the overlay mounted for good and returns its root (`O_PATH`).
    pub fn into_root(mut self) -> Option<OwnedFd> {
        self.root.take()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(root) = self.root.take() {
            // Nobody is left to tell; `close` is for those who want to know.
            let _ = detach(&root);
        }
    }
}

fn detach(root: &OwnedFd) -> rustix::io::Result<()> {
    unmount(fd_path(root.as_fd()), UnmountFlags::DETACH)
}

/// Attaches a detached mount at `target`, with a guard that unmounts it.
///
/// # Errors
///
/// [`Error::OpenDirectory`] if `target` is no directory, [`Error::NotPermitted`] without
/// `CAP_SYS_ADMIN`.
#[doc(alias = "move_mount")]
pub fn attach(mount: impl Into<OwnedFd>, target: impl AsRef<Path>) -> Result<Mounted> {
    let target = target.as_ref();
    let directory = open_directory(target, Role::Target)?;
    attach_to(mount.into(), target, &directory)
}

pub(crate) fn attach_to(mount: OwnedFd, target: &Path, directory: &OwnedFd) -> Result<Mounted> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&mount, c"", directory, c"", flags).map_err(|source| match source {
        rustix::io::Errno::PERM => Error::NotPermitted {
            step: Step::Attach,
            source: source.into(),
        },
        _ => Error::Mount {
            step: Step::Attach,
            log: Vec::new(),
            source: source.into(),
        },
    })?;
    Ok(Mounted {
        root: Some(mount),
        target: target.to_owned(),
    })
}

/// Takes charge of a mount that the kernel has just put on `target`.
pub(crate) fn adopt(target: &Path, covered: &OwnedFd) -> Result<Mounted> {
    let root = open_directory(target, Role::Target)?;
    if is_same_mount(root.as_fd(), covered.as_fd()) {
        return Err(Error::io(
            "find the new mount at",
            target,
            rustix::io::Errno::STALE,
        ));
    }
    Ok(Mounted {
        root: Some(root),
        target: target.to_owned(),
    })
}

fn is_same_mount(one: BorrowedFd<'_>, other: BorrowedFd<'_>) -> bool {
    crate::diagnose::mount_id(one) == crate::diagnose::mount_id(other)
}
