//! A process that runs the program.

use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, ExitStatus, Output};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::{Error, Fallbacks, sys};

/// A running program, held by a pidfd: its pid cannot be taken by another process while this
/// value lives, and no `SIGCHLD` is needed.
///
/// The fd lent by [`AsFd`] becomes readable when the program ends; do not read from it, use it
/// with `poll(2)` or an event loop. As with std, dropping a `Child` neither kills nor reaps it
/// unless [`Command::kill_on_drop`](crate::Command::kill_on_drop) was asked for.
///
/// Minimum kernel: 5.4.
#[derive(Debug)]
#[doc(alias = "pidfd")]
pub struct Child {
    /// The write end of the program's standard input, when it was [piped](crate::Stdio::piped).
    pub stdin: Option<ChildStdin>,
    /// The read end of the program's standard output, when it was piped.
    pub stdout: Option<ChildStdout>,
    /// The read end of the program's standard error, when it was piped.
    pub stderr: Option<ChildStderr>,
    /// The master of the program's terminal, when [one was asked
    /// for](crate::Command::terminal).
    pub terminal: Option<OwnedFd>,
    /// The fd with the notifications of the seccomp filter, when [they were asked
    /// for](crate::Command::seccomp_listener).
    pub seccomp_listener: Option<OwnedFd>,
    pidfd: OwnedFd,
    pid: u32,
    status: Option<ExitStatus>,
    usage: Option<ResourceUsage>,
    fallbacks: Fallbacks,
    kill_on_drop: bool,
}

impl Child {
    pub(crate) fn new(pid: u32, pidfd: OwnedFd, kill_on_drop: bool) -> Self {
        Self {
            stdin: None,
            stdout: None,
            stderr: None,
            terminal: None,
            seccomp_listener: None,
            pidfd,
            pid,
            status: None,
            usage: None,
            fallbacks: Fallbacks::empty(),
            kill_on_drop,
        }
    }

    pub(crate) fn set_process(&mut self, pid: u32, pidfd: OwnedFd) {
        self.pid = pid;
        self.pidfd = pidfd;
    }

    pub(crate) fn set_kill_on_drop(&mut self, kill: bool) {
        self.kill_on_drop = kill;
    }

    pub(crate) fn add_fallbacks(&mut self, taken: Fallbacks) {
        self.fallbacks |= taken;
    }

    /// The second-best ways that were taken on the way to the program. Behind a gate at which
    /// [`leave`](crate::Starting::leave) left the process none are told.
    pub fn fallbacks(&self) -> Fallbacks {
        self.fallbacks
    }

    /// The pid as the caller sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until the program ends. Closes its standard input first, as std does.
    ///
    /// # Errors
    ///
    /// When the status cannot be had, for instance because `SIGCHLD` is ignored in this process
    /// or other code reaped the program.
    #[doc(alias = "waitid")]
    pub fn wait(&mut self) -> Result<ExitStatus, Error> {
        drop(self.stdin.take());
        loop {
            if let Some(status) = self.reap(true)? {
                return Ok(status);
            }
        }
    }

