//! Waiting for what happens to a group, with descriptors that can be polled.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use rustix::fs::{OFlags, inotify};
use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

use crate::controller::Controller;
use crate::counters::Counters;
use crate::dir::Dir;
use crate::error::{Error, ParseError, Result};
use crate::freeze::is_frozen;
use crate::group::Cgroup;
use crate::procfs::Version;
use crate::stats::{MemoryEvents, memory_events};
use crate::stats_io::counters;
use crate::wait::{Deadline, LOOK, pids_below, poll_until};

/// How often to look where the kernel counts and tells nobody.
const LOOK_OFTEN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// v1 tells of an OOM but not of the kill that follows.
const KILL_FOLLOWS: Duration = Duration::from_millis(10);

/// A descriptor that becomes readable when the kernel says that a file has changed.
#[derive(Debug)]
struct Notifier {
    fd: OwnedFd,
    dir: Dir,
    file: &'static str,
    /// After so much silence one looks nevertheless.
    patience: Duration,
    /// Whether it is the kernel who tells, and not the clock.
    tells: bool,
}

impl Notifier {
    /// By inotify, which the files that count events feed.
    fn on_file(dir: &Dir, file: &'static str) -> Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|errno| dir.error("make an inotify instance for", file, errno))?;
        // By way of the descriptor, so that it is this group and not its successor.
        let path = format!("/proc/self/fd/{}/{file}", dir.as_fd().as_raw_fd());
        inotify::add_watch(&fd, path, inotify::WatchFlags::MODIFY)
            .map_err(|errno| dir.error("watch", file, errno))?;
        Ok(Self {
            fd,
            dir: dir.try_clone()?,
            file,
            patience: LOOK,
            tells: true,
        })
    }

    /// By v1's `cgroup.event_control`; by the clock where that is not to be had, as on a kernel with
    /// `CONFIG_PREEMPT_RT`.
    fn on_v1_oom(dir: &Dir) -> Result<Self> {
        const FILE: &str = "memory.oom_control";
        const CONTROL: &str = "cgroup.event_control";
        let source = dir.open_file(FILE, OFlags::RDONLY)?;
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| dir.error("make an eventfd for", FILE, errno))?;
        let registration = format!("{} {}", fd.as_raw_fd(), source.as_raw_fd());
        match dir.write_raw(CONTROL, &registration) {
            Ok(()) => Ok(Self {
                fd,
                dir: dir.try_clone()?,
                file: FILE,
                patience: LOOK,
                tells: true,
            }),
            Err(Errno::NOENT | Errno::OPNOTSUPP) if dir.is_alive() => Self::on_clock(dir, FILE),
            Err(errno) => Err(dir.error("write", CONTROL, errno)),
        }
    }

    /// By the clock: readable ten times a second.
    fn on_clock(dir: &Dir, file: &'static str) -> Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let every = Itimerspec {
            it_interval: LOOK_OFTEN,
            it_value: LOOK_OFTEN,
        };
        let fd = timerfd_create(TimerfdClockId::Monotonic, flags)
            .and_then(|fd| timerfd_settime(&fd, TimerfdTimerFlags::empty(), &every).map(|_| fd))
            .map_err(|errno| dir.error("make a timer for", file, errno))?;
        Ok(Self {
            fd,
            dir: dir.try_clone()?,
            file,
            patience: LOOK,
            tells: false,
        })
    }

    /// Makes the descriptor unreadable again; the answer is what an eventfd has counted.
    fn drain(&self) -> Result<u64> {
        let mut buffer = [0; 1024];
        let mut count = 0;
        loop {
            match rustix::io::read(&self.fd, &mut buffer) {
                Ok(8) => {
                    let mut number = [0; 8];
                    number.copy_from_slice(&buffer[..8]);
                    count = u64::saturating_add(count, u64::from_ne_bytes(number));
                }
                Ok(0) | Err(Errno::AGAIN) => return Ok(count),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(self.dir.error("wait for", self.file, errno)),
            }
        }
    }

    fn poll(&self, deadline: Deadline) -> Result<()> {
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll_until(&mut fds, deadline.at_most(self.patience)) {
            Ok(_) if self.dir.is_alive() => Ok(()),
            Ok(_) => Err(self.dir.error("wait for", self.file, Errno::NODEV)),
            Err(errno) => Err(self.dir.error("wait for", self.file, errno)),
        }
    }
}

