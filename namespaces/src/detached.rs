//! Mounts that are attached nowhere yet, made by this process for one that it starts.
//!
//! What a process in a user namespace of its own may not do, as mapping the ids of a mount, its
//! starter does here; [`Mount::detached`](crate::Mount::detached) then hands the mount over. When
//! the last descriptor of such a mount is closed it is gone.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::Error;
use crate::sys::{self, MountAttr};

/// A bind of `path`, `recursive` with everything that is mounted below it. Linux 5.2.
///
/// # Errors
///
/// When there is nothing at the path, or the caller may not mount.
#[doc(alias = "open_tree")]
#[doc(alias = "OPEN_TREE_CLONE")]
pub fn bind(path: impl AsRef<Path>, recursive: bool) -> Result<OwnedFd, Error> {
    let path = path.as_ref();
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags).map_err(|errno| Error::io_path("bind", path)(errno.into()))
}

/// Shifts the owners of files on a detached mount by the map of a user namespace, `recursive` on
/// everything below it, too; see [`Mount::idmapped`](crate::Mount::idmapped). Linux 5.12.
///
/// # Errors
///
/// When the file system does not support it, the mount has a map already, or the caller has no
/// `CAP_SYS_ADMIN` over the file system.
#[doc(alias = "MOUNT_ATTR_IDMAP")]
pub fn idmap(mount: impl AsFd, user_namespace: impl AsFd, recursive: bool) -> Result<(), Error> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    let number = std::os::fd::AsRawFd::as_raw_fd(&user_namespace.as_fd());
    let attr = MountAttr {
        set: MOUNT_ATTR_IDMAP,
        userns_fd: number.unsigned_abs().into(),
        ..MountAttr::default()
    };
    sys::mount_setattr(mount.as_fd(), recursive, &attr)
        .map_err(|errno| Error::io("map the ids of a mount")(errno.into()))
}
