//! Reading limits back.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::bytes::Bytes;
use crate::cpu::{CpuQuota, Weight};
use crate::device::DeviceNumber;
use crate::dir::Dir;
use crate::error::{ParseError, Result};
use crate::group::Cgroup;
use crate::io::{IoMax, LatencyTarget};
use crate::keyed::keyed;
use crate::knob::Knob;
use crate::limits::Limits;
use crate::max::Max;
use crate::partition::Partition;
use crate::plan::{number, v1_limit, v1_swap};
use crate::plan_memory::huge_page_name;
use crate::procfs::Version;
use crate::set::IdSet;

impl Cgroup {
    /// The limits that are in force for this group itself, as the kernel keeps them. Those that
    /// the machine or the group lacks are `None`. An ancestor may limit it further.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`](crate::Error::Vanished), [`Error::Parse`](crate::Error::Parse),
    /// [`Error::Io`](crate::Error::Io).
    pub fn limits(&self) -> Result<Limits> {
        let mut limits = Limits::new();
        if let Ok((version, dir)) = self.dir_of(Knob::CpuMax.controller()) {
            cpu(version, dir, &mut limits)?;
        }
        if let Ok((_, dir)) = self.dir_of(Knob::CpusetCpus.controller()) {
            limits.cpuset_cpus = value::<IdSet>(dir, Knob::CpusetCpus.name())?;
            limits.cpuset_mems = value::<IdSet>(dir, Knob::CpusetMems.name())?;
            let file = Knob::CpusetPartition.name();
            if let Some(text) = dir.try_read(file)? {
                // `root invalid (…)`, when the processors cannot be had, is like `member`.
                let partition = match text.trim_end().split_once(' ') {
                    Some((_, reason)) if reason.starts_with("invalid") => Ok(Partition::Member),
                    _ => text.trim_end().parse(),
                };
                let partition = partition.map_err(|error| dir.unforeseen(file, error))?;
                limits.cpuset_partition = Some(partition);
            }
        }
        if let Ok((version, dir)) = self.dir_of(Knob::MemoryMax.controller()) {
            memory(version, dir, &mut limits)?;
        }
        if let Ok((_, dir)) = self.dir_of(Knob::PidsMax.controller()) {
            limits.pids_max = value(dir, Knob::PidsMax.name())?;
        }
        if let Ok((version, dir)) = self.dir_of(Knob::IoMax.controller()) {
            io(version, dir, &mut limits)?;
        }
        if let Ok((version, dir)) = self.dir_of(Knob::HugetlbMax.controller()) {
            limits.hugetlb_max = hugetlb(version, dir)?;
        }
        if let Ok((_, dir)) = self.dir_of(Knob::RdmaMax.controller()) {
            limits.rdma_max = keyed(dir, Knob::RdmaMax.name())?;
        }
        if let Ok((_, dir)) = self.dir_of(Knob::MiscMax.controller()) {
            limits.misc_max = keyed(dir, Knob::MiscMax.name())?;
        }
        if let Ok((_, dir)) = self.dir_of(Knob::NetClsClassid.controller()) {
            limits.net_cls_classid = value(dir, Knob::NetClsClassid.name())?;
        }
        if let Ok((_, dir)) = self.dir_of(Knob::NetPrioIfpriomap.controller()) {
            limits.net_prio = keyed(dir, Knob::NetPrioIfpriomap.name())?;
        }
        Ok(limits)
    }

    /// The processors that the group really has: its own set as far as its ancestors, and
    /// processors that go offline, leave it. Nothing where the cpuset controller is not enabled.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::limits`].
    #[doc(alias = "cpuset.cpus.effective")]
    pub fn effective_cpus(&self) -> Result<Option<IdSet>> {
        self.effective("cpuset.cpus.effective", "cpuset.effective_cpus")
    }

