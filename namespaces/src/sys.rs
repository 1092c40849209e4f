//! The system calls that neither std nor rustix offers, one thin function each, and the one place
//! where a process is cloned.
//!
//! Everything here may run in the cloned child, so nothing here allocates, locks or panics. The
//! child may share the memory of its parent, the place of `errno` included, while the parent runs:
//! so calls do not go through the C library. (Those of a parent alone may.)

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::{Errno, Result};
use syscalls::Sysno;

/// A system call as it is, without the C library.
macro_rules! syscall {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        syscalls::syscall!($number $(, $argument)*)
    };
}

mod attributes;
mod clone;
mod mount;
mod wait;

pub(crate) use attributes::{
    Instruction, SchedAttr, ioprio_set, join_session_keyring, personality, sched_setaffinity,
    sched_setattr, seccomp, set_mempolicy,
};
pub(crate) use clone::{Lent, clone_below, clone_child, clone_lending, clone_sibling};
pub(crate) use mount::{MountAttr, mount, mount_setattr};
pub(crate) use wait::wait_pidfd;

/// The result of a system call in the types of this crate.
fn check(result: std::result::Result<usize, syscalls::Errno>) -> Result<usize> {
    result.map_err(|errno| Errno::from_raw_os_error(errno.into_raw()))
}

/// The number of a file descriptor that a plan names.
///
/// The plan is compiled and the child cloned while the [`Command`](crate::Command) that owns the
/// descriptor is borrowed; from then on the child has a copy of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PlanFd(RawFd);

impl PlanFd {
    pub(crate) fn of(fd: &impl AsFd) -> Self {
        Self(fd.as_fd().as_raw_fd())
    }

    pub(crate) fn number(self) -> RawFd {
        self.0
    }

    /// To be called in the child only.
    pub(crate) fn in_child(&self) -> BorrowedFd<'_> {
        // SAFETY: the number was valid in the parent when the child was cloned (see the type),
        // and the child, which is the only one to call this, closes none of the plan's.
        unsafe { BorrowedFd::borrow_raw(self.0) }
    }
}

/// Strings as `execve` takes them.
#[derive(Debug)]
pub(crate) struct CStringArray {
    /// Into `_strings`, and a null pointer at the end.
    pointers: Vec<*const c_char>,
    _strings: Vec<CString>,
}

impl CStringArray {
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        // The heap buffers to which these point stay where they are when `strings` moves, and
        // `strings` is never changed.
        let pointers = strings
            .iter()
            .map(|string| string.as_ptr())
            .chain([ptr::null()])
            .collect();
        Self {
            pointers,
            _strings: strings,
        }
    }
}

// SAFETY: the pointers lead to the value's own, never changing heap buffers.
unsafe impl Send for CStringArray {}

// SAFETY: as for Send; nothing is changed through a shared reference.
unsafe impl Sync for CStringArray {}

/// Waits for any signal, all of which are blocked. Its number, and whether a process sent it; the
/// others come from the kernel.
pub(crate) fn wait_for_signal() -> Result<(i32, bool)> {
    let all = u64::MAX;
    // SAFETY: all zeros is a valid siginfo.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers lead to a living integer of the size given and a living siginfo; there
    // need be no time limit.
    let result = unsafe {
        syscall!(
            Sysno::rt_sigtimedwait,
            &raw const all,
            &raw mut info,
            ptr::null::<libc::timespec>(),
            size_of::<u64>(),
        )
    };
    check(result)?;
    Ok((info.si_signo, info.si_code <= 0))
}

/// Writes over the memory of the calling process at `address`, in a child that does not use what is
/// there. Nothing happens where there is no such memory.
pub(crate) fn overwrite_own_memory(address: usize, bytes: &[u8]) {
    let from = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let to = libc::iovec {
        iov_base: ptr::without_provenance_mut(address),
        iov_len: bytes.len(),
    };
    let own = rustix::process::getpid().as_raw_pid();
    // SAFETY: the kernel reads the living slice, and writes where the caller says that nothing is
    // that this process uses; an address that is not mapped is an error.
    let _ = unsafe {
        syscall!(
            Sysno::process_vm_writev,
            own,
            &raw const from,
            1,
            &raw const to,
            1,
            0,
        )
    };
}

