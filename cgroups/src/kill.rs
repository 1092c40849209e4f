//! Ending every process of a group.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::controller::Controller;
use crate::delegate::GroupType;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::group::Cgroup;
use crate::processes::read_pids_recursively;
use crate::procfs::Version;
use crate::wait::{Deadline, wait_for_exit};

/// How long processes may take to die once they have the signal.
const PATIENCE: Duration = Duration::from_secs(10);

/// How many processes are held by a descriptor at once: well below the usual 1024.
const CHUNK: usize = 256;

/// A group whose processes have been killed may be removed at once by whoever made it, as systemd
/// does; then nobody is left in it.
fn unless_vanished(result: Result<()>) -> Result<()> {
    match result {
        Err(Error::Vanished { .. }) => Ok(()),
        other => other,
    }
}

impl Cgroup {
    /// Sends SIGKILL to every process in the group and in all groups below it, so that none
    /// escapes by forking meanwhile. When this returns, each of them has the signal; use
    /// [`Cgroup::wait_empty`] to wait until they are gone, or [`Cgroup::remove`], which does.
    ///
    /// By `cgroup.kill` (Linux 5.14) where v2 is mounted. Whoever is left, as on v1 or when a
    /// process was put into a v1 hierarchy of the group only, is frozen where there is a freezer,
    /// killed through a pidfd that has been checked to refer to a member (a number may be used
    /// again at any time, a pidfd never is), and thawed; again until nobody is left.
    ///
    /// # Errors
    ///
    /// [`Error::NotDelegated`] for processes of others; [`Error::Vanished`]; [`Error::Timeout`]
    /// when processes do not die within 10 seconds, as those in an uninterruptible sleep;
    /// [`Error::Threaded`] for a group of single threads; [`Error::Busy`] for a root group, and
    /// when processes without a number here (of an outer pid namespace) remain, which only
    /// `cgroup.kill` could reach.
    #[doc(alias = "cgroup.kill")]
    #[doc(alias = "SIGKILL")]
    pub fn kill(&self) -> Result<()> {
        self.refuse_root()?;
        let by_kernel = match self.unified() {
            Some(dir) => match dir.write_raw("cgroup.kill", "1") {
                Ok(()) => true,
                Err(Errno::NOENT | Errno::OPNOTSUPP) if dir.is_alive() => {
                    if self.group_type()? == Some(GroupType::Threaded) {
                        return Err(Error::Threaded {
                            group: dir.path().to_owned(),
                        });
                    }
                    false
                }
                Err(errno) => return Err(dir.error("write", "cgroup.kill", errno)),
            },
            None => false,
        };
        let freezer = Freezer::of(self);
        if by_kernel {
            // A frozen process of v1 would keep the signal for later.
            if let Some(freezer) = &freezer {
                unless_vanished(freezer.thaw())?;
            }
            if !self.has_strays()? {
                return Ok(());
            }
        }
        self.kill_members(freezer.as_ref())
    }

    /// Whether somebody is in a v1 hierarchy of the group but not in v2's, where `cgroup.kill`
    /// has been at work. The dying stay listed in both until they are gone from both.
    fn has_strays(&self) -> Result<bool> {
        let mut reached = Vec::new();
        if let Some(dir) = self.unified() {
            unless_vanished(read_pids_recursively(dir, &mut reached))?;
        }
        reached.sort_unstable();
        let mut listed = Vec::new();
        for (tree, dir) in self.members() {
            if tree.version == Version::V1 {
                unless_vanished(read_pids_recursively(dir, &mut listed))?;
            }
        }
        Ok(listed.iter().any(|pid| reached.binary_search(pid).is_err()))
    }

    fn kill_members(&self, freezer: Option<&Freezer<'_>>) -> Result<()> {
        let deadline = Deadline::after(PATIENCE);
        loop {
            let mut pids = Vec::new();
            for (_, dir) in self.members() {
                read_pids_recursively(dir, &mut pids)?;
            }
            pids.sort_unstable();
            pids.dedup();
            if pids.is_empty() {
                return Ok(());
            }
            if deadline.has_passed() {
                return Err(Error::Timeout {
                    what: "emptied",
                    group: self.label(),
                    after: PATIENCE,
                });
            }
            if let Some(freezer) = freezer {
                freezer.freeze()?;
            }
            let last = pids
                .chunks(CHUNK)
                .try_fold(Vec::new(), |_, chunk| self.kill_chunk(chunk));
            if let Some(freezer) = freezer {
                freezer.thaw()?;
            }
            // Those of the last chunk are gone last, or nearly so.
            wait_for_exit(&last?, deadline.at_most(Duration::from_millis(100)))
                .map_err(|errno| self.io_error("wait for a process of", errno))?;
        }
    }

    /// Kills those of `pids` that are still members once a pidfd holds them.
    fn kill_chunk(&self, pids: &[u32]) -> Result<Vec<OwnedFd>> {
        let mut held = Vec::with_capacity(pids.len());
        for &raw in pids {
            let Some(pid) = i32::try_from(raw).ok().and_then(Pid::from_raw) else {
                return Err(Error::Busy {
                    group: self.label(),
                });
            };
            match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(pidfd) => held.push((raw, pidfd)),
                Err(Errno::SRCH) => {}
                Err(errno) => return Err(self.io_error("open a process of", errno)),
            }
        }
        let mut members = Vec::new();
        for (_, dir) in self.members() {
            read_pids_recursively(dir, &mut members)?;
        }
        held.retain(|(raw, _)| members.contains(raw));
        for (_, pidfd) in &held {
            match pidfd_send_signal(pidfd, Signal::KILL) {
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err(self.io_error("kill a process of", errno)),
            }
        }
        Ok(held.into_iter().map(|(_, pidfd)| pidfd).collect())
    }

    pub(crate) fn io_error(&self, operation: &'static str, errno: Errno) -> Error {
        match self.members().next() {
            Some((_, dir)) => dir.error(operation, "", errno),
            None => Error::Io {
                operation,
                path: self.path().to_owned(),
                source: errno.into(),
            },
        }
    }
}

/// The v1 freezer of a group.
struct Freezer<'a>(&'a Dir);

impl<'a> Freezer<'a> {
    fn of(group: &'a Cgroup) -> Option<Self> {
        group
            .members()
            .find(|(tree, _)| {
                tree.version == Version::V1 && tree.controllers.contains(Controller::Freezer)
            })
            .map(|(_, dir)| Self(dir))
    }

    fn freeze(&self) -> Result<()> {
        self.0.write("freezer.state", "FROZEN")
    }

    fn thaw(&self) -> Result<()> {
        self.0.write("freezer.state", "THAWED")
    }
}
