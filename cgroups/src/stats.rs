//! What a group uses and has used.

use std::time::Duration;

use crate::bytes::Bytes;
use crate::controller::Controller;
use crate::current::value;
use crate::dir::Dir;
use crate::error::Result;
use crate::group::Cgroup;
use crate::plan::number;
use crate::procfs::Version;
use crate::stats_io::counters;

/// Memory in use, and what has happened at its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryStats {
    /// In use now by the group and those below it, including page cache and kernel memory.
    pub current: Bytes,
    /// The most that was in use at once. v2: Linux 5.19.
    pub peak: Option<Bytes>,
    /// Swap in use now. Nothing without swap accounting. v1: `memory.memsw.usage_in_bytes` less
    /// `memory.usage_in_bytes`, which are read one after the other, so it may be off by what came
    /// and went in between.
    pub swap_current: Option<Bytes>,
    /// What has happened.
    pub events: MemoryEvents,
}

/// How often what has happened in the group or below it; `None` where the kernel does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct MemoryEvents {
    /// Reclaimed although below `memory.low`. v2.
    pub low: Option<u64>,
    /// Slowed down because above `memory.high`. v2.
    pub high: Option<u64>,
    /// About to exceed `memory.max`. v1: `memory.failcnt`, and `memory.memsw.failcnt` because
    /// there the limit on the sum may be met first.
    pub max: Option<u64>,
    /// The limit was reached and no reclaim helped. v2.
    pub oom: Option<u64>,
    /// Processes ended by the OOM killer. v1: in `memory.oom_control`.
    pub oom_kill: Option<u64>,
    /// The whole group ended by the OOM killer. v2, Linux 5.16.
    pub oom_group_kill: Option<u64>,
}

/// Processes and threads in a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PidsStats {
    /// Now, in the group and below it.
    pub current: u64,
    /// The most at once. Linux 6.1.
    pub peak: Option<u64>,
    /// How often a fork failed because of the limit.
    pub max_events: Option<u64>,
}

/// Processor time of a group and those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuStats {
    /// All of it.
    pub usage: Duration,
    /// In user space.
    pub user: Option<Duration>,
    /// In the kernel.
    pub system: Option<Duration>,
    /// Periods of the quota in which the group ran.
    pub periods: Option<u64>,
    /// Periods in which it used up its quota.
    pub throttled_periods: Option<u64>,
    /// How long it was made to wait, summed over processors.
    pub throttled: Option<Duration>,
}

impl Cgroup {
    /// Memory; nothing where the memory controller is not enabled for the group.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse),
    /// [`Error::Io`](crate::Error::Io).
    #[doc(alias = "memory.current")]
    #[doc(alias = "memory.events")]
    pub fn memory_stats(&self) -> Result<Option<MemoryStats>> {
        let Some((version, dir)) = self.stat_dir(Controller::Memory) else {
            return Ok(None);
        };
        let bytes = |file| value::<u64>(dir, file).map(|n| n.map(Bytes::new));
        match version {
            Version::V2 => {
                let Some(current) = bytes("memory.current")? else {
                    return Ok(None);
                };
                Ok(Some(MemoryStats {
                    current,
                    peak: bytes("memory.peak")?,
                    swap_current: bytes("memory.swap.current")?,
                    events: memory_events(version, dir)?,
                }))
            }
            Version::V1 => {
                let Some(current) = bytes("memory.usage_in_bytes")? else {
                    return Ok(None);
                };
                let sum = bytes("memory.memsw.usage_in_bytes")?;
                Ok(Some(MemoryStats {
                    current,
                    peak: bytes("memory.max_usage_in_bytes")?,
                    swap_current: sum.map(|sum| sum.saturating_sub(current)),
                    events: memory_events(version, dir)?,
                }))
            }
        }
    }

    /// Processes and threads; nothing where the pids controller is not enabled for the group.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse),
    /// [`Error::Io`](crate::Error::Io).
    #[doc(alias = "pids.current")]
    #[doc(alias = "pids.events")]
    pub fn pids_stats(&self) -> Result<Option<PidsStats>> {
        let Some((_, dir)) = self.stat_dir(Controller::Pids) else {
            return Ok(None);
        };
        let Some(current) = value(dir, "pids.current")? else {
            return Ok(None);
        };
        let events = counters(dir, "pids.events")?.unwrap_or_default();
        Ok(Some(PidsStats {
            current,
            peak: value(dir, "pids.peak")?,
            max_events: events.get("max"),
        }))
    }

    /// Processor time; v2 accounts for it even where the cpu controller is not enabled.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse),
    /// [`Error::Io`](crate::Error::Io).
    #[doc(alias = "cpu.stat")]
    #[doc(alias = "cpuacct.usage")]
    pub fn cpu_stats(&self) -> Result<Option<CpuStats>> {
        let mut stats = if let Some((Version::V1, dir)) = self.stat_dir(Controller::Cpuacct) {
            let time = |file| value::<u64>(dir, file).map(|ns| ns.map(Duration::from_nanos));
            CpuStats {
                usage: Duration::from_nanos(number(dir, "cpuacct.usage")?),
                user: time("cpuacct.usage_user")?,
                system: time("cpuacct.usage_sys")?,
                periods: None,
                throttled_periods: None,
                throttled: None,
            }
        } else if let Some(dir) = self.unified() {
            let stat = counters(dir, "cpu.stat")?.unwrap_or_default();
            let time = |key| stat.get(key).map(Duration::from_micros);
            let Some(usage) = time("usage_usec") else {
                return Ok(None);
            };
            CpuStats {
                usage,
                user: time("user_usec"),
                system: time("system_usec"),
                periods: stat.get("nr_periods"),
                throttled_periods: stat.get("nr_throttled"),
                throttled: time("throttled_usec"),
            }
        } else {
            return Ok(None);
        };
        if let Some((Version::V1, dir)) = self.stat_dir(Controller::Cpu) {
            let stat = counters(dir, "cpu.stat")?.unwrap_or_default();
            stats.periods = stat.get("nr_periods");
            stats.throttled_periods = stat.get("nr_throttled");
            stats.throttled = stat.get("throttled_time").map(Duration::from_nanos);
        }
        Ok(Some(stats))
    }

    /// The directory of a controller, unless the machine or the group does not have it.
    pub(crate) fn stat_dir(&self, controller: Controller) -> Option<(Version, &Dir)> {
        self.dir_of(controller).ok()
    }
}

pub(crate) fn memory_events(version: Version, dir: &Dir) -> Result<MemoryEvents> {
    match version {
        Version::V2 => {
            let events = counters(dir, "memory.events")?.unwrap_or_default();
            Ok(MemoryEvents {
                low: events.get("low"),
                high: events.get("high"),
                max: events.get("max"),
                oom: events.get("oom"),
                oom_kill: events.get("oom_kill"),
                oom_group_kill: events.get("oom_group_kill"),
            })
        }
        Version::V1 => {
            let oom = counters(dir, "memory.oom_control")?.unwrap_or_default();
            let memory_failures = value::<u64>(dir, "memory.failcnt")?;
            let sum_failures = value::<u64>(dir, "memory.memsw.failcnt")?;
            Ok(MemoryEvents {
                max: memory_failures.map(|n| n.saturating_add(sum_failures.unwrap_or(0))),
                oom_kill: oom.get("oom_kill"),
                ..MemoryEvents::default()
            })
        }
    }
}