/// Sends a signal to a child that has not been waited for.
pub(crate) fn kill(process: rustix::process::Pid, signal: i32) {
    // SAFETY: the call takes numbers. When the process has just ended there is nothing to signal.
    let _ = unsafe { syscall!(Sysno::kill, process.as_raw_pid(), signal) };
}

/// Sets the signal mask of this thread, glibc's internal signals included; returns the old one.
pub(crate) fn set_signal_mask(mask: u64) -> Result<u64> {
    let mut old = 0_u64;
    // SAFETY: both pointers lead to living integers of the size given.
    let result = unsafe {
        syscall!(
            Sysno::rt_sigprocmask,
            libc::SIG_SETMASK,
            ptr::from_ref(&mask),
            ptr::from_mut(&mut old),
            size_of::<u64>(),
        )
    };
    check(result).map(|_| old)
}

/// Room for what the kernel takes for an action; the handler comes first on every architecture, and
/// all zeros is the default one.
type Action = [usize; 8];

/// Gives every signal that has a handler its default action, and SIGPIPE too, which Rust programs
/// ignore; other ignored signals stay ignored, as after `execve`.
pub(crate) fn reset_signal_handlers(handlers_cleared: bool) -> Result<()> {
    if !handlers_cleared {
        for signal in 1..=64 {
            let mut action: Action = [0; 8];
            // SAFETY: the kernel writes the action of a signal to living memory that has room.
            let known = unsafe {
                syscall!(
                    Sysno::rt_sigaction,
                    signal,
                    ptr::null::<Action>(),
                    &raw mut action,
                    size_of::<u64>()
                )
            };
            let [handler, ..] = action;
            if known.is_ok() && handler != libc::SIG_IGN && handler != libc::SIG_DFL {
                default_action(signal)?;
            }
        }
    }
    default_action(libc::SIGPIPE)
}

pub(crate) fn default_action(signal: i32) -> Result<()> {
    let action: Action = [0; 8];
    // SAFETY: the pointer leads to a living action that installs no code.
    let result = unsafe {
        syscall!(
            Sysno::rt_sigaction,
            signal,
            &raw const action,
            ptr::null::<Action>(),
            size_of::<u64>()
        )
    };
    check(result).map(drop)
}

pub(crate) fn execve(path: &CStr, args: &CStringArray, env: &CStringArray) -> Errno {
    // SAFETY: the path is a C string and the arrays are null-terminated arrays of C strings, all
    // living across the call.
    let result = unsafe {
        syscall!(
            Sysno::execve,
            path.as_ptr(),
            args.pointers.as_ptr(),
            env.pointers.as_ptr()
        )
    };
    // It returns to tell of an error only.
    check(result).err().unwrap_or(Errno::IO)
}

/// Ends the child at once, without handlers of the parent's copy running.
pub(crate) fn exit(status: i32) -> ! {
    // SAFETY: the call takes a number and does not return.
    unsafe { libc::_exit(status) }
}

pub(crate) fn close_range(first: u32, last: u32, cloexec: bool) -> Result<()> {
    let flags: u32 = if cloexec { 4 } else { 0 };
    // SAFETY: the call takes numbers. That the descriptors are not used afterwards is for the
    // caller to see to: the child keeps those of the plan and owns no others.
    let result = unsafe { syscall!(Sysno::close_range, first, last, flags) };
    check(result).map(drop)
}

/// Closes everything, in a child that uses no descriptor any more.
pub(crate) fn close_all() {
    if close_range(0, u32::MAX, false).is_err() {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        for fd in 0..limit.unwrap_or(1 << 20).min(1 << 20) {
            close(fd.try_into().unwrap_or(RawFd::MAX));
        }
    }
}

