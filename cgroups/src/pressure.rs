//! Pressure: time lost to waiting for a resource.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::error::{Error, ParseError, Result};
use crate::group::Cgroup;
use crate::percent::Percent;
use crate::wait::{Deadline, poll_until};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// A processor.
    Cpu,
    /// Memory: reclaim, swapping in, refaults.
    Memory,
    /// A block device.
    Io,
    /// Interrupts that take the processor away. Linux 6.1, `CONFIG_IRQ_TIME_ACCOUNTING`.
    Irq,
}

impl Resource {
    const fn file(self) -> &'static str {
        match self {
            Self::Cpu => "cpu.pressure",
            Self::Memory => "memory.pressure",
            Self::Io => "io.pressure",
            Self::Irq => "irq.pressure",
        }
    }
}

/// A share of the time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stall {
    /// Of the last 10 seconds.
    pub avg10: Percent,
    /// Of the last minute.
    pub avg60: Percent,
    /// Of the last five minutes.
    pub avg300: Percent,
    /// In all, since the group exists.
    pub total: Duration,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "avg10={} avg60={} avg300={} total={}",
            self.avg10,
            self.avg60,
            self.avg300,
            self.total.as_micros()
        )
    }
}

impl FromStr for Stall {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new("avg10=… avg60=… avg300=… total=…", text);
        let mut words = text.split(' ');
        let mut value = |key: &str| {
            let (name, value) = words.next()?.split_once('=')?;
            (name == key).then_some(value)
        };
        Ok(Self {
            avg10: value("avg10").ok_or_else(fail)?.parse()?,
            avg60: value("avg60").ok_or_else(fail)?.parse()?,
            avg300: value("avg300").ok_or_else(fail)?.parse()?,
            total: value("total")
                .filter(|digits| !digits.starts_with('+'))
                .and_then(|micros| micros.parse().ok())
                .map(Duration::from_micros)
                .ok_or_else(fail)?,
        })
    }
}

/// Time lost to waiting for a resource.
///
/// Linux 4.20, documentation `Documentation/accounting/psi.rst`.
#[doc(alias = "PSI")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Pressure {
    /// At least one task waited. Nothing for interrupts.
    pub some: Option<Stall>,
    /// All tasks waited at once. For processors Linux 5.13.
    pub full: Option<Stall>,
}

impl fmt::Display for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(some) = self.some {
            writeln!(f, "some {some}")?;
        }
        if let Some(full) = self.full {
            writeln!(f, "full {full}")?;
        }
        Ok(())
    }
}

impl FromStr for Pressure {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut pressure = Self::default();
        for line in text.lines() {
            match line.split_once(' ') {
                Some(("some", stall)) => pressure.some = Some(stall.parse()?),
                Some(("full", stall)) => pressure.full = Some(stall.parse()?),
                _ => return Err(ParseError::new("a line of `some` or `full`", line)),
            }
        }
        Ok(pressure)
    }
}

/// When a trigger fires: so much waiting within a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// Count the time when all tasks waited, instead of the time when any did.
    pub full: bool,
    /// Fire when so much time is lost…
    pub stall: Duration,
    /// …within so much time: 500 ms to 10 s. Without `CAP_SYS_RESOURCE` a multiple of 2 s.
    pub window: Duration,
}

/// Fires whenever the pressure of a group exceeds a threshold, at most once in a window.
///
/// To integrate it, poll its descriptor for `POLLPRI`. `POLLERR` means that the group is gone.
#[derive(Debug)]
pub struct PressureTrigger {
    file: OwnedFd,
    group: std::path::PathBuf,
}

impl AsFd for PressureTrigger {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Cgroup {
    /// How much time the group's tasks lose to waiting. Only v2 accounts for it, on a hybrid
    /// layout too; nothing on v1, or when the kernel was built or booted without it (`psi=1`).
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`], [`Error::Parse`], [`Error::Io`].
    #[doc(alias = "memory.pressure")]
    pub fn pressure(&self, resource: Resource) -> Result<Option<Pressure>> {
        let file = resource.file();
        match self.unified() {
            Some(dir) => match dir.try_read(file)? {
                Some(text) => match text.parse() {
                    Ok(pressure) => Ok(Some(pressure)),
                    Err(error) => Err(dir.unforeseen(file, error)),
                },
                None => Ok(None),
            },
            None => Ok(None),
        }
    }

    /// Has the kernel watch the pressure of the group. Linux 5.2.
    ///
    /// # Errors
    ///
    /// [`Error::NeedsCapability`] before Linux 6.5 without `CAP_SYS_RESOURCE`;
    /// [`Error::BadThreshold`] when the window is not one the kernel accepts;
    /// [`Error::NoPressure`] where nothing accounts for pressure.
    pub fn pressure_trigger(
        &self,
        resource: Resource,
        threshold: Threshold,
    ) -> Result<PressureTrigger> {
        let name = resource.file();
        let dir = match self.unified() {
            Some(dir) if dir.has(name) => dir,
            Some(dir) if !dir.is_alive() => return Err(dir.error("open", name, Errno::NODEV)),
            _ => {
                return Err(Error::NoPressure {
                    group: self.label(),
                });
            }
        };
        let explain = |errno| match errno {
            Errno::PERM => Error::NeedsCapability {
                capability: "CAP_SYS_RESOURCE",
                path: dir.file(name),
                source: Errno::PERM.into(),
            },
            Errno::INVAL => Error::BadThreshold {
                threshold,
                path: dir.file(name),
                source: Errno::INVAL.into(),
            },
            Errno::OPNOTSUPP => Error::NoPressure {
                group: self.label(),
            },
            other => dir.error("write", name, other),
        };
        // The kernel reads 32 bits of each and would not notice that there are more.
        let fits = |time: Duration| u32::try_from(time.as_micros()).is_ok();
        if !fits(threshold.stall) || !fits(threshold.window) {
            return Err(explain(Errno::INVAL));
        }
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(dir, name, flags, rustix::fs::Mode::empty()).map_err(explain)?;
        let kind = if threshold.full { "full" } else { "some" };
        let text = format!(
            "{kind} {} {}",
            threshold.stall.as_micros(),
            threshold.window.as_micros()
        );
        rustix::io::write(&file, text.as_bytes()).map_err(explain)?;
        Ok(PressureTrigger {
            file,
            group: dir.path().to_owned(),
        })
    }
}

impl PressureTrigger {
    /// Waits until the threshold is exceeded; the answer is whether it was before the timeout.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`] when the group was removed.
    pub fn wait(&self, timeout: Duration) -> Result<bool> {
        let mut fds = [PollFd::new(&self.file, PollFlags::PRI)];
        let fired = poll_until(&mut fds, Deadline::after(timeout)).map_err(|errno| Error::Io {
            operation: "wait for the pressure of",
            path: self.group.clone(),
            source: errno.into(),
        })?;
        if fired && fds[0].revents().contains(PollFlags::ERR) {
            return Err(Error::Vanished {
                group: self.group.clone(),
                source: Errno::NODEV.into(),
            });
        }
        Ok(fired)
    }
}