    /// The memory nodes that the group really has, as [`Cgroup::effective_cpus`].
    ///
    /// # Errors
    ///
    /// As [`Cgroup::limits`].
    #[doc(alias = "cpuset.mems.effective")]
    pub fn effective_mems(&self) -> Result<Option<IdSet>> {
        self.effective("cpuset.mems.effective", "cpuset.effective_mems")
    }

    fn effective(&self, v2: &str, v1: &str) -> Result<Option<IdSet>> {
        match self.dir_of(Knob::CpusetCpus.controller()) {
            Ok((Version::V2, dir)) => value(dir, v2),
            Ok((Version::V1, dir)) => value(dir, v1),
            Err(_) => Ok(None),
        }
    }
}

/// Reads a file that holds one value; nothing where the file is missing.
pub(crate) fn value<T: FromStr>(dir: &Dir, file: &str) -> Result<Option<T>> {
    let Some(text) = dir.try_read(file)? else {
        return Ok(None);
    };
    match text.trim_end().parse() {
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(dir.unforeseen(file, ParseError::new("a value", &text))),
    }
}

fn flag(dir: &Dir, file: &'static str) -> Result<Option<bool>> {
    Ok(value::<u8>(dir, file)?.map(|flag| flag != 0))
}

fn cpu(version: Version, dir: &Dir, limits: &mut Limits) -> Result<()> {
    limits.cpu_idle = flag(dir, "cpu.idle")?;
    limits.cpu_uclamp_min = value(dir, "cpu.uclamp.min")?;
    limits.cpu_uclamp_max = value(dir, "cpu.uclamp.max")?;
    match version {
        Version::V2 => {
            // An idle group shows 0, which is no weight.
            limits.cpu_weight =
                value::<u16>(dir, "cpu.weight")?.and_then(|weight| Weight::new(weight.max(1)).ok());
            limits.cpu_max_burst = value(dir, "cpu.max.burst")?;
            if let Some(text) = dir.try_read("cpu.max")? {
                let max = CpuQuota::parse_max(&text);
                limits.cpu_max = Some(max.map_err(|error| dir.unforeseen("cpu.max", error))?);
            }
        }
        Version::V1 => {
            limits.cpu_weight = value(dir, "cpu.shares")?.map(Weight::from_shares);
            limits.cpu_max_burst = value(dir, "cpu.cfs_burst_us")?;
            let quota = value::<i64>(dir, "cpu.cfs_quota_us")?;
            let period = value::<u64>(dir, "cpu.cfs_period_us")?;
            limits.cpu_max = match (quota, period) {
                (Some(quota), Some(period)) => Some(match u64::try_from(quota) {
                    Err(_) => Max::Unlimited,
                    Ok(quota) => Max::At(CpuQuota::from_micros(quota, period)?),
                }),
                _ => None,
            };
        }
    }
    Ok(())
}

fn memory(version: Version, dir: &Dir, limits: &mut Limits) -> Result<()> {
    match version {
        Version::V2 => {
            let amount = |file| value::<Max<Bytes>>(dir, file);
            limits.memory_min = amount("memory.min")?;
            limits.memory_low = amount("memory.low")?;
            limits.memory_high = amount("memory.high")?;
            limits.memory_max = amount("memory.max")?;
            limits.memory_swap_max = amount("memory.swap.max")?;
            limits.memory_zswap_max = amount("memory.zswap.max")?;
            limits.memory_oom_group = flag(dir, "memory.oom.group")?;
        }
        Version::V1 => {
            let memory = v1_limit(number(dir, "memory.limit_in_bytes")?);
            limits.memory_max = Some(memory);
            let sum = value(dir, "memory.memsw.limit_in_bytes")?.map(v1_limit);
            limits.memory_swap_max = sum.map(|sum| v1_swap(memory, sum));
        }
    }
    Ok(())
}

