//! A process that somebody else started.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::{Error, sys};

/// A running process that is not, or no longer, this process's child, held by a pidfd.
///
/// [`Command::join`](crate::Command::join) takes it to join its namespaces (Linux 5.8). The fd lent
/// by [`AsFd`] becomes readable when it ends.
///
/// Minimum kernel: 5.3.
#[derive(Debug)]
#[doc(alias = "pidfd_open")]
pub struct Process {
    pid: u32,
    start_time: u64,
    pidfd: OwnedFd,
}

impl Process {
    /// The process `pid`, or `None` when there is none, or one that has ended already.
    ///
    /// # Errors
    ///
    /// When the kernel refuses for another reason, or `/proc` is not mounted.
    pub fn open(pid: u32) -> Result<Option<Self>, Error> {
        let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        let pidfd = match pidfd_open(number, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(Error::io("open a pidfd of a process")(errno.into())),
        };
        let path = format!("/proc/{pid}/stat");
        let stat = match fs::read(&path) {
            Ok(stat) => stat,
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    || error.raw_os_error() == Some(libc::ESRCH) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(Error::io_path("read", path)(error)),
        };
        let process = start_time(&stat).map(|start_time| Self {
            pid,
            start_time,
            pidfd,
        });
        // What was read may be of a later process of this number, if this one has ended meanwhile.
        match process {
            Some(process) if !process.has_ended()? => Ok(Some(process)),
            _ => Ok(None),
        }
    }

    /// The process `pid` that was started at `start_time`, or `None` when it has ended: another
    /// one may have got its number since.
    ///
    /// # Errors
    ///
    /// As [`open`](Self::open).
    pub fn find(pid: u32, start_time: u64) -> Result<Option<Self>, Error> {
        Ok(Self::open(pid)?.filter(|process| process.start_time == start_time))
    }

    /// Its pid as the caller sees it.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it was started, in clock ticks since boot: together with the pid this names a process
    /// for good. See `proc_pid_stat(5)`.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Sends a signal by its number. Linux 5.1.
    ///
    /// # Errors
    ///
    /// When the kernel refuses: no such signal, no permission, or the process has ended (`ESRCH`).
    #[doc(alias = "pidfd_send_signal")]
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        sys::pidfd_send_signal(self.pidfd.as_fd(), signal).map_err(Error::io("signal a process"))
    }

    /// Whether it has ended; it need not have been waited for by its parent yet.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn has_ended(&self) -> Result<bool, Error> {
        self.wait_timeout(Duration::ZERO)
    }

    /// Waits until it ends, at most for `timeout`; tells whether it has.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let limit = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(
                &mut [PollFd::new(&self.pidfd, PollFlags::IN)],
                limit.as_ref(),
            ) {
                Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(false),
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(Error::io("poll a pidfd")(errno.into())),
            }
        }
    }
}

/// The pidfd.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

/// The 22nd field; `None` for a process that has ended. The second, the name, may hold anything.
fn start_time(stat: &[u8]) -> Option<u64> {
    let after = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(after + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_confuse() {
        let stat = b"12 (a) Z 1) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(start_time(stat), Some(4711));
        let ended = b"12 (a) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        assert_eq!(start_time(ended), None);
        assert_eq!(start_time(b"12 (a"), None);
    }

    #[test]
    fn a_process_is_found_until_it_ends() {
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let process = Process::open(child.id()).unwrap().unwrap();
        assert!(!process.has_ended().unwrap());
        let again = Process::find(process.pid(), process.start_time()).unwrap();
        assert!(again.is_some());
        assert!(
            Process::find(process.pid(), process.start_time() + 1)
                .unwrap()
                .is_none()
        );
        drop(child.stdin.take());
        assert!(process.wait_timeout(Duration::from_mins(1)).unwrap());
        // Ended, and not waited for yet.
        assert!(Process::open(child.id()).unwrap().is_none());
        child.wait().unwrap();
        assert!(process.signal(0).is_err());
        assert!(Process::open(0).unwrap().is_none());
    }
}
