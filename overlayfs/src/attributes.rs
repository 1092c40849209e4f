//! What can be changed about a mount after it was made.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use crate::error::{Error, Result, Role, Step};
use crate::layer::open_directory;
use crate::sys;

/// Makes a mount, detached or attached, read-only or writable (Linux 5.12).
///
/// The overlay beneath is not touched: other mounts of it, and files that are open for
/// writing before it becomes read-only, are no obstacle but for `EBUSY` in the latter case.
///
/// # Errors
///
/// [`Error::NotPermitted`] without `CAP_SYS_ADMIN`, [`Error::Unsupported`] before Linux
/// 5.12, [`Error::Mount`] otherwise.
#[doc(alias = "mount_setattr")]
pub fn set_read_only(mount: impl AsFd, read_only: bool) -> Result<()> {
    let flag = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    let (set, clear) = if read_only { (flag, 0) } else { (0, flag) };
    sys::mount_setattr(mount.as_fd(), set, clear, None)
        .map_err(|source| refused(source, "changing mounts (mount_setattr)", "5.12"))
}

/// A detached mount of a directory in which owners are mapped as in a user namespace
/// (Linux 5.12; as a layer of an overlay 5.19).
///
/// Given as a [layer](crate::Layer), it makes a stack of root's layers usable for a
/// container with other ids, without changing the owner of a single file. The overlay itself
/// cannot be idmapped on any kernel so far: its layers are. Detached layers need Linux 6.15;
/// before, the mount is to be [attached](crate::attach) first.
///
/// # Errors
///
/// [`Error::OpenDirectory`] for a missing directory; [`Error::NotPermitted`] without
/// `CAP_SYS_ADMIN` over the filesystem, or for a user namespace that has no maps or is the
/// initial one; [`Error::Mount`] with `EINVAL` on a filesystem that cannot be idmapped.
#[doc(alias = "MOUNT_ATTR_IDMAP")]
pub fn idmapped(directory: impl AsRef<Path>, user_namespace: impl AsFd) -> Result<OwnedFd> {
    let directory = open_directory(directory.as_ref(), Role::Lower)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let mount = open_tree(&directory, c"", flags)
        .map_err(|source| refused_at(Step::Detach, source.into()))?;
    let flag = u64::from(MountAttrFlags::MOUNT_ATTR_IDMAP.bits());
    sys::mount_setattr(mount.as_fd(), flag, 0, Some(user_namespace.as_fd()))
        .map_err(|source| refused(source, "idmapped mounts", "5.12"))?;
    Ok(mount)
}

fn refused(source: std::io::Error, feature: &'static str, since: &'static str) -> Error {
    if source.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) {
        return Error::Unsupported { feature, since };
    }
    refused_at(Step::Attributes, source)
}

fn refused_at(step: Step, source: std::io::Error) -> Error {
    match source.kind() {
        std::io::ErrorKind::PermissionDenied => Error::NotPermitted { step, source },
        _ => Error::Mount {
            step,
            log: Vec::new(),
            source,
        },
    }
}