/// Has `look` look at a watch, now and whenever its notifier tells of a change, until it finds
/// something; nothing when the time is over first.
fn wait<W, T>(
    watch: &mut W,
    notifier: fn(&W) -> &Notifier,
    timeout: Duration,
    mut look: impl FnMut(&mut W) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let deadline = Deadline::after(timeout);
    loop {
        let found = look(watch)?;
        if found.is_some() || deadline.has_passed() {
            return Ok(found);
        }
        notifier(watch).poll(deadline)?;
    }
}

/// What was seen, if it is not what was last seen.
fn replace<T: Copy + PartialEq>(last: &mut T, now: T) -> Option<T> {
    let changed = now != *last;
    *last = now;
    changed.then_some(now)
}

/// Tells when something happens at a group's memory limits: OOM, OOM kills, breaches of `low`,
/// `high` and `max`, in the group and below it.
///
/// Events are told apart by comparing counters, so none is lost between two calls. To integrate
/// it, poll its descriptor for `POLLIN`, then call [`MemoryWatch::changed`].
///
/// On v1 the kernel tells of OOM only, and the breaches of other limits are not counted. One that
/// does not even tell of OOM (`CONFIG_PREEMPT_RT`) counts the kills: there it becomes readable ten
/// times a second, so that one looks.
#[doc(alias = "memory.events")]
#[doc(alias = "cgroup.event_control")]
#[derive(Debug)]
pub struct MemoryWatch {
    notifier: Notifier,
    version: Version,
    last: MemoryEvents,
    /// v1: what the eventfd has counted, in place of the counter that v1 lacks.
    oom: Option<u64>,
}

impl AsFd for MemoryWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.fd.as_fd()
    }
}

impl MemoryWatch {
    /// The counters as they were last seen.
    pub fn last(&self) -> MemoryEvents {
        self.last
    }

    /// The counters, if something has happened since the last call. Never blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse), [`Error::Io`](crate::Error::Io).
    pub fn changed(&mut self) -> Result<Option<MemoryEvents>> {
        let count = self.notifier.drain()?;
        let mut now = memory_events(self.version, &self.notifier.dir)?;
        if self.version == Version::V1 {
            self.oom = self.oom.map(|oom| oom.saturating_add(count));
            now.oom = self.oom;
            // Its counter of failures moves long before anything has gone wrong.
            now.max = self.last.max;
        }
        Ok(replace(&mut self.last, now))
    }

    /// Waits until something happens; nothing when the time is over first.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse), [`Error::Io`](crate::Error::Io).
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<MemoryEvents>> {
        wait(self, |watch| &watch.notifier, timeout, Self::changed)
    }

    /// Waits until the OOM killer has ended another process; the answer is whether it has before
    /// the time was over.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse), [`Error::Io`](crate::Error::Io).
    pub fn wait_oom_kill(&mut self, timeout: Duration) -> Result<bool> {
        let before = self.last.oom_kill;
        let patience = self.notifier.patience;
        let killed = wait(
            self,
            |watch| &watch.notifier,
            timeout,
            |watch| {
                let told = watch.changed()?.is_some_and(|now| now.oom > Some(0));
                if told && watch.version == Version::V1 {
                    watch.notifier.patience = KILL_FOLLOWS;
                }
                Ok((watch.last.oom_kill > before).then_some(()))
            },
        );
        self.notifier.patience = patience;
        Ok(killed?.is_some())
    }
}

