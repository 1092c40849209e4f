//! Paths inside the root, resolved by the child.
//!
//! Each is resolved to an `O_PATH` descriptor by `openat2` with `RESOLVE_IN_ROOT`, and what is done
//! is done by that descriptor: what the path means cannot change in between. The rules of
//! [`crate::execute`] hold here too.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::plan::Target;
use crate::protocol::{Call, Failure, Result};

/// What is made where a target is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

pub(crate) const O_PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Resolves `path` inside `root`.
pub(crate) fn open_inside(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something was renamed or mounted meanwhile, and the kernel cannot rule out an
    // escape. Somebody who does that on purpose wins nothing but an error.
    for _ in 0..128 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Resolves a target inside `root`; makes what is missing, if the target says so.
pub(crate) fn open_target(root: BorrowedFd<'_>, target: &Target, make: Make) -> Result<OwnedFd> {
    match open_inside(root, &target.path, O_PATH) {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) if target.create => {}
        Err(errno) => return Err(Failure::of(Call::Openat2)(errno)),
    }
    let mut directory = open_inside(root, c".", O_PATH).map_err(Failure::of(Call::Openat2))?;
    let last = target.components.len().saturating_sub(1);
    for (at, (prefix, name)) in target.components.iter().enumerate() {
        directory = match open_inside(root, prefix, O_PATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                let make = if at == last { make } else { Make::Directory };
                make_in(directory.as_fd(), name, make)?
            }
            Err(errno) => return Err(Failure::of(Call::Openat2)(errno)),
        };
    }
    Ok(directory)
}

/// Makes `name`, a single component, in `directory`.
pub(crate) fn make_in(directory: BorrowedFd<'_>, name: &CStr, make: Make) -> Result<OwnedFd> {
    match make {
        Make::Directory => {
            match rustix::fs::mkdirat(directory, name, Mode::from_bits_retain(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Failure::of(Call::Mkdirat)(errno)),
            }
            rustix::fs::openat(
                directory,
                name,
                O_PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY,
                Mode::empty(),
            )
            .map_err(Failure::of(Call::Openat))
        }
        Make::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(directory, name, flags, Mode::from_bits_retain(0o644))
                .map_err(Failure::of(Call::Openat))
        }
    }
}

/// The directory of a target, made if it is missing.
pub(crate) fn open_parent(root: BorrowedFd<'_>, target: &Target) -> Result<OwnedFd> {
    let mut directory = open_inside(root, c".", O_PATH).map_err(Failure::of(Call::Openat2))?;
    let parents = target.components.len().saturating_sub(1);
    for (prefix, name) in target.components.iter().take(parents) {
        directory = match open_inside(root, prefix, O_PATH | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => make_in(directory.as_fd(), name, Make::Directory)?,
            Err(errno) => return Err(Failure::of(Call::Openat2)(errno)),
        };
    }
    Ok(directory)
}

pub(crate) fn open_existing(root: BorrowedFd<'_>, path: &CStr) -> Result<Option<OwnedFd>> {
    match open_inside(root, path, O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Failure::of(Call::Openat2)(errno)),
    }
}

/// Makes a link that nothing is in the way of.
pub(crate) fn make_link(root: BorrowedFd<'_>, target: &Target, to: &CStr) -> Result<()> {
    let Some((_, name)) = target.components.last() else {
        return Ok(());
    };
    let parent = open_parent(root, target)?;
    match rustix::fs::symlinkat(to, &parent, name.as_c_str()) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Failure::of(Call::Symlinkat)(errno)),
    }
}

pub(crate) fn file_type(fd: BorrowedFd<'_>) -> Result<FileType> {
    rustix::fs::fstat(fd)
        .map(|stat| FileType::from_raw_mode(stat.st_mode))
        .map_err(Failure::of(Call::Fstat))
}
