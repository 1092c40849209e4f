//! What a run cost, measured.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use kvm_vcpu::{Exit, GuestMemory};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::error::Error;

/// Time since the process started.
///
/// The kernel tells a process's start only to 10 ms; what it spent before `main` (exec and dynamic
/// linking) is known exactly as CPU time, and is taken for the time it took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    main: Instant,
    before_main: Duration,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self {
            main: Instant::now(),
            before_main: cpu_time(),
        }
    }

    fn elapsed(&self) -> Duration {
        self.before_main + self.main.elapsed()
    }
}

/// CPU time of this process so far, user and system.
fn cpu_time() -> Duration {
    let t = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        t.tv_sec.try_into().unwrap_or(0),
        t.tv_nsec.try_into().unwrap_or(0),
    )
}

/// Collects the measurements of one run, from all its threads.
#[derive(Debug)]
pub(crate) struct Stats {
    clock: Clock,
    /// When the guest first ran, and the CPU time until then.
    first_run: OnceLock<(Duration, Duration)>,
    first_output: OnceLock<Duration>,
    exits: Mutex<BTreeMap<&'static str, u64>>,
    /// Where the kernel tells of this process's memory, opened while there are files.
    memory: File,
}

/// Where the report goes.
#[derive(Debug)]
pub(crate) struct Report {
    path: PathBuf,
    /// Standard error if there is no file.
    file: Option<File>,
}

impl Report {
    /// A report to a file, or to standard error when it is `-`.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = if path == Path::new("-") {
            None
        } else {
            Some(File::create(path).map_err(|source| Error::Write {
                path: path.to_owned(),
                source,
            })?)
        };
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }
}

#[derive(Debug, Serialize)]
struct Measured {
    mode: &'static str,
    guest_memory_bytes: u64,
    guest_resident_bytes: u64,
    vmm_resident_bytes: u64,
    process_start_to_first_run_us: Option<u64>,
    cpu_to_first_run_us: Option<u64>,
    process_start_to_first_output_us: Option<u64>,
    total_us: u64,
    cpu_us: u64,
    exits_total: u64,
    exits: BTreeMap<&'static str, u64>,
}

impl Stats {
    pub(crate) fn new(clock: Clock) -> Result<Self, Error> {
        Ok(Self {
            memory: File::open(SMAPS).map_err(|source| Error::Measure {
                path: SMAPS,
                source,
            })?,
            clock,
            first_run: OnceLock::new(),
            first_output: OnceLock::new(),
            exits: Mutex::new(BTreeMap::new()),
        })
    }

    /// The vCPU is about to run for the first time.
    pub(crate) fn first_run(&self) {
        self.first_run
            .get_or_init(|| (self.clock.elapsed(), cpu_time()));
    }

    /// A byte of the guest's output has been written.
    pub(crate) fn output(&self) {
        self.first_output.get_or_init(|| self.clock.elapsed());
    }

    pub(crate) fn exit(&self, exit: &Exit) {
        let name = match exit {
            Exit::PortOut(_) => "port_out",
            Exit::PortIn(_) => "port_in",
            Exit::MmioWrite(_) => "mmio_write",
            Exit::MmioRead(_) => "mmio_read",
            Exit::Halt => "halt",
            Exit::Shutdown => "shutdown",
            Exit::TimedOut => "timed_out",
            Exit::InternalError(_) => "internal_error",
            Exit::Interrupted => "interrupted",
            _ => "other",
        };
        *self.counts().entry(name).or_default() += 1;
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often the guest came out, by reason.
    pub(crate) fn exits(&self) -> BTreeMap<&'static str, u64> {
        self.counts().clone()
    }

    /// Writes the report.
    pub(crate) fn write(
        &self,
        to: Report,
        mode: &'static str,
        memory: &GuestMemory,
    ) -> Result<(), Error> {
        // Measured before the report itself takes memory.
        let resident = resident(&self.memory)?;
        let guest_resident = memory.resident()?;
        let us = |d: Duration| u64::try_from(d.as_micros()).unwrap_or(u64::MAX);
        let report = Measured {
            mode,
            guest_memory_bytes: memory.size(),
            guest_resident_bytes: guest_resident,
            vmm_resident_bytes: resident.saturating_sub(guest_resident),
            process_start_to_first_run_us: self.first_run.get().map(|(wall, _)| us(*wall)),
            cpu_to_first_run_us: self.first_run.get().map(|(_, cpu)| us(*cpu)),
            process_start_to_first_output_us: self.first_output.get().copied().map(us),
            total_us: us(self.clock.elapsed()),
            cpu_us: us(cpu_time()),
            exits_total: self.exits().values().sum(),
            exits: self.exits(),
        };
        let write_error = |source| Error::Write {
            path: to.path.clone(),
            source,
        };
        let mut text =
            serde_json::to_string_pretty(&report).map_err(|e| write_error(io::Error::other(e)))?;
        text.push('\n');
        match to.file {
            None => io::stderr().write_all(text.as_bytes()),
            Some(mut file) => file.write_all(text.as_bytes()),
        }
        .map_err(write_error)
    }
}

const SMAPS: &str = "/proc/self/smaps_rollup";

/// Bytes of memory that this process holds, the guest's included.
fn resident(mut smaps: &File) -> Result<u64, Error> {
    let error = |source| Error::Measure {
        path: SMAPS,
        source,
    };
    let mut text = String::new();
    smaps.rewind().map_err(error)?;
    smaps.read_to_string(&mut text).map_err(error)?;
    parse_rss(&text).ok_or_else(|| error(io::Error::other("it has no Rss line")))
}

fn parse_rss(smaps: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|l| l.strip_prefix("Rss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resident_size_is_found() {
        let smaps = "55d0-7ffe [rollup]\nRss:                1640 kB\nPss:   12 kB\n";
        assert_eq!(parse_rss(smaps), Some(1640 * 1024));
        assert_eq!(parse_rss("Pss: 3 kB"), None);
        assert!(resident(&File::open(SMAPS).unwrap()).unwrap() > 4096);
    }

    #[test]
    fn the_clock_counts_from_before_main() {
        let clock = Clock::start();
        assert!(clock.elapsed() >= clock.before_main);
        assert!(clock.before_main > Duration::ZERO);
    }
}