    /// The status of the program if it has ended.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.reap(false)
    }

    /// Waits until the program ends, at most for `timeout`; `None` when it still runs then.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<ExitStatus>, Error> {
        match Instant::now().checked_add(timeout) {
            Some(deadline) => self.wait_deadline(deadline),
            None => self.wait().map(Some),
        }
    }

    /// Waits until the program ends, at most until `deadline`; `None` when it still runs then.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn wait_deadline(&mut self, deadline: Instant) -> Result<Option<ExitStatus>, Error> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(status));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let left = Timespec::try_from(left).ok();
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, left.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(Error::io("poll a pidfd")(errno.into())),
            }
        }
    }

    /// Waits for the next change: that the program is stopped by a signal, goes on, or ends. Other
    /// waits do not see that it stops.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    #[doc(alias = "WUNTRACED")]
    pub fn wait_change(&mut self) -> Result<Change, Error> {
        loop {
            if let Some(change) = self.change(true)? {
                return Ok(change);
            }
        }
    }

    /// The next change if there is one already.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn try_wait_change(&mut self) -> Result<Option<Change>, Error> {
        self.change(false)
    }

    fn change(&mut self, block: bool) -> Result<Option<Change>, Error> {
        if let Some(status) = self.status {
            return Ok(Some(Change::Ended(status)));
        }
        let Some((status, usage)) = look(self.pidfd.as_fd(), block, true)? else {
            return Ok(None);
        };
        if let Some(signal) = status.stopped_signal() {
            return Ok(Some(Change::Stopped(signal)));
        }
        if status.continued() {
            return Ok(Some(Change::Continued));
        }
        self.status = Some(status);
        self.usage = Some(usage);
        Ok(Some(Change::Ended(status)))
    }

    /// Collects what the program writes to its piped streams until it ends.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), and when a stream cannot be read.
    pub fn wait_with_output(mut self) -> Result<Output, Error> {
        drop(self.stdin.take());
        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let failed = "read the program's output";
        match (self.stdout.take(), self.stderr.take()) {
            (Some(mut out), Some(mut err)) => {
                // Two pipes: reading one to its end while the other fills up would block both.
                std::thread::scope(|scope| {
                    let reader = scope.spawn(|| err.read_to_end(&mut stderr).map(drop));
                    let first = out.read_to_end(&mut stdout).map(drop);
                    match reader.join() {
                        Ok(second) => first.and(second),
                        Err(panic) => std::panic::resume_unwind(panic),
                    }
                })
                .map_err(Error::io(failed))?;
            }
            (Some(mut out), None) => {
                out.read_to_end(&mut stdout).map_err(Error::io(failed))?;
            }
            (None, Some(mut err)) => {
                err.read_to_end(&mut stderr).map_err(Error::io(failed))?;
            }
            (None, None) => {}
        }
        let status = self.wait()?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// Kills the program. Nothing happens when it has been waited for already.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<(), Error> {
        if self.status.is_some() {
            return Ok(());
        }
        self.signal(libc::SIGKILL)
    }

    /// Sends a signal by its number, such as 15 for `SIGTERM`. Linux 5.1.
    ///
    /// The program as PID 1 of its namespace gets only those signals for which it has installed
    /// a handler, and `SIGKILL` and `SIGSTOP`, see `pid_namespaces(7)`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: no such signal, or the program has ended and been waited for.
    #[doc(alias = "pidfd_send_signal")]
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        sys::pidfd_send_signal(self.pidfd.as_fd(), signal).map_err(Error::io("signal a process"))
    }

    /// What the program and those of its descendants that it waited for have used; `None` until
    /// it has been waited for.
    #[doc(alias = "rusage")]
    pub fn usage(&self) -> Option<ResourceUsage> {
        self.usage
    }

    fn reap(&mut self, block: bool) -> Result<Option<ExitStatus>, Error> {
        if self.status.is_some() {
            return Ok(self.status);
        }
        if let Some((status, usage)) = reap(self.pidfd.as_fd(), block)? {
            self.status = Some(status);
            self.usage = Some(usage);
        }
        Ok(self.status)
    }
}

/// A change in the life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// It was stopped by the signal of this number, such as 19 for `SIGSTOP`.
    #[doc(alias = "CLD_STOPPED")]
    Stopped(i32),
    /// It goes on after `SIGCONT`.
    #[doc(alias = "CLD_CONTINUED")]
    Continued,
    /// It ended; the status tells also whether it dumped core.
    #[doc(alias = "CLD_EXITED")]
    Ended(ExitStatus),
}

/// What a process has used, see `getrusage(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ResourceUsage {
    /// CPU time in the program.
    pub user_time: Duration,
    /// CPU time in the kernel for it.
    pub system_time: Duration,
    /// The most memory that was resident at a time, in bytes; of the largest process.
    pub max_resident: u64,
    /// Page faults that needed no reading.
    pub minor_faults: u64,
    /// Page faults that needed reading.
    pub major_faults: u64,
    /// Times the process gave up the CPU.
    pub voluntary_switches: u64,
    /// Times the CPU was taken from it.
    pub involuntary_switches: u64,
}

impl ResourceUsage {
    fn from_kernel(usage: &libc::rusage) -> Self {
        let count = |number: libc::c_long| u64::try_from(number).unwrap_or(0);
        let time = |time: libc::timeval| {
            Duration::from_secs(count(time.tv_sec)) + Duration::from_micros(count(time.tv_usec))
        };
        Self {
            user_time: time(usage.ru_utime),
            system_time: time(usage.ru_stime),
            max_resident: count(usage.ru_maxrss).saturating_mul(1024),
            minor_faults: count(usage.ru_minflt),
            major_faults: count(usage.ru_majflt),
            voluntary_switches: count(usage.ru_nvcsw),
            involuntary_switches: count(usage.ru_nivcsw),
        }
    }
}

/// The status of the process behind `pidfd` if it ended; it is reaped then. `None` also when the
/// wait was interrupted.
pub(crate) fn reap(
    pidfd: BorrowedFd<'_>,
    block: bool,
) -> Result<Option<(ExitStatus, ResourceUsage)>, Error> {
    look(pidfd, block, false)
}

/// The same, and with `changes` also whether it was stopped or goes on.
fn look(
    pidfd: BorrowedFd<'_>,
    block: bool,
    changes: bool,
) -> Result<Option<(ExitStatus, ResourceUsage)>, Error> {
    match sys::wait_pidfd(pidfd, block, changes) {
        Ok(ended) => Ok(ended.map(|ended| {
            (
                ExitStatus::from_raw(ended.status),
                ResourceUsage::from_kernel(&ended.usage),
            )
        })),
        Err(rustix::io::Errno::INTR) => Ok(None),
        Err(errno) => Err(Error::io("wait for a process")(errno.into())),
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.kill_on_drop && self.status.is_none() && self.kill().is_ok() {
            // Nobody is left to tell when this fails.
            let _ = self.wait();
        }
    }
}
