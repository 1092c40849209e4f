//! Stopping every process of a group, and letting them go on.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;

use crate::controller::Controller;
use crate::counters::Counters;
use crate::dir::{Dir, read_all};
use crate::error::{Error, ParseError, Result};
use crate::group::Cgroup;
use crate::knob::Knob;
use crate::procfs::Version;
use crate::wait::{Deadline, LOOK, poll_until};

const V1_FILE: &str = "freezer.state";
const V2_FILE: &str = "cgroup.freeze";

impl Cgroup {
    /// Asks for every process of the group and of those below it to be stopped. They are once
    /// [`Cgroup::wait_frozen`] says so. Killing works on frozen processes too.
    ///
    /// By v2 where it is mounted (Linux 5.2), else by v1's freezer.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where there is no freezer; [`Error::NotDelegated`].
    #[doc(alias = "cgroup.freeze")]
    #[doc(alias = "freezer.state")]
    pub fn freeze(&self) -> Result<()> {
        match self.freezer()? {
            (Version::V2, dir) => dir.write(V2_FILE, "1"),
            (Version::V1, dir) => dir.write(V1_FILE, "FROZEN"),
        }
    }

    /// Lets the processes go on. Those of a group below that is frozen by itself, or of a group
    /// whose parent is frozen, stay stopped.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::freeze`].
    pub fn thaw(&self) -> Result<()> {
        match self.freezer()? {
            (Version::V2, dir) => dir.write(V2_FILE, "0"),
            (Version::V1, dir) => dir.write(V1_FILE, "THAWED"),
        }
    }

    /// Whether every process of the group and of those below it is stopped.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::freeze`].
    pub fn is_frozen(&self) -> Result<bool> {
        let (version, dir) = self.freezer()?;
        is_frozen(version, dir)
    }

    /// Waits until every process is stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], [`Error::Vanished`].
    pub fn wait_frozen(&self, timeout: Duration) -> Result<()> {
        self.wait_freezer(true, timeout)
    }

    /// Waits until the processes go on.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`], [`Error::Vanished`].
    pub fn wait_thawed(&self, timeout: Duration) -> Result<()> {
        self.wait_freezer(false, timeout)
    }

    fn wait_freezer(&self, wanted: bool, timeout: Duration) -> Result<()> {
        let deadline = Deadline::after(timeout);
        let reached = match self.freezer()? {
            (Version::V2, dir) => {
                let events = dir.open_file("cgroup.events", OFlags::RDONLY)?;
                let mut buffer = Vec::new();
                loop {
                    // Reading arms the notification.
                    read_all(events.as_fd(), &mut buffer)
                        .map_err(|errno| dir.error("read", "cgroup.events", errno))?;
                    if frozen(dir, &String::from_utf8_lossy(&buffer))? == wanted {
                        break true;
                    }
                    if deadline.has_passed() {
                        break false;
                    }
                    let mut fds = [PollFd::new(&events, PollFlags::PRI)];
                    poll_until(&mut fds, deadline.at_most(LOOK))
                        .map_err(|errno| dir.error("wait for", "cgroup.events", errno))?;
                }
            }
            (Version::V1, dir) => loop {
                // v1 finishes freezing only when it is looked at, and tells nobody.
                if is_frozen(Version::V1, dir)? == wanted {
                    break true;
                }
                if deadline.has_passed() {
                    break false;
                }
                std::thread::sleep(deadline.remaining().min(Duration::from_millis(1)));
            },
        };
        if reached {
            return Ok(());
        }
        Err(Error::Timeout {
            what: if wanted { "frozen" } else { "thawed" },
            group: self.label(),
            after: timeout,
        })
    }

    /// The directory by which the group is frozen.
    pub(crate) fn freezer(&self) -> Result<(Version, &Dir)> {
        if let Ok((version, dir)) = self.dir_of(Controller::Freezer) {
            let file = match version {
                Version::V2 => V2_FILE,
                Version::V1 => V1_FILE,
            };
            if dir.has(file) {
                return Ok((version, dir));
            }
            if !dir.is_alive() {
                return Err(dir.error("open", file, rustix::io::Errno::NODEV));
            }
        }
        // A group that is in the freezer of v1 only.
        let v1 = self
            .members()
            .find(|(tree, dir)| tree.controllers.contains(Controller::Freezer) && dir.has(V1_FILE));
        v1.map(|(tree, dir)| (tree.version, dir))
            .ok_or_else(|| self.unsupported(Knob::Freeze))
    }
}

/// Whether all that is in the group of a freezer is stopped.
pub(crate) fn is_frozen(version: Version, dir: &Dir) -> Result<bool> {
    match version {
        Version::V2 => {
            let events = dir.read("cgroup.events")?;
            frozen(dir, &events)
        }
        Version::V1 => Ok(dir.read(V1_FILE)?.trim() == "FROZEN"),
    }
}

fn frozen(dir: &Dir, events: &str) -> Result<bool> {
    let counters: Counters = events
        .parse()
        .map_err(|error| dir.unforeseen("cgroup.events", error))?;
    counters
        .get("frozen")
        .map(|frozen| frozen != 0)
        .ok_or_else(|| {
            let error = ParseError::new("a line `frozen 0|1`", events);
            dir.unforeseen("cgroup.events", error)
        })
}
