//! Files of a `/proc` that nobody else can reach, opened by the child. The rules of
//! [`crate::execute`] hold here too.

use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use crate::fallback::{Fallbacks, Taken};
use crate::inside::O_PATH;
use crate::protocol::{Call, Failure, Result};

/// Opens a file of a `/proc` that nobody else can reach, so that nothing can be mounted over it
/// (CVE-2019-16884, CVE-2025-52881); where such a one is refused, of the one at `/proc`, having
/// made sure that it is one.
pub(crate) fn open_proc(path: &CStr, write: bool, taken: &Taken) -> Result<OwnedFd> {
    const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;
    let proc = if let Ok(proc) = private_proc() {
        proc
    } else {
        taken.note(Fallbacks::SHARED_PROC);
        let flags = O_PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        rustix::fs::openat(CWD, c"/proc", flags, Mode::empty())
            .map_err(Failure::of(Call::Openat))?
    };
    let fs = rustix::fs::fstatfs(&proc).map_err(Failure::of(Call::Fstat))?;
    if fs.f_type != PROC_SUPER_MAGIC {
        return Err(Failure {
            call: Call::Openat,
            errno: Errno::NODEV,
        });
    }
    let flags = if write {
        OFlags::WRONLY
    } else {
        OFlags::RDONLY
    };
    // No step onto another mount: it would be one that somebody put there. The last component
    // may be a link of the kernel's, such as ns/time_for_children.
    rustix::fs::openat2(
        &proc,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        if write {
            ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS
        } else {
            ResolveFlags::empty()
        },
    )
    .map_err(Failure::of(Call::Openat2))
}

fn private_proc() -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failure::of(Call::Fsopen))?;
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(Failure::of(Call::Fsconfig))?;
    rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .map_err(Failure::of(Call::Fsmount))
}

/// Writes `value` to a file of `/proc` in one call.
pub(crate) fn write_proc(path: &CStr, value: &[u8], taken: &Taken) -> Result<()> {
    let file = open_proc(path, true, taken)?;
    match rustix::io::write(&file, value) {
        Ok(written) if written == value.len() => Ok(()),
        Ok(_) => Err(Failure::of(Call::Write)(Errno::IO)),
        Err(errno) => Err(Failure::of(Call::Write)(errno)),
    }
}
