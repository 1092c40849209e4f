//! Waiting until something happens to a group.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::counters::Counters;
use crate::dir::{Dir, read_all};
use crate::error::{Error, ParseError, Result};
use crate::group::Cgroup;
use crate::hierarchy::Tree;
use crate::processes::read_pids_recursively;
use crate::procfs::Version;

/// A group that is removed tells nobody, and takes with it what it was about to tell: the kernel
/// spaces notifications by 10 ms. So it is looked for at least so often.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// A point in time until which to wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// Nothing for a time beyond what the clock can express.
    at: Option<Instant>,
}

impl Deadline {
    pub(crate) fn after(duration: Duration) -> Self {
        Self {
            at: Instant::now().checked_add(duration),
        }
    }

    pub(crate) fn has_passed(self) -> bool {
        self.remaining().is_zero()
    }

    pub(crate) fn remaining(self) -> Duration {
        self.at.map_or(Duration::MAX, |at| {
            at.saturating_duration_since(Instant::now())
        })
    }

    /// The earlier one of this and so long from now.
    pub(crate) fn at_most(self, duration: Duration) -> Self {
        Self::after(self.remaining().min(duration))
    }
}

/// Polls until an event or the deadline; the answer is whether there was an event.
pub(crate) fn poll_until(fds: &mut [PollFd<'_>], deadline: Deadline) -> Result<bool, Errno> {
    loop {
        // Beyond what the kernel's clock expresses means for ever.
        let timeout = Timespec::try_from(deadline.remaining()).ok();
        match poll(fds, timeout.as_ref()) {
            Ok(0) if deadline.has_passed() => return Ok(false),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno),
        }
    }
}

/// Waits until all of these processes have ended, or the deadline.
pub(crate) fn wait_for_exit(pidfds: &[OwnedFd], deadline: Deadline) -> Result<bool, Errno> {
    for pidfd in pidfds {
        if !poll_until(&mut [PollFd::new(pidfd, PollFlags::IN)], deadline)? {
            return Ok(false);
        }
    }
    Ok(true)
}

impl Cgroup {
    /// Whether there is a process in the group or in any group below it.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`], [`Error::Io`].
    pub fn is_populated(&self) -> Result<bool> {
        for (tree, dir) in self.members() {
            let populated = match tree.version {
                Version::V2 if dir.has("cgroup.events") => {
                    let events = dir.open_file("cgroup.events", OFlags::RDONLY)?;
                    populated(dir, events.as_fd())?
                }
                _ => !pids_below(dir)?.is_empty(),
            };
            if populated {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until there is no process in the group nor in any group below it.
    ///
    /// Woken by `cgroup.events` on v2 and by the ends of the processes on v1.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`]; [`Error::Vanished`].
    #[doc(alias = "cgroup.events")]
    pub fn wait_empty(&self, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        if self.wait_empty_until(deadline)? {
            Ok(())
        } else {
            Err(Error::Timeout {
                what: "empty",
                group: self.label(),
                after: timeout,
            })
        }
    }

    pub(crate) fn wait_empty_until(&self, deadline: Deadline) -> Result<bool> {
        for (tree, dir) in self.members() {
            if !wait_dir_empty(tree, dir, deadline)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Waits until nobody is in `dir` or below.
pub(crate) fn wait_dir_empty(tree: &Tree, dir: &Dir, deadline: Deadline) -> Result<bool> {
    match tree.version {
        Version::V2 if dir.has("cgroup.events") => wait_events(dir, deadline),
        _ => wait_processes(dir, deadline),
    }
}

pub(crate) fn pids_below(dir: &Dir) -> Result<Vec<u32>> {
    let mut pids = Vec::new();
    read_pids_recursively(dir, &mut pids)?;
    Ok(pids)
}

/// Without an event file the processes themselves are waited for.
fn wait_processes(dir: &Dir, deadline: Deadline) -> Result<bool> {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};
    loop {
        let pids = pids_below(dir)?;
        let Some(&first) = pids.first() else {
            return Ok(true);
        };
        if deadline.has_passed() {
            return Ok(false);
        }
        let pid = i32::try_from(first).ok().and_then(Pid::from_raw);
        let pidfd = match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(pidfd)) => Some(pidfd),
            Some(Err(Errno::SRCH)) | None => None,
            Some(Err(errno)) => return Err(dir.error("open a process of", "", errno)),
        };
        // A process may also leave by being moved, of which nothing tells; and one that has
        // no number here, or that has ended but is still listed, cannot be waited for.
        let nap = match &pidfd {
            Some(_) => Duration::from_millis(50),
            None => Duration::from_millis(1),
        };
        let mut fds = Vec::new();
        if let Some(pidfd) = &pidfd {
            fds.push(PollFd::new(pidfd, PollFlags::IN));
        }
        poll_until(&mut fds, deadline.at_most(nap))
            .map_err(|errno| dir.error("wait for a process of", "", errno))?;
    }
}

/// Waits for `populated 0` in `cgroup.events`.
fn wait_events(dir: &Dir, deadline: Deadline) -> Result<bool> {
    let events = dir.open_file("cgroup.events", OFlags::RDONLY)?;
    // Reading arms the notification, so nothing that happens after it is missed.
    while populated(dir, events.as_fd())? {
        if deadline.has_passed() {
            return Ok(false);
        }
        let mut fds = [PollFd::new(&events, PollFlags::PRI)];
        poll_until(&mut fds, deadline.at_most(LOOK))
            .map_err(|errno| dir.error("wait for", "cgroup.events", errno))?;
    }
    Ok(true)
}

fn populated(dir: &Dir, events: BorrowedFd<'_>) -> Result<bool> {
    const FILE: &str = "cgroup.events";
    let mut buffer = Vec::new();
    read_all(events, &mut buffer).map_err(|errno| dir.error("read", FILE, errno))?;
    let text = String::from_utf8_lossy(&buffer);
    let counters: Counters = text.parse().map_err(|error| dir.unforeseen(FILE, error))?;
    counters
        .get("populated")
        .map(|value| value != 0)
        .ok_or_else(|| dir.unforeseen(FILE, ParseError::new("a line `populated 0|1`", &text)))
}
