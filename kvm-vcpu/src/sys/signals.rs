//! The signal that stops running vCPUs, and the timers that send it.

use std::cell::Cell;
use std::io;
use std::ptr;

use super::run::on_kick;

thread_local! {
    static TID: Cell<i32> = const { Cell::new(0) };
}

/// The range of real-time signals that the C library leaves to programs.
pub(crate) fn realtime_signals() -> std::ops::RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Installs the kick handler; `Ok(false)` when the signal has another handler already.
pub(crate) fn install_kick_handler(signal: i32) -> io::Result<bool> {
    // SAFETY: all bits zero is a valid `sigaction`: default action, empty mask, no flags.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action changes nothing; `old` is a valid place for the present one.
    if unsafe { libc::sigaction(signal, ptr::null(), &raw mut old) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let ours = on_kick as extern "C" fn(libc::c_int) as libc::sighandler_t;
    if old.sa_sigaction == ours {
        return Ok(true);
    }
    if old.sa_sigaction != libc::SIG_DFL {
        return Ok(false);
    }
    // SAFETY: as above.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = ours;
    // KVM_RUN returns EINTR with SA_RESTART too, and the program's other calls are undisturbed.
    new.sa_flags = libc::SA_RESTART;
    // SAFETY: `new` holds a handler of the right signature that does only async-signal-safe work
    // (a thread-local read and an atomic store).
    if unsafe { libc::sigaction(signal, &raw const new, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}

/// Lets this thread receive the signal, whatever its creator blocked.
pub(crate) fn unblock(signal: i32) -> io::Result<()> {
    // SAFETY: all bits zero is a valid (empty) signal set on Linux.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid set.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: `set` is a valid set, and a null old set is allowed.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// This thread's id as the kernel knows it.
pub(crate) fn gettid() -> i32 {
    let known = TID.get();
    if known != 0 {
        return known;
    }
    // SAFETY: the call takes nothing and cannot fail.
    let tid = unsafe { libc::gettid() };
    TID.set(tid);
    tid
}

/// Sends a signal to a thread of this process.
pub(crate) fn signal_thread(tid: i32, signal: i32) -> io::Result<()> {
    let pid = std::process::id();
    // SAFETY: the call takes numbers alone. A thread that is gone makes it fail with ESRCH, and
    // it can reach no other process.
    let ret = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
    if ret == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A timer that sends a signal to the thread that made it.
#[derive(Debug)]
pub(crate) struct ThreadTimer {
    id: libc::timer_t,
    tid: i32,
}

// SAFETY: the id is a number that the kernel gave out for the whole process, in a pointer's type.
unsafe impl Send for ThreadTimer {}
// SAFETY: as above.
unsafe impl Sync for ThreadTimer {}

impl ThreadTimer {
    pub(crate) fn new(signal: i32) -> io::Result<Self> {
        let tid = gettid();
        // SAFETY: all bits zero is a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = tid;
        let mut id: libc::timer_t = ptr::null_mut();
        // SAFETY: `event` is initialised and `id` is a place for the result.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { id, tid })
    }

    /// The thread that the signal goes to.
    pub(crate) fn tid(&self) -> i32 {
        self.tid
    }

    /// Fires once after this time; zero stops it.
    pub(crate) fn set(&self, after: std::time::Duration) -> io::Result<()> {
        let spec = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(after.subsec_nanos()),
            },
        };
        // SAFETY: the timer lives as long as `self`, and `spec` is initialised.
        if unsafe { libc::timer_settime(self.id, 0, &raw const spec, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is deleted once.
        unsafe { libc::timer_delete(self.id) };
    }
}
