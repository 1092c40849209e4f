//! Waiting for a process behind a pidfd.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Result;
use syscalls::Sysno;

use super::check;

/// A process that ended: how, by the encoding of `wait(2)`, and what it used.
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) usage: libc::rusage,
}

/// Reaps the process behind `pidfd`; `None` when it has not ended and `block` is not set. With
/// `changes` that it was stopped or goes on is told, too.
pub(crate) fn wait_pidfd(
    pidfd: BorrowedFd<'_>,
    block: bool,
    changes: bool,
) -> Result<Option<Ended>> {
    let mut options = libc::WEXITED | if block { 0 } else { libc::WNOHANG };
    if changes {
        options |= libc::WSTOPPED | libc::WCONTINUED;
    }
    // SAFETY: all zeros is a valid siginfo, in which the pid tells that nothing was found.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: all zeros is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the pointers lead to a living siginfo and a living rusage.
    let result = unsafe {
        syscall!(
            Sysno::waitid,
            libc::P_PIDFD,
            pidfd.as_raw_fd(),
            &raw mut info,
            options,
            &raw mut usage,
        )
    };
    check(result)?;
    // SAFETY: the call fills in this member, or leaves the zero.
    if unsafe { info.si_pid() } == 0 {
        return Ok(None);
    }
    // SAFETY: with a pid the call has filled in this member too.
    let status = unsafe { info.si_status() };
    Ok(Some(Ended {
        status: match info.si_code {
            libc::CLD_EXITED => (status & 0xff) << 8,
            libc::CLD_DUMPED => status | 0x80,
            libc::CLD_STOPPED | libc::CLD_TRAPPED => (status & 0xff) << 8 | 0x7f,
            libc::CLD_CONTINUED => 0xffff,
            _ => status,
        },
        usage,
    }))
}