/// Tells when a fork fails because of `pids.max`.
///
/// To integrate it, poll its descriptor for `POLLIN`, then call [`PidsWatch::changed`]. v1 counts,
/// but does not tell on every kernel (Linux 6.18 does not): there it becomes readable ten times a
/// second, so that one looks.
#[doc(alias = "pids.events")]
#[derive(Debug)]
pub struct PidsWatch {
    notifier: Notifier,
    last: u64,
}

impl AsFd for PidsWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.fd.as_fd()
    }
}

impl PidsWatch {
    /// How many forks have failed in all, if there was another one since the last call. Never
    /// blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse), [`Error::Io`](crate::Error::Io).
    pub fn changed(&mut self) -> Result<Option<u64>> {
        self.notifier.drain()?;
        let now = pids_failures(&self.notifier.dir)?;
        Ok(replace(&mut self.last, now))
    }

    /// Waits until a fork fails; nothing when the time is over first.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse), [`Error::Io`](crate::Error::Io).
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<u64>> {
        wait(self, |watch| &watch.notifier, timeout, Self::changed)
    }
}

fn pids_failures(dir: &Dir) -> Result<u64> {
    counters(dir, "pids.events")?
        .unwrap_or_default()
        .get("max")
        .ok_or_else(|| dir.unforeseen("pids.events", ParseError::new("a line `max <n>`", "")))
}

/// Whether somebody is in a group or below it, and whether they are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct State {
    /// There is a process.
    pub populated: bool,
    /// Every process is stopped. Linux 5.2.
    pub frozen: bool,
}

/// Tells when a group becomes empty or populated, frozen or thawed.
///
/// To integrate it, poll its descriptor for `POLLIN`, then call [`StateWatch::changed`]. v2 tells,
/// on a hybrid layout too. A v1 that is alone tells nobody, and neither does a root group: there
/// it becomes readable ten times a second, so that one looks.
#[doc(alias = "cgroup.events")]
#[derive(Debug)]
pub struct StateWatch {
    notifier: Notifier,
    source: StateSource,
    last: State,
}

/// From what a state is known.
#[derive(Debug)]
enum StateSource {
    /// `cgroup.events`.
    Events,
    /// The processes in each hierarchy, and the freezer where there is one.
    Files {
        hierarchies: Vec<Dir>,
        freezer: Option<(Version, Dir)>,
    },
}

impl AsFd for StateWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notifier.fd.as_fd()
    }
}

impl StateWatch {
    /// The state as it was last seen.
    pub fn last(&self) -> State {
        self.last
    }

    /// The state, if it is another one than at the last call. Never blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse), [`Error::Io`](crate::Error::Io).
    pub fn changed(&mut self) -> Result<Option<State>> {
        self.notifier.drain()?;
        let now = self.source.look(&self.notifier.dir)?;
        Ok(replace(&mut self.last, now))
    }

    /// Waits until the state is one that `wanted` accepts, which may be at once; nothing when the
    /// time is over first.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse), [`Error::Io`](crate::Error::Io).
    pub fn wait_for(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(State) -> bool,
    ) -> Result<Option<State>> {
        wait(
            self,
            |watch| &watch.notifier,
            timeout,
            |watch| {
                watch.changed()?;
                Ok(wanted(watch.last).then_some(watch.last))
            },
        )
    }
}

impl StateSource {
    fn look(&self, dir: &Dir) -> Result<State> {
        match self {
            Self::Events => state_of_events(dir),
            Self::Files {
                hierarchies,
                freezer,
            } => {
                let mut populated = false;
                for dir in hierarchies {
                    populated = populated || !pids_below(dir)?.is_empty();
                }
                let frozen = match freezer {
                    Some((version, dir)) => is_frozen(*version, dir)?,
                    None => false,
                };
                Ok(State { populated, frozen })
            }
        }
    }
}

