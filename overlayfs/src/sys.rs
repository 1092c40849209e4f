//! System calls that no safe crate offers, one thin function each.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `mount_setattr(2)` on the mount that `mount` is the root of (Linux 5.12).
///
/// `set` and `clear` are `MOUNT_ATTR_*` flags; `userns` is the user namespace whose maps
/// an idmapped mount takes.
pub(crate) fn mount_setattr(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    userns: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: userns.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    // SAFETY: the path is a C string, `attributes` is a whole `mount_attr` that outlives
    // the call and whose size is passed with it, and the kernel writes to neither. Both
    // descriptors are open for as long as they are borrowed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives the calling thread a current directory and a mount namespace of its own.
pub(crate) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: unsharing CLONE_FS and CLONE_NEWNS changes only how the calling thread
    // resolves paths. No memory, descriptor or credential is affected, and the only
    // caller is a thread that was made for this and ends afterwards.
    let result = unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Gives the calling thread a current directory of its own.
pub(crate) fn unshare_directory() -> io::Result<()> {
    // SAFETY: unsharing CLONE_FS only separates the calling thread's current directory,
    // root and umask from the other threads'; nothing in memory depends on them.
    let result = unsafe { libc::unshare(libc::CLONE_FS) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// `name_to_handle_at(2)`: the type and the bytes of the handle of an entry, which is not
/// followed if it is a symbolic link.
pub(crate) fn file_handle(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<(i32, Vec<u8>)> {
    /// `struct file_handle` with room for the longest handle.
    #[repr(C)]
    struct Handle {
        length: u32,
        kind: i32,
        bytes: [u8; libc::MAX_HANDLE_SZ as usize],
    }
    let mut handle = Handle {
        length: 128,
        kind: 0,
        bytes: [0; libc::MAX_HANDLE_SZ as usize],
    };
    let mut mount = 0;
    // SAFETY: `name` is a C string; `handle` has the layout of `struct file_handle` followed
    // by as many bytes as its `length` says, so the kernel writes inside of it; `mount` is
    // an int as the call wants it. All three outlive the call.
    let result = unsafe {
        libc::name_to_handle_at(
            directory.as_raw_fd(),
            name.as_ptr(),
            (&raw mut handle).cast(),
            &raw mut mount,
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let length = handle.bytes.len().min(handle.length as usize);
    Ok((handle.kind, handle.bytes[..length].to_vec()))
}
