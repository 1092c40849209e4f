//! Attributes of the calling process that only the kernel's own interface knows.

use std::ffi::CStr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::{Errno, Result};
use syscalls::Sysno;

use super::check;

/// One instruction of classic BPF.
pub(crate) type Instruction = libc::sock_filter;

/// Installs a seccomp filter on the calling thread; with the flag for a listener its descriptor.
pub(crate) fn seccomp(
    program: &[Instruction],
    flags: u32,
    listener: bool,
) -> Result<Option<OwnedFd>> {
    const NEW_LISTENER: u32 = 8;
    let flags = if listener {
        flags | NEW_LISTENER
    } else {
        flags
    };
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` describes the living slice, from which the kernel only reads.
    let result = unsafe {
        syscall!(
            Sysno::seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    let fd = check(result)?;
    if !listener {
        return Ok(None);
    }
    let fd = RawFd::try_from(fd).map_err(|_| Errno::BADF)?;
    // SAFETY: with this flag the kernel has just made the descriptor for us.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// The `struct sched_attr` of Linux 3.14.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct SchedAttr {
    pub(crate) size: u32,
    pub(crate) policy: u32,
    pub(crate) flags: u64,
    pub(crate) nice: i32,
    pub(crate) priority: u32,
    pub(crate) runtime: u64,
    pub(crate) deadline: u64,
    pub(crate) period: u64,
}

pub(crate) fn sched_setattr(attr: &SchedAttr) -> Result<()> {
    let attr = SchedAttr {
        // SCHED_ATTR_SIZE_VER0, the size of the struct above.
        size: 48,
        ..*attr
    };
    // SAFETY: the pointer leads to a living `sched_attr` whose size it tells.
    let result = unsafe { syscall!(Sysno::sched_setattr, 0, &raw const attr, 0) };
    check(result).map(drop)
}

pub(crate) fn ioprio_set(priority: u32) -> Result<()> {
    const IOPRIO_WHO_PROCESS: u32 = 1;
    // SAFETY: the call takes numbers.
    let result = unsafe { syscall!(Sysno::ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
    check(result).map(drop)
}

/// Restricts the calling thread to the CPUs whose bits are set.
pub(crate) fn sched_setaffinity(cpus: &[u64]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as the slice has.
    let result = unsafe {
        syscall!(
            Sysno::sched_setaffinity,
            0,
            size_of_val(cpus),
            cpus.as_ptr(),
        )
    };
    check(result).map(drop)
}

pub(crate) fn set_mempolicy(mode: u32, nodes: &[u64]) -> Result<()> {
    // One more than there are bits: the kernel takes one off, of nothing, too, and then takes it for
    // very many unless it finds no pointer.
    let (first, bits) = if nodes.is_empty() {
        (ptr::null(), 0)
    } else {
        (nodes.as_ptr(), nodes.len() * 64 + 1)
    };
    // SAFETY: the kernel reads as many bits as the slice has, or nothing when there are none.
    let result = unsafe { syscall!(Sysno::set_mempolicy, mode, first, bits) };
    check(result).map(drop)
}

pub(crate) fn personality(persona: u32) -> Result<()> {
    // SAFETY: the call takes a number.
    let result = unsafe { syscall!(Sysno::personality, persona) };
    check(result).map(drop)
}

/// Joins a session keyring of this name, which is made if needed.
pub(crate) fn join_session_keyring(name: &CStr) -> Result<()> {
    // SAFETY: the name is a C string.
    let result = unsafe {
        syscall!(
            Sysno::keyctl,
            libc::KEYCTL_JOIN_SESSION_KEYRING,
            name.as_ptr(),
        )
    };
    check(result).map(drop)
}
