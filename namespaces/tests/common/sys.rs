//! Answering for the kernel: the system calls of a thread and its children, one by one, see
//! `seccomp_unotify(2)`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const CONTINUE: u32 = 1;

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    id: u64,
    /// The thread that makes it.
    pub(crate) thread: u32,
    pub(crate) number: i64,
}

/// What a thread needs to hand its listener over, and to end; no plan makes such calls.
const ALLOWED: [libc::c_long; 8] = [
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
];

/// Puts a filter over the calling thread that lets somebody else answer every system call but
/// [those](ALLOWED). Its children inherit the filter.
pub(crate) fn answer_for_me() -> io::Result<OwnedFd> {
    let instruction = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut program = vec![instruction(0x20, 0, 0)];
    for (at, number) in ALLOWED.iter().enumerate() {
        // Over the rest of these and what follows them.
        let jumped = u8::try_from(ALLOWED.len() - at).unwrap_or(0);
        let number = u32::try_from(*number).unwrap_or(u32::MAX);
        program.push(instruction(0x15, jumped, number));
    }
    program.push(instruction(0x06, 0, libc::SECCOMP_RET_USER_NOTIF));
    program.push(instruction(0x06, 0, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the call takes numbers, and changes the calling thread only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `filter` describes the living vector, from which the kernel only reads.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    let fd = i32::try_from(fd).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next call that waits; `None` when its thread is gone already.
pub(crate) fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Call>> {
    // SAFETY: all zeros is a valid notification, and the kernel asks for one.
    let mut notification: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer leads to a living notification of the size that the request names.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE, &raw mut notification) };
    if result == 0 {
        return Ok(Some(Call {
            id: notification.id,
            thread: notification.pid,
            number: notification.data.nr.into(),
        }));
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        error => Err(error),
    }
}

/// Lets the call happen, or fail with this errno.
pub(crate) fn answer(listener: BorrowedFd<'_>, call: Call, errno: Option<i32>) -> io::Result<()> {
    let mut response = libc::seccomp_notif_resp {
        id: call.id,
        val: 0,
        error: errno.map_or(0, |errno| -errno),
        flags: if errno.is_none() { CONTINUE } else { 0 },
    };
    // SAFETY: the pointer leads to a living response of the size that the request names.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), SEND, &raw mut response) };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // Its thread was killed meanwhile.
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            error => Err(error),
        },
    }
}

/// The next call, waiting for it; `None` when every thread under the filter is gone.
pub(crate) fn next(listener: BorrowedFd<'_>) -> io::Result<Option<Call>> {
    use rustix::event::{PollFd, PollFlags, poll};
    loop {
        let mut fds = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
        poll(&mut fds, None)?;
        let [ready] = &fds;
        if ready.revents().contains(PollFlags::IN) {
            if let Some(call) = receive(listener)? {
                return Ok(Some(call));
            }
        } else if ready.revents().contains(PollFlags::HUP) {
            return Ok(None);
        }
    }
}
