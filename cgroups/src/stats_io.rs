//! What a group has read and written, and what it holds of other resources.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::bytes::Bytes;
use crate::controller::Controller;
use crate::counters::Counters;
use crate::current::{huge_page_sizes, value};
use crate::device::DeviceNumber;
use crate::dir::Dir;
use crate::error::{ParseError, Result};
use crate::group::Cgroup;
use crate::io::RdmaMax;
use crate::keyed::keyed;
use crate::plan_memory::huge_page_name;
use crate::procfs::Version;

/// What has been done to one block device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct IoDeviceStats {
    /// Bytes read.
    pub read_bytes: Bytes,
    /// Bytes written.
    pub written_bytes: Bytes,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
    /// Bytes discarded.
    pub discarded_bytes: Bytes,
    /// Discard operations.
    pub discards: u64,
    /// What else the kernel says, in its words and order, such as `cost.usage` of the policy
    /// iocost. v2.
    pub other: Vec<(String, String)>,
}

/// What has been done to each block device: the content of v2's `io.stat`.
#[doc(alias = "io.stat")]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IoStats {
    /// By device. Devices that were never used may be missing.
    pub devices: BTreeMap<DeviceNumber, IoDeviceStats>,
}

impl FromStr for IoStats {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut devices = BTreeMap::new();
        for line in text.lines() {
            let fail = || ParseError::new("a line of io.stat", line);
            let mut words = line.split_ascii_whitespace();
            let device: DeviceNumber = words.next().ok_or_else(fail)?.parse()?;
            let mut stats = IoDeviceStats::default();
            for word in words {
                let (key, value) = word.split_once('=').ok_or_else(fail)?;
                match (key, value.parse::<u64>()) {
                    ("rbytes", Ok(number)) => stats.read_bytes = Bytes::new(number),
                    ("wbytes", Ok(number)) => stats.written_bytes = Bytes::new(number),
                    ("rios", Ok(number)) => stats.reads = number,
                    ("wios", Ok(number)) => stats.writes = number,
                    ("dbytes", Ok(number)) => stats.discarded_bytes = Bytes::new(number),
                    ("dios", Ok(number)) => stats.discards = number,
                    // A policy such as iocost adds fractions and words of its own.
                    _ => stats.other.push((key.to_owned(), value.to_owned())),
                }
            }
            devices.insert(device, stats);
        }
        Ok(Self { devices })
    }
}

impl IoStats {
    /// Reads what v1 has in two files: `blkio.throttle.io_service_bytes` and `io_serviced`, or
    /// their recursive variants.
    ///
    /// # Errors
    ///
    /// [`ParseError`] with the line that is not of this form.
    pub fn from_v1(service_bytes: &str, serviced: &str) -> Result<Self, ParseError> {
        let mut devices = BTreeMap::<_, IoDeviceStats>::new();
        service_lines(service_bytes, |device, what, number| {
            let device = devices.entry(device).or_default();
            match what {
                "Read" => device.read_bytes = Bytes::new(number),
                "Write" => device.written_bytes = Bytes::new(number),
                "Discard" => device.discarded_bytes = Bytes::new(number),
                _ => {}
            }
        })?;
        service_lines(serviced, |device, what, number| {
            let device = devices.entry(device).or_default();
            match what {
                "Read" => device.reads = number,
                "Write" => device.writes = number,
                "Discard" => device.discards = number,
                _ => {}
            }
        })?;
        Ok(Self { devices })
    }
}

impl fmt::Display for IoStats {
    /// As `io.stat` has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (device, stats) in &self.devices {
            write!(
                f,
                "{device} rbytes={} wbytes={} rios={} wios={} dbytes={} dios={}",
                stats.read_bytes.get(),
                stats.written_bytes.get(),
                stats.reads,
                stats.writes,
                stats.discarded_bytes.get(),
                stats.discards
            )?;
            for (key, value) in &stats.other {
                write!(f, " {key}={value}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// What a group holds of one RDMA device.
#[doc(alias = "rdma.current")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct RdmaStats {
    /// Handles of the device.
    #[doc(alias = "hca_handle")]
    pub handles: u32,
    /// Objects of the device.
    #[doc(alias = "hca_object")]
    pub objects: u32,
}

impl fmt::Display for RdmaStats {
    /// As `rdma.current` has it, after the device.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hca_handle={} hca_object={}", self.handles, self.objects)
    }
}

impl FromStr for RdmaStats {
    type Err = ParseError;

    /// Reads a line of `rdma.current` without its device, which is in the form of `rdma.max`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new("numbers such as hca_handle=2 hca_object=1", text);
        let RdmaMax { handles, objects } = text.parse()?;
        Ok(Self {
            handles: handles.limit().ok_or_else(fail)?,
            objects: objects.limit().ok_or_else(fail)?,
        })
    }
}

/// Huge pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct HugetlbStats {
    /// In use now.
    pub current: Bytes,
    /// How often the limit was reached.
    pub max_events: Option<u64>,
}

impl Cgroup {
    /// Block devices; nothing where the io controller is not enabled for the group.
    ///
    /// v1: `blkio.throttle.io_service_bytes_recursive` and `io_serviced_recursive`.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse),
    /// [`Error::Io`](crate::Error::Io).
    pub fn io_stats(&self) -> Result<Option<IoStats>> {
        let Some((version, dir)) = self.stat_dir(Controller::Io) else {
            return Ok(None);
        };
        match version {
            Version::V2 => match dir.try_read("io.stat")? {
                Some(text) => match text.parse() {
                    Ok(stats) => Ok(Some(stats)),
                    Err(error) => Err(dir.unforeseen("io.stat", error)),
                },
                None => Ok(None),
            },
            Version::V1 => io_v1(dir),
        }
    }