fn io(version: Version, dir: &Dir, limits: &mut Limits) -> Result<()> {
    match version {
        Version::V2 => {
            let own = keyed::<String, Weight>(dir, "io.weight")?;
            let bfq = keyed::<String, u16>(dir, "io.bfq.weight")?;
            let default = |map: Option<BTreeMap<String, _>>| map?.remove("default");
            let default_bfq = |map: Option<BTreeMap<String, _>>| map?.remove("default");
            limits.io_weight = default(own).or(default_bfq(bfq).map(Weight::from_blkio));
            limits.io_max = keyed(dir, "io.max")?;
            limits.io_latency = keyed::<DeviceNumber, LatencyTarget>(dir, "io.latency")?
                .map(|map| map.into_iter().map(|(key, value)| (key, value.0)).collect());
        }
        Version::V1 => {
            limits.io_weight = value::<u16>(dir, "blkio.bfq.weight")?.map(Weight::from_blkio);
            let mut all: BTreeMap<DeviceNumber, IoMax> = BTreeMap::new();
            let read = |file| keyed::<DeviceNumber, u64>(dir, file);
            let Some(read_bytes) = read("blkio.throttle.read_bps_device")? else {
                return Ok(());
            };
            for (device, limit) in read_bytes {
                all.entry(device).or_default().read_bytes = Bytes::new(limit).into();
            }
            for (device, limit) in read("blkio.throttle.write_bps_device")?.unwrap_or_default() {
                all.entry(device).or_default().written_bytes = Bytes::new(limit).into();
            }
            // The kernel keeps 32 bits of these.
            let narrow = |limit| u32::try_from(limit).unwrap_or(u32::MAX).into();
            for (device, limit) in read("blkio.throttle.read_iops_device")?.unwrap_or_default() {
                all.entry(device).or_default().reads = narrow(limit);
            }
            for (device, limit) in read("blkio.throttle.write_iops_device")?.unwrap_or_default() {
                all.entry(device).or_default().writes = narrow(limit);
            }
            limits.io_max = Some(all);
        }
    }
    Ok(())
}

fn hugetlb(version: Version, dir: &Dir) -> Result<Option<BTreeMap<Bytes, Max<Bytes>>>> {
    let mut all = BTreeMap::new();
    for size in huge_page_sizes() {
        let name = huge_page_name(size);
        let limit = match version {
            // Before anyone has set a limit, v2 shows the number that v1 does, too.
            Version::V2 => value::<Max<Bytes>>(dir, &format!("hugetlb.{name}.max"))?
                .map(|limit| limit.limit().map_or(limit, |bytes| v1_limit(bytes.get()))),
            Version::V1 => {
                value::<u64>(dir, &format!("hugetlb.{name}.limit_in_bytes"))?.map(v1_limit)
            }
        };
        if let Some(limit) = limit {
            all.insert(size, limit);
        }
    }
    Ok(Some(all).filter(|all| !all.is_empty()))
}

/// The sizes of huge pages that this machine has.
pub(crate) fn huge_page_sizes() -> Vec<Bytes> {
    // A machine without huge pages has no such directory.
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let mut sizes: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let kilobytes = name.strip_prefix("hugepages-")?.strip_suffix("kB")?;
            Some(Bytes::kib(kilobytes.parse().ok()?))
        })
        .collect();
    sizes.sort_unstable();
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn what_is_unforeseen_is_an_error_and_what_is_missing_is_none() {
        let directory = tempfile::tempdir().expect("made");
        let dir = Dir::open(directory.path()).expect("opened");
        // By this a group is known to be alive.
        std::fs::write(directory.path().join("cgroup.procs"), "").expect("written");
        for garbage in [&b"many\n"[..], b"", b"1 2\n", b"\xff\n", b"-1\n"] {
            std::fs::write(directory.path().join("pids.max"), garbage).expect("written");
            let error = value::<Max<u64>>(&dir, "pids.max").expect_err("no number");
            assert!(matches!(error, Error::Parse { .. }), "{error}");
            assert!(error.to_string().contains("pids.max"), "{error}");
        }
        assert_eq!(value::<Max<u64>>(&dir, "pids.min").expect("readable"), None);
    }
}
