//! How a run ended, as JSON for programs and as text for people.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// What is known of a run when it is over. Everything in it was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The container's identifier.
    pub(crate) id: String,
    /// Exit status as the shell counts: 128+N if signal N ended it.
    pub(crate) exit_code: u8,
    /// The signal that ended it, if one did.
    pub(crate) signal: Option<i32>,
    /// Limits that were asked for and could not be set.
    pub(crate) limits_not_set: Vec<LimitNotSet>,
    /// What the container used, as its control group counted it.
    pub(crate) usage: Usage,
    /// Resident memory in bytes of the engine itself while the container ran
    /// (proportional set size, /proc/self/smaps_rollup).
    pub(crate) engine_memory_bytes: Option<u64>,
    /// How long each part took.
    pub(crate) timings: Timings,
    /// Entries of the image that could not be made here.
    pub(crate) not_unpacked: Vec<String>,
    /// What the container changed in its root filesystem.
    pub(crate) changes: Vec<Change>,
}

/// A limit that could not be set, and why.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct LimitNotSet {
    /// The option, as typed: `--memory`.
    pub(crate) option: &'static str,
    /// Why, and what to do.
    pub(crate) reason: String,
}

/// Counters of a control group. What the group does not count is `None`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Usage {
    /// Most memory used at once, in bytes.
    pub(crate) memory_peak_bytes: Option<u64>,
    /// Processes that the kernel killed for want of memory.
    pub(crate) oom_kills: Option<u64>,
    /// Times that a new process was refused because of the limit.
    pub(crate) pids_refused: Option<u64>,
    /// CPU time, user and system.
    pub(crate) cpu: Option<Duration>,
}

/// How long each part of a run took.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Timings {
    /// Reading, verifying and unpacking the image.
    pub(crate) unpack: Duration,
    /// Mounting, the control group, clone to exec.
    pub(crate) start: Duration,
    /// From exec to the end.
    pub(crate) run: Duration,
}

/// One path that the container changed.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Change {
    /// `A` added, `C` changed, `D` deleted, as `docker diff` writes it.
    pub(crate) kind: char,
    /// The path inside the container.
    pub(crate) path: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {}: ", self.id)?;
        match self.signal {
            Some(signal) => write!(
                f,
                "ended by signal {signal} (exit status {})",
                self.exit_code
            )?,
            None => write!(f, "exit status {}", self.exit_code)?,
        }
        writeln!(f, " after {}", Human(self.timings.run))?;
        if let Some(kills @ 1..) = self.usage.oom_kills {
            writeln!(
                f,
                "out of memory: the kernel killed {kills} process(es) for exceeding the limit"
            )?;
        }
        if let Some(refused @ 1..) = self.usage.pids_refused {
            writeln!(f, "process limit: {refused} new process(es) refused")?;
        }
        if let Some(peak) = self.usage.memory_peak_bytes {
            writeln!(f, "memory: {} at most", Mebibytes(peak))?;
        }
        if let Some(cpu) = self.usage.cpu {
            writeln!(f, "cpu: {}", Human(cpu))?;
        }
        for entry in &self.not_unpacked {
            writeln!(f, "not unpacked: {entry}")?;
        }
        if self.changes.is_empty() {
            writeln!(f, "files changed: none")
        } else {
            writeln!(f, "files changed:")?;
            self.changes
                .iter()
                .try_for_each(|change| writeln!(f, "  {} {}", change.kind, change.path))
        }
    }
}

/// A duration as a person reads it.
struct Human(Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs_f64();
        if seconds < 1.0 {
            write!(f, "{:.1} ms", seconds * 1e3)
        } else {
            write!(f, "{seconds:.2} s")
        }
    }
}

/// Bytes as a person reads them.
struct Mebibytes(u64);

impl fmt::Display for Mebibytes {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB", self.0 as f64 / f64::from(1 << 20))
    }
}
