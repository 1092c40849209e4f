//! The writes for processors and memory nodes.

use crate::cpu::CpuQuota;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::knob::Knob;
use crate::limits::Limits;
use crate::max::Max;
use crate::plan::{Plan, Restore};
use crate::procfs::Version;
use crate::set::IdSet;

impl<'a> Plan<'a> {
    pub(crate) fn cpu(&mut self, limits: &Limits) -> Result<()> {
        let wanted = limits.cpu_weight.is_some()
            || limits.cpu_max.is_some()
            || limits.cpu_max_burst.is_some()
            || limits.cpu_idle.is_some()
            || limits.cpu_uclamp_min.is_some()
            || limits.cpu_uclamp_max.is_some();
        if !wanted {
            return Ok(());
        }
        let (version, dir) = self.group.dir_of(Knob::CpuMax.controller())?;
        // An idle group's weight cannot be written, so idleness ends before and begins after.
        let idle_file = "cpu.idle";
        if limits.cpu_idle == Some(false) {
            self.push(Knob::CpuIdle, dir, idle_file, &0, &false)?;
        }
        let weight_file = match version {
            Version::V1 => "cpu.shares",
            Version::V2 => "cpu.weight",
        };
        // Of a group that is idle and remains so the weight says nothing, and it cannot be written.
        let remains_idle = limits.cpu_idle == Some(true)
            && self.open(Knob::CpuIdle, dir, idle_file)?.number()? != 0;
        if let Some(weight) = limits.cpu_weight.filter(|_| !remains_idle) {
            let value = match version {
                Version::V1 => weight.to_shares(),
                Version::V2 => weight.get().into(),
            };
            self.push(Knob::CpuWeight, dir, weight_file, &value, &weight)?;
        } else if limits.cpu_idle == Some(true) && !remains_idle {
            // The kernel forgets the weight of a group that becomes idle, so an undo must know it.
            let weight = self.open(Knob::CpuWeight, dir, weight_file)?.number()?;
            self.push(Knob::CpuWeight, dir, weight_file, &weight, &weight)?;
        }
        // A burst may not exceed the quota: it shrinks before the quota and grows after.
        let burst = limits.cpu_max_burst;
        let burst_file = match version {
            Version::V1 => "cpu.cfs_burst_us",
            Version::V2 => "cpu.max.burst",
        };
        let shrinks = match burst {
            Some(burst) => burst < self.open(Knob::CpuMaxBurst, dir, burst_file)?.number()?,
            None => false,
        };
        if let Some(burst) = burst.filter(|_| shrinks) {
            self.push(Knob::CpuMaxBurst, dir, burst_file, &burst, &burst)?;
        }
        if let Some(max) = limits.cpu_max {
            self.cpu_max(version, dir, max)?;
        }
        if let Some(burst) = burst.filter(|_| !shrinks) {
            self.push(Knob::CpuMaxBurst, dir, burst_file, &burst, &burst)?;
        }
        let clamps = [
            (Knob::CpuUclampMin, limits.cpu_uclamp_min),
            (Knob::CpuUclampMax, limits.cpu_uclamp_max),
        ];
        for (knob, clamp) in clamps {
            if let Some(clamp) = clamp {
                self.push(knob, dir, knob.name(), &clamp, &clamp)?;
            }
        }
        if limits.cpu_idle == Some(true) {
            self.push(Knob::CpuIdle, dir, idle_file, &1, &true)?;
        }
        Ok(())
    }

    fn cpu_max(&mut self, version: Version, dir: &'a Dir, max: Max<CpuQuota>) -> Result<()> {
        const QUOTA: &str = "cpu.cfs_quota_us";
        const PERIOD: &str = "cpu.cfs_period_us";
        let knob = Knob::CpuMax;
        match (version, max) {
            (Version::V2, max) => self.push(knob, dir, "cpu.max", &max, &max),
            (Version::V1, Max::Unlimited) => self.push(knob, dir, QUOTA, &-1, &max),
            (Version::V1, Max::At(quota)) => {
                // Two files, so one state lies between. Its ratio must not be larger than both
                // the old and the new one, or the parent's ratio might forbid it.
                let old_period = self.open(knob, dir, PERIOD)?.number()?;
                let (quota_us, period_us) = (quota.quota().as_micros(), quota.period().as_micros());
                if period_us > u128::from(old_period) {
                    self.push(knob, dir, PERIOD, &period_us, &max)?;
                }
                self.push(knob, dir, QUOTA, &quota_us, &max)?;
                if period_us < u128::from(old_period) {
                    self.push(knob, dir, PERIOD, &period_us, &max)?;
                }
                Ok(())
            }
        }
    }

