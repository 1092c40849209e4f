//! The new root, attached over the old one until the child pivots. The rules of [`crate::execute`]
//! hold here too.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::UnmountFlags;

use crate::attach::{
    FdPath, clone_tree, is_missing, move_onto, set_attributes, set_attributes_attached,
};
use crate::fallback::{Fallbacks, Taken};
use crate::filesystem::{READ_ONLY, open_source};
use crate::inside::O_PATH;
use crate::protocol::{Call, Failure, Result};
use crate::sys;

pub(crate) fn open_root() -> Result<OwnedFd> {
    rustix::fs::openat(CWD, c"/", O_PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(Failure::of(Call::Openat))
}

pub(crate) fn attach_root_path(path: &CStr, taken: &Taken) -> Result<OwnedFd> {
    let directory = open_source(path, OFlags::DIRECTORY)?;
    match clone_tree(directory.as_fd(), true).and_then(|tree| attach_root_mount(tree.as_fd())) {
        Err(failure) if is_missing(failure) => {
            taken.note(Fallbacks::CLASSIC_BIND);
            sys::mount(
                Some(FdPath::new(directory.as_fd()).as_c_str()),
                c"/",
                None,
                libc::MS_BIND | libc::MS_REC,
                None,
            )
            .map_err(Failure::of(Call::Mount))?;
            // The one path from here that leads onto a mount that covers the root.
            rustix::fs::openat(CWD, c"/..", O_PATH | OFlags::DIRECTORY, Mode::empty())
                .map_err(Failure::of(Call::Openat))
        }
        result => result,
    }
}

/// Attaches the mount over `/`. Paths that begin at `/` still lead through what is below it,
/// because that is the root of this process until it pivots.
pub(crate) fn attach_root_mount(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let old = open_root()?;
    move_onto(mount, old.as_fd())?;
    rustix::io::fcntl_dupfd_cloexec(mount, 3).map_err(Failure::of(Call::Fcntl))
}

pub(crate) fn read_only_root(root: BorrowedFd<'_>, recursive: bool, taken: &Taken) -> Result<()> {
    let mut attributes = READ_ONLY;
    if recursive {
        std::mem::swap(&mut attributes.attr, &mut attributes.tree);
    }
    if set_attributes(root, &attributes)? {
        Ok(())
    } else {
        set_attributes_attached(root, &attributes, taken)
    }
}

/// Makes `root` the root of this process alone.
pub(crate) fn change_root(root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(root).map_err(Failure::of(Call::Fchdir))?;
    rustix::process::chroot(c".").map_err(Failure::of(Call::Chroot))
}

/// Makes `root` the root of this process and lets go of the old one.
pub(crate) fn pivot_root(root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(root).map_err(Failure::of(Call::Fchdir))?;
    // The old root is stacked on the new one and taken off again; no directory is needed for it.
    rustix::process::pivot_root(c".", c".").map_err(Failure::of(Call::PivotRoot))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(Failure::of(Call::Umount))?;
    rustix::process::chdir(c"/").map_err(Failure::of(Call::Chdir))
}