fn state_of_events(dir: &Dir) -> Result<State> {
    const FILE: &str = "cgroup.events";
    let text = dir.read(FILE)?;
    let events: Counters = text.parse().map_err(|error| dir.unforeseen(FILE, error))?;
    let flag = |key| events.get(key).map(|value| value != 0);
    Ok(State {
        populated: flag("populated").ok_or_else(|| {
            dir.unforeseen(FILE, ParseError::new("a line `populated 0|1`", &text))
        })?,
        frozen: flag("frozen").unwrap_or(false),
    })
}

impl Cgroup {
    /// Watches what happens at the memory limits. On v2 the memory controller is enabled for the
    /// group if it is not yet.
    ///
    /// # Errors
    ///
    /// [`Error::ControllerUnavailable`](crate::Error::ControllerUnavailable); as [`Cgroup::enable`] on v2.
    pub fn watch_memory(&self) -> Result<MemoryWatch> {
        self.enable(Controller::Memory)?;
        let (version, dir) = self.dir_of(Controller::Memory)?;
        let notifier = match version {
            Version::V2 => Notifier::on_file(dir, "memory.events")?,
            Version::V1 => Notifier::on_v1_oom(dir)?,
        };
        let mut last = memory_events(version, dir)?;
        let oom = (version == Version::V1 && notifier.tells).then_some(0);
        last.oom = last.oom.or(oom);
        Ok(MemoryWatch {
            notifier,
            version,
            last,
            oom,
        })
    }

    /// Watches for forks that fail because of `pids.max`. On v2 the pids controller is enabled
    /// for the group if it is not yet.
    ///
    /// # Errors
    ///
    /// [`Error::ControllerUnavailable`](crate::Error::ControllerUnavailable); as [`Cgroup::enable`] on v2.
    pub fn watch_pids(&self) -> Result<PidsWatch> {
        self.enable(Controller::Pids)?;
        let (version, dir) = self.dir_of(Controller::Pids)?;
        let notifier = match version {
            Version::V2 => Notifier::on_file(dir, "pids.events")?,
            Version::V1 => Notifier::on_clock(dir, "pids.events")?,
        };
        let last = pids_failures(dir)?;
        Ok(PidsWatch { notifier, last })
    }

    /// Watches whether somebody is in the group, and whether they are stopped.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse), [`Error::Io`](crate::Error::Io).
    pub fn watch_state(&self) -> Result<StateWatch> {
        const FILE: &str = "cgroup.events";
        let (notifier, source) = match self.unified() {
            Some(dir) if dir.has(FILE) || !dir.is_alive() => {
                (Notifier::on_file(dir, FILE)?, StateSource::Events)
            }
            _ => {
                let Some((_, first)) = self.members().next() else {
                    return Err(Error::NotFound {
                        group: self.label(),
                    });
                };
                let all = self.members().map(|(_, dir)| dir.try_clone());
                let hierarchies = all.collect::<Result<_>>()?;
                let freezer = match self.freezer() {
                    Ok((version, dir)) => Some((version, dir.try_clone()?)),
                    Err(Error::Unsupported { .. }) => None,
                    Err(error) => return Err(error),
                };
                (
                    Notifier::on_clock(first, "cgroup.procs")?,
                    StateSource::Files {
                        hierarchies,
                        freezer,
                    },
                )
            }
        };
        let last = source.look(&notifier.dir)?;
        Ok(StateWatch {
            notifier,
            source,
            last,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_v1_tells_nothing_the_clock_does() {
        let directory = tempfile::tempdir().expect("made");
        for file in ["cgroup.procs", "memory.oom_control"] {
            std::fs::write(directory.path().join(file), "").expect("written");
        }
        let dir = Dir::open(directory.path()).expect("opened");
        let notifier = Notifier::on_v1_oom(&dir).expect("without cgroup.event_control");
        assert!(!notifier.tells);
        let mut fds = [PollFd::new(&notifier.fd, PollFlags::IN)];
        let told = poll_until(&mut fds, Deadline::after(Duration::from_mins(1)));
        assert!(told.expect("polled"), "the clock stands still");
    }
}