/// Closes one number; used where `close_range` is missing.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: as for close_range.
    let _ = unsafe { syscall!(Sysno::close, fd) };
}

/// Puts a copy of `fd` at `number`, to be kept across `execve`.
pub(crate) fn dup_to(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    // SAFETY: the call takes numbers; what was at `number` is not ours (the plan keeps its own
    // descriptors above every number that it fills).
    let result = unsafe { syscall!(Sysno::dup3, fd.as_raw_fd(), number, 0) };
    check(result).map(drop)
}

/// A copy of `fd` at `floor` or above, closed by `execve`.
pub(crate) fn dup_above(fd: BorrowedFd<'_>, floor: RawFd) -> io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, floor).map_err(Into::into)
}

/// Whether `number` is open and stays so across `execve`; an error tells that it does not.
pub(crate) fn is_inheritable(number: RawFd) -> io::Result<()> {
    // SAFETY: the call takes numbers and reads a flag; a number that is not open is `EBADF`.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::other(format!(
            "descriptor {number} is this process's own (FD_CLOEXEC), it was not given to it"
        )));
    }
    Ok(())
}

/// `setns` with an nsfs descriptor or a pidfd.
pub(crate) fn setns(fd: BorrowedFd<'_>, kind: u32) -> Result<()> {
    // SAFETY: the call takes numbers; it changes the calling child only.
    let result = unsafe { syscall!(Sysno::setns, fd.as_raw_fd(), kind) };
    check(result).map(drop)
}

pub(crate) fn unshare(namespaces: u32) -> Result<()> {
    // SAFETY: the call takes a number; without CLONE_FILES and CLONE_VM no resource that Rust
    // knows of is concerned.
    let result = unsafe { syscall!(Sysno::unshare, namespaces) };
    check(result).map(drop)
}

/// The `CLONE_NEW…` bit of the namespace behind `fd`; `ENOTTY` where it is none.
#[doc(alias = "NS_GET_NSTYPE")]
pub(crate) fn namespace_type(fd: BorrowedFd<'_>) -> Result<u32> {
    const NS_GET_NSTYPE: u32 = 0xb703;
    // SAFETY: this ioctl takes no argument.
    let result = unsafe { syscall!(Sysno::ioctl, fd.as_raw_fd(), NS_GET_NSTYPE, 0) };
    check(result).map(|kind| u32::try_from(kind).unwrap_or(0))
}

/// The current directory, into `buffer`; without the NUL.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Result<&[u8]> {
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let result = unsafe { syscall!(Sysno::getcwd, buffer.as_mut_ptr(), buffer.len()) };
    let length = check(result)?;
    buffer
        .get(..length.saturating_sub(1))
        .ok_or(Errno::OVERFLOW)
}

/// Brings the interface `lo` up.
pub(crate) fn loopback_up(socket: BorrowedFd<'_>) -> Result<()> {
    const IFF_UP: libc::c_short = 1;
    // SAFETY: all zeros is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = from.cast_signed() as c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the living ifreq.
    let result = unsafe {
        syscall!(
            Sysno::ioctl,
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS,
            &raw mut request,
        )
    };
    check(result)?;
    // SAFETY: the call above has filled in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | IFF_UP;
    // SAFETY: SIOCSIFFLAGS reads name and flags of the living ifreq.
    let result = unsafe {
        syscall!(
            Sysno::ioctl,
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS,
            &raw const request,
        )
    };
    check(result).map(drop)
}

/// Makes the terminal the controlling one of the calling session leader.
#[doc(alias = "TIOCSCTTY")]
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: the call takes numbers.
    let result = unsafe { syscall!(Sysno::ioctl, terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    check(result).map(drop)
}

pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers and a null pointer, which stands for "as kill(2) would".
    let result = unsafe {
        syscall!(
            Sysno::pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(result)?;
    Ok(())
}