    pub(crate) fn cpuset(&mut self, limits: &Limits) -> Result<()> {
        for (knob, ids) in [
            (Knob::CpusetMems, &limits.cpuset_mems),
            (Knob::CpusetCpus, &limits.cpuset_cpus),
        ] {
            let Some(ids) = ids else { continue };
            let (version, dir) = self.group.dir_of(knob.controller())?;
            // The root lacks it on v2.
            self.open(knob, dir, knob.name())?;
            // Refused here, because v2 would accept the set and silently use another.
            let available = Self::cpuset_available(version, dir, knob)?;
            if !ids.is_subset(&available) {
                return Err(Error::NotInMachine {
                    knob,
                    value: ids.to_string(),
                    available: available.to_string(),
                    group: self.group.label(),
                });
            }
            self.push(knob, dir, knob.name(), ids, ids)?;
        }
        if let Some(partition) = limits.cpuset_partition {
            let knob = Knob::CpusetPartition;
            let (_, dir) = self.group.dir_of(knob.controller())?;
            let (file, value) = (knob.name().into(), partition.to_string());
            self.push_with(knob, dir, file, value, &partition, Restore::Word)?;
        }
        Ok(())
    }

    /// What the parent may use, which is as much as this group can get besides what is its own.
    fn cpuset_available(version: Version, dir: &Dir, knob: Knob) -> Result<IdSet> {
        let file = match (version, knob) {
            (Version::V1, Knob::CpusetMems) => "cpuset.effective_mems",
            (Version::V1, _) => "cpuset.effective_cpus",
            (Version::V2, Knob::CpusetMems) => "cpuset.mems.effective",
            (Version::V2, _) => "cpuset.cpus.effective",
        };
        let parent = dir
            .open_below(std::path::Path::new(".."))
            .map_err(|errno| dir.error("open the parent of", "", errno))?;
        // Above the visible root there is no group.
        let above = if parent.has("cgroup.procs") {
            &parent
        } else {
            dir
        };
        let read = |dir: &Dir, file| {
            let text = dir.read(file)?;
            text.parse::<IdSet>()
                .map_err(|source| dir.unforeseen(file, source))
        };
        let available = read(above, file)?;
        // The processors of a partition are its parent's no more.
        let state = match knob {
            Knob::CpusetCpus => dir.try_read(Knob::CpusetPartition.name())?,
            _ => None,
        };
        if state.is_none_or(|state| state.starts_with("member") || state.contains("invalid")) {
            return Ok(available);
        }
        let own = read(dir, knob.name())?;
        Ok(available.iter().chain(own.iter()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_has_its_own_processors_besides_those_of_its_parent() {
        let above = tempfile::tempdir().expect("made");
        let write = |file: &str, text: &str| {
            std::fs::write(above.path().join(file), text).expect("written");
        };
        std::fs::create_dir(above.path().join("group")).expect("made");
        // By this a group is known to be one.
        write("group/cgroup.procs", "");
        write("cpuset.cpus.effective", "2-3\n");
        write("group/cpuset.cpus", "0-1,3\n");
        write("group/cpuset.cpus.effective", "3\n");
        let dir = Dir::open(&above.path().join("group")).expect("opened");
        let available = || {
            Plan::cpuset_available(Version::V2, &dir, Knob::CpusetCpus)
                .expect("read")
                .to_string()
        };
        // Above what is visible there is no group to ask.
        assert_eq!(available(), "3");
        write("cgroup.procs", "");
        assert_eq!(available(), "2-3");
        for (state, expected) in [
            ("member", "2-3"),
            ("root invalid (no reason)", "2-3"),
            ("root", "0-3"),
            ("isolated", "0-3"),
        ] {
            write("group/cpuset.cpus.partition", &format!("{state}\n"));
            assert_eq!(available(), expected, "{state}");
        }
    }
}