    /// Huge pages by their size; nothing where the hugetlb controller is not enabled.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::io_stats`].
    #[doc(alias = "hugetlb.2MB.current")]
    pub fn hugetlb_stats(&self) -> Result<Option<BTreeMap<Bytes, HugetlbStats>>> {
        let Some((version, dir)) = self.stat_dir(Controller::Hugetlb) else {
            return Ok(None);
        };
        let mut all = BTreeMap::new();
        for size in huge_page_sizes() {
            let name = huge_page_name(size);
            let (current, max_events) = match version {
                Version::V2 => {
                    let current = value::<u64>(dir, &format!("hugetlb.{name}.current"))?;
                    let events = counters(dir, &format!("hugetlb.{name}.events"))?;
                    (current, events.and_then(|events| events.get("max")))
                }
                Version::V1 => (
                    value::<u64>(dir, &format!("hugetlb.{name}.usage_in_bytes"))?,
                    value::<u64>(dir, &format!("hugetlb.{name}.failcnt"))?,
                ),
            };
            if let Some(current) = current.map(Bytes::new) {
                all.insert(
                    size,
                    HugetlbStats {
                        current,
                        max_events,
                    },
                );
            }
        }
        Ok(Some(all).filter(|all| !all.is_empty()))
    }

    /// Scalar resources in use, by name; nothing where the misc controller is not enabled.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::io_stats`].
    #[doc(alias = "misc.current")]
    pub fn misc_stats(&self) -> Result<Option<Counters>> {
        match self.stat_dir(Controller::Misc) {
            Some((_, dir)) => counters(dir, "misc.current"),
            None => Ok(None),
        }
    }

    /// How often the limit of a scalar resource was reached, as `<name>.max`. v2, Linux 5.15.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::io_stats`].
    #[doc(alias = "misc.events")]
    pub fn misc_events(&self) -> Result<Option<Counters>> {
        match self.stat_dir(Controller::Misc) {
            Some((_, dir)) => counters(dir, "misc.events"),
            None => Ok(None),
        }
    }

    /// RDMA devices by name; nothing where the rdma controller is not enabled. Devices of which
    /// the group holds nothing may be missing.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::io_stats`].
    #[doc(alias = "rdma.current")]
    pub fn rdma_stats(&self) -> Result<Option<BTreeMap<String, RdmaStats>>> {
        match self.stat_dir(Controller::Rdma) {
            Some((_, dir)) => keyed(dir, "rdma.current"),
            None => Ok(None),
        }
    }

    /// Every counter of `cpu.stat`, in the kernel's words, which differ between v1 and v2.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::io_stats`].
    #[doc(alias = "cpu.stat")]
    pub fn cpu_counters(&self) -> Result<Option<Counters>> {
        // v2 accounts for it without the controller, too.
        let v1 = self.stat_dir(Controller::Cpu).map(|(_, dir)| dir);
        match v1.or_else(|| self.unified()) {
            Some(dir) => counters(dir, "cpu.stat"),
            None => Ok(None),
        }
    }

    /// Every counter of `memory.events`; on v1 of `memory.oom_control`.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::io_stats`].
    #[doc(alias = "memory.events")]
    pub fn memory_event_counters(&self) -> Result<Option<Counters>> {
        match self.stat_dir(Controller::Memory) {
            Some((Version::V2, dir)) => counters(dir, "memory.events"),
            Some((Version::V1, dir)) => counters(dir, "memory.oom_control"),
            None => Ok(None),
        }
    }

    /// Every counter of `memory.stat`, in the kernel's words, which differ between v1 and v2.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::io_stats`].
    #[doc(alias = "memory.stat")]
    pub fn memory_counters(&self) -> Result<Option<Counters>> {
        match self.stat_dir(Controller::Memory) {
            Some((_, dir)) => counters(dir, "memory.stat"),
            None => Ok(None),
        }
    }

    /// Groups below this one, and those removed but still holding resources: `nr_descendants` and
    /// `nr_dying_descendants` of v2's `cgroup.stat`.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::io_stats`].
    #[doc(alias = "cgroup.stat")]
    pub fn group_counters(&self) -> Result<Option<Counters>> {
        match self.unified() {
            Some(dir) => counters(dir, "cgroup.stat"),
            None => Ok(None),
        }
    }
}

pub(crate) fn counters(dir: &Dir, file: &str) -> Result<Option<Counters>> {
    match dir.try_read(file)? {
        Some(text) => match text.parse() {
            Ok(counters) => Ok(Some(counters)),
            Err(error) => Err(dir.unforeseen(file, error)),
        },
        None => Ok(None),
    }
}

fn io_v1(dir: &Dir) -> Result<Option<IoStats>> {
    const BYTES: &str = "blkio.throttle.io_service_bytes_recursive";
    const OPERATIONS: &str = "blkio.throttle.io_serviced_recursive";
    let (Some(bytes), Some(operations)) = (dir.try_read(BYTES)?, dir.try_read(OPERATIONS)?) else {
        return Ok(None);
    };
    match IoStats::from_v1(&bytes, &operations) {
        Ok(stats) => Ok(Some(stats)),
        Err(error) => Err(dir.unforeseen(BYTES, error)),
    }
}

/// Lines of v1 such as `8:0 Read 4096`, after which a `Total 4096` without device ends the file.
fn service_lines(
    text: &str,
    mut each: impl FnMut(DeviceNumber, &str, u64),
) -> Result<(), ParseError> {
    for line in text.lines() {
        let fail = || ParseError::new("a device, a kind and a number", line);
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some("Total"), Some(_), None) => {}
            (Some(device), Some(what), Some(number)) => {
                each(device.parse()?, what, number.parse().map_err(|_| fail())?);
            }
            _ => return Err(fail()),
        }
    }
    Ok(())
}
