//! Mounts, where rustix leaves something out.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::Result;
use syscalls::Sysno;

use super::check;

/// The `struct mount_attr` of Linux 5.12.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) userns_fd: u64,
}

/// `mount_setattr` on the mount behind `mount` itself.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    attr: &MountAttr,
) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a C string, and `attr` a `mount_attr` of the size given.
    let result = unsafe {
        syscall!(
            Sysno::mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

/// `mount(2)` with what rustix leaves out: any flags, and no source or type.
pub(crate) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    kind: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Result<()> {
    let pointer = |string: Option<&CStr>| string.map_or(ptr::null(), CStr::as_ptr);
    // SAFETY: every pointer is null or leads to a C string that lives across the call.
    let result = unsafe {
        syscall!(
            Sysno::mount,
            pointer(source),
            target.as_ptr(),
            pointer(kind),
            flags,
            pointer(data),
        )
    };
    check(result).map(drop)
}
