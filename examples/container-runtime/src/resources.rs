//! `linux.resources`: what the container may use.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cgroups::{
    Bytes, Cgroup, Controller, CpuQuota, DeviceNumber, IdSet, IoMax, Limits, Max, RdmaMax, Version,
    Weight,
};
use rustix::fs::{Mode, OFlags};

use crate::config::{self, BlockIo, Cpu, Memory, ThrottleDevice};

/// Sets one of the limits of a device.
type Set = fn(IoMax, Bytes) -> IoMax;

/// Limits by the property that asks for them, in the order of setting.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Resources {
    steps: Vec<(String, Step)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Limits(Box<Limits>),
    /// A file of a controller by its name on v1, and on v2 if it has a counterpart there.
    File {
        controller: Controller,
        v1: &'static str,
        v2: Option<&'static str>,
        value: String,
    },
    /// The most huge pages of a size that can be reserved; older kernels count those in use alone.
    Reserved {
        size: Bytes,
        limit: Bytes,
    },
    /// A period without a quota: of the quota that is there.
    Period(Duration),
    /// A file of the unified hierarchy by its name.
    Unified {
        name: String,
        value: String,
    },
}

/// What is to be written to a file of a control group.
struct Write<'a> {
    directory: BorrowedFd<'a>,
    name: String,
    value: String,
    /// Nothing is to be done where the kernel has no such file.
    optional: bool,
}

impl Resources {
    /// What the configuration asks for.
    pub(crate) fn of(resources: &config::Resources) -> Result<Self> {
        let mut all = Self::default();
        all.memory(&resources.memory)?;
        all.cpu(&resources.cpu)?;
        if let Some(limit) = resources.pids.limit {
            // With 0 there is the first process alone, which is what 1 comes to; systemd takes no 0.
            let limit = u64::try_from(limit).map_or(Max::Unlimited, |limit| Max::At(limit.max(1)));
            all.limit("pids.limit", Limits::new().pids_max(limit));
        }
        all.block_io(&resources.block_io)?;
        all.others(resources)?;
        for (name, value) in &resources.unified {
            if name.contains('/') || !name.contains('.') || name.starts_with("cgroup.procs") {
                bail!(
                    "linux.resources.unified.{name}: no file of a controller; write one such as memory.high"
                );
            }
            all.push(
                &format!("unified.{name}"),
                Step::Unified {
                    name: name.clone(),
                    value: value.clone(),
                },
            );
        }
        Ok(all)
    }

    /// Whether nothing is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The limits that have a counterpart in every layout.
    pub(crate) fn limits(&self) -> impl Iterator<Item = (&str, &Limits)> {
        self.steps.iter().filter_map(|(property, step)| match step {
            Step::Limits(limits) => Some((property.as_str(), &**limits)),
            _ => None,
        })
    }

    /// Sets everything, in order.
    pub(crate) fn apply(&self, group: &Cgroup) -> Result<()> {
        for (property, step) in &self.steps {
            step.apply(group)
                .with_context(|| format!("linux.resources.{property}"))?;
        }
        Ok(())
    }

    /// The same for a group in use: all or nothing.
    pub(crate) fn change(&self, group: &Cgroup) -> Result<()> {
        let mut limits = group.limits()?;
        let mut files = Vec::new();
        for (property, step) in &self.steps {
            let changed = step.file(group).and_then(|file| {
                let before = file.as_ref().and_then(|file| file.read().ok());
                step.apply(group)?;
                files.extend(file.zip(before));
                Ok(())
            });
            if let Err(error) = changed {
                for (file, before) in files.iter().rev() {
                    // Files that have a line for each device take one at a time.
                    for line in before.lines() {
                        let _ = file.write(line);
                    }
                }
                if limits.memory_max == Some(Max::Unlimited) {
                    limits.memory_swap_max = None;
                }
                let _ = group.apply(&limits);
                return Err(error).with_context(|| format!("linux.resources.{property}"));
            }
        }
        Ok(())
    }

    fn push(&mut self, property: &str, step: Step) {
        self.steps.push((property.to_owned(), step));
    }

    fn limit(&mut self, property: &str, limits: Limits) {
        self.push(property, Step::Limits(Box::new(limits)));
    }

    /// A file that v1 alone has.
    fn file(&mut self, property: &str, controller: Controller, v1: &'static str, value: String) {
        let v2 = None;
        self.push(
            property,
            Step::File {
                controller,
                v1,
                v2,
                value,
            },
        );
    }

    fn memory(&mut self, memory: &Memory) -> Result<()> {
        let limit = bytes(memory.limit, "limit")?;
        if let Some(limit) = limit {
            self.limit("memory.limit", Limits::new().memory_max(limit));
        }
        // The specification counts memory and swap together.
        let swap = match (bytes(memory.swap, "swap")?, limit) {
            (Some(Max::At(both)), Some(Max::At(limit))) if both >= limit => {
                Some(Max::At(both.saturating_sub(limit)))
            }
            (Some(Max::At(_)), Some(Max::At(_))) => bail!(
                "linux.resources.memory.swap: counts memory too, so it cannot be less than memory.limit"
            ),
            (Some(Max::At(_)), _) => bail!(
                "linux.resources.memory.swap: counts memory too, so it needs memory.limit; set it"
            ),
            (other, _) => other,
        };
        if let Some(swap) = swap {
            self.limit("memory.swap", Limits::new().memory_swap_max(swap));
        }
        if let Some(reservation) = bytes(memory.reservation, "reservation")? {
            // v2 protects so much instead of taking what is above first. Both are writable as these.
            let value = match reservation.limit() {
                Some(limit) => limit.get().to_string(),
                None => i64::MAX.to_string(),
            };
            self.push(
                "memory.reservation",
                Step::File {
                    controller: Controller::Memory,
                    v1: "memory.soft_limit_in_bytes",
                    v2: Some("memory.low"),
                    value,
                },
            );
        }
        for (property, value, name) in [
            ("kernel", memory.kernel, "memory.kmem.limit_in_bytes"),
            (
                "kernelTCP",
                memory.kernel_tcp,
                "memory.kmem.tcp.limit_in_bytes",
            ),
        ] {
            if let Some(limit) = bytes(value, property)? {
                let value = limit
                    .limit()
                    .map_or("-1".to_owned(), |limit| limit.get().to_string());
                self.file(
                    &format!("memory.{property}"),
                    Controller::Memory,
                    name,
                    value,
                );
            }
        }
        if let Some(swappiness) = memory.swappiness {
            if swappiness > 100 {
                bail!("linux.resources.memory.swappiness: {swappiness} is not from 0 to 100");
            }
            self.file(
                "memory.swappiness",
                Controller::Memory,
                "memory.swappiness",
                swappiness.to_string(),
            );
        }
        if memory.disable_oom_killer {
            self.file(
                "memory.disableOOMKiller",
                Controller::Memory,
                "memory.oom_control",
                "1".to_owned(),
            );
        }
        if memory.use_hierarchy == Some(false) {
            bail!(
                "linux.resources.memory.useHierarchy: false: the kernel always counts what is below; remove it"
            );
        }
        Ok(())
    }

    fn cpu(&mut self, cpu: &Cpu) -> Result<()> {
        if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
            self.limit(
                "cpu.shares",
                Limits::new().cpu_weight(Weight::from_shares(shares)),
            );
        }
        let period = cpu.period.filter(|period| *period != 0);
        match (cpu.quota, period) {
            (None | Some(0), None) => {}
            (None | Some(0), Some(period)) => {
                self.push("cpu.period", Step::Period(Duration::from_micros(period)));
            }
            (Some(-1), _) => self.limit("cpu.quota", Limits::new().cpu_max(Max::Unlimited)),
            (Some(quota), period) => {
                let quota = u64::try_from(quota).ok().context(
                    "linux.resources.cpu.quota: must be microseconds in a period; -1 is without limit",
                )?;
                let period = Duration::from_micros(period.unwrap_or(100_000));
                let quota = CpuQuota::new(Duration::from_micros(quota), period)
                    .context("linux.resources.cpu.quota")?;
                self.limit("cpu.quota", Limits::new().cpu_max(quota));
            }
        }
        if let Some(burst) = cpu.burst.filter(|burst| *burst != 0) {
            self.limit("cpu.burst", Limits::new().cpu_max_burst(burst));
        }
        for (property, value, name) in [
            // The time must fit into the period at any moment.
            (
                "cpu.realtimePeriod",
                cpu.realtime_period.map(|period| period.to_string()),
                "cpu.rt_period_us",
            ),
            (
                "cpu.realtimeRuntime",
                cpu.realtime_runtime.map(|runtime| runtime.to_string()),
                "cpu.rt_runtime_us",
            ),
        ] {
            if let Some(value) = value.filter(|value| value != "0") {
                self.file(property, Controller::Cpu, name, value);
            }
        }
        match cpu.idle {
            None => {}
            Some(idle @ (0 | 1)) => self.limit("cpu.idle", Limits::new().cpu_idle(idle == 1)),
            Some(idle) => bail!("linux.resources.cpu.idle: {idle} is neither 0 nor 1"),
        }
        let set = |text: &str, property: &str| {
            text.parse::<IdSet>()
                .with_context(|| format!("linux.resources.cpu.{property}"))
        };
        if let Some(cpus) = cpu.cpus.as_deref().filter(|cpus| !cpus.is_empty()) {
            self.limit("cpu.cpus", Limits::new().cpuset_cpus(set(cpus, "cpus")?));
        }
        if let Some(mems) = cpu.mems.as_deref().filter(|mems| !mems.is_empty()) {
            self.limit("cpu.mems", Limits::new().cpuset_mems(set(mems, "mems")?));
        }
        Ok(())
    }

    fn block_io(&mut self, io: &BlockIo) -> Result<()> {
        let weight = |weight: u16, property: &str| match weight {
            10..=1000 => Ok(weight),
            _ => bail!("linux.resources.blockIO.{property}: {weight} is not from 10 to 1000"),
        };
        // Docker writes a weight of 0 where none was asked for.
        if let Some(value) = io.weight.filter(|weight| *weight != 0) {
            let value = Weight::from_blkio(weight(value, "weight")?);
            self.limit("blockIO.weight", Limits::new().io_weight(value));
        }
        if let Some(leaf) = io.leaf_weight.filter(|weight| *weight != 0) {
            let value = weight(leaf, "leafWeight")?.to_string();
            self.file(
                "blockIO.leafWeight",
                Controller::Io,
                "blkio.leaf_weight",
                value,
            );
        }
        for (index, device) in io.weight_device.iter().enumerate() {
            let number = format!("{}:{}", device.major, device.minor);
            let place = format!("weightDevice[{index}]");
            if let Some(value) = device.weight.filter(|weight| *weight != 0) {
                let value = weight(value, &format!("{place}.weight"))?;
                self.push(
                    &format!("blockIO.{place}.weight"),
                    Step::File {
                        controller: Controller::Io,
                        v1: "blkio.bfq.weight_device",
                        v2: Some("io.bfq.weight"),
                        value: format!("{number} {value}"),
                    },
                );
            }
            if let Some(value) = device.leaf_weight.filter(|weight| *weight != 0) {
                let value = weight(value, &format!("{place}.leafWeight"))?;
                self.file(
                    &format!("blockIO.{place}.leafWeight"),
                    Controller::Io,
                    "blkio.leaf_weight_device",
                    format!("{number} {value}"),
                );
            }
        }
        let kinds: [(&str, &[ThrottleDevice], Set); 4] = [
            (
                "throttleReadBpsDevice",
                &io.throttle_read_bps_device,
                |max, rate| max.read_bytes(rate),
            ),
            (
                "throttleWriteBpsDevice",
                &io.throttle_write_bps_device,
                |max, rate| max.written_bytes(rate),
            ),
            (
                "throttleReadIOPSDevice",
                &io.throttle_read_iops_device,
                |max, rate| max.reads(per_second(rate)),
            ),
            (
                "throttleWriteIOPSDevice",
                &io.throttle_write_iops_device,
                |max, rate| max.writes(per_second(rate)),
            ),
        ];
        let mut all = std::collections::BTreeMap::new();
        let mut property = None;
        for (name, devices, set) in kinds {
            for device in devices {
                let max = all
                    .entry(DeviceNumber::new(device.major, device.minor))
                    .or_insert(IoMax::UNLIMITED);
                // No kernel knows a limit of 0; it is how engines write none.
                if device.rate != 0 {
                    *max = set(*max, Bytes::new(device.rate));
                }
                property.get_or_insert(name);
            }
        }
        if let Some(property) = property {
            self.limit(&format!("blockIO.{property}"), Limits::new().io_max(all));
        }
        Ok(())
    }

    fn others(&mut self, resources: &config::Resources) -> Result<()> {
        for (index, huge) in resources.hugepage_limits.iter().enumerate() {
            let size: Bytes = huge
                .page_size
                .parse()
                .with_context(|| format!("linux.resources.hugepageLimits[{index}].pageSize"))?;
            let limit = Bytes::new(huge.limit);
            let property = format!("hugepageLimits[{index}]");
            self.limit(
                &property,
                Limits::new().hugetlb_max([(size, Max::At(limit))]),
            );
            self.push(&property, Step::Reserved { size, limit });
        }
        if let Some(class) = resources.network.class_id.filter(|class| *class != 0) {
            self.limit("network.classID", Limits::new().net_cls_classid(class));
        }
        for (index, priority) in resources.network.priorities.iter().enumerate() {
            let limits = Limits::new().net_prio([(priority.name.clone(), priority.priority)]);
            self.limit(&format!("network.priorities[{index}]"), limits);
        }
        for (device, rdma) in &resources.rdma {
            let number = |number: Option<u32>| number.map_or(Max::Unlimited, Max::At);
            let max = RdmaMax {
                handles: number(rdma.hca_handles),
                objects: number(rdma.hca_objects),
            };
            let limits = Limits::new().rdma_max([(device.clone(), max)]);
            self.limit(&format!("rdma.{device}"), limits);
        }
        Ok(())
    }
}

fn per_second(rate: Bytes) -> Max<u32> {
    u32::try_from(rate.get()).map_or(Max::Unlimited, Max::At)
}

impl Step {
    fn apply(&self, group: &Cgroup) -> Result<()> {
        match self {
            Self::Limits(limits) => group.apply(limits)?,
            Self::Period(period) => {
                // Without a quota a period limits nothing.
                if let Some(Max::At(quota)) = group.limits()?.cpu_max {
                    let quota = CpuQuota::new(quota.quota(), *period)?;
                    group.apply(&Limits::new().cpu_max(quota))?;
                }
            }
            Self::File { .. } | Self::Reserved { .. } | Self::Unified { .. } => {
                if let Some(file) = self.file(group)? {
                    file.write(&file.value)?;
                }
            }
        }
        Ok(())
    }

    /// What is to be written to a file, if that is the step.
    fn file<'a>(&self, group: &'a Cgroup) -> Result<Option<Write<'a>>> {
        let version_of = |controller| group.hierarchy().version_of(controller);
        let directory_of = |controller| match group.directory_of(controller) {
            Some(directory) => Ok(directory),
            None => bail!("the {controller} controller is not available to this group"),
        };
        let (directory, name, value) = match self {
            Self::Limits(_) | Self::Period(_) => return Ok(None),
            Self::File {
                controller,
                v1,
                v2,
                value,
            } => {
                let name = match (version_of(*controller), v2) {
                    (Some(Version::V1), _) => v1,
                    (Some(Version::V2), Some(v2)) => {
                        group.enable(*controller)?;
                        v2
                    }
                    _ => bail!(
                        "{v1} is of cgroup v1's {controller} controller, which this machine does not have; remove it, or write what cgroup v2 has for it in linux.resources.unified"
                    ),
                };
                (
                    directory_of(*controller)?,
                    (*name).to_owned(),
                    value.clone(),
                )
            }
            Self::Reserved { size, limit } => {
                let size = page_size(*size);
                let name = match version_of(Controller::Hugetlb) {
                    Some(Version::V1) => format!("hugetlb.{size}.rsvd.limit_in_bytes"),
                    _ => format!("hugetlb.{size}.rsvd.max"),
                };
                (
                    directory_of(Controller::Hugetlb)?,
                    name,
                    limit.get().to_string(),
                )
            }
            Self::Unified { name, value } => {
                let prefix = name.split('.').next().unwrap_or_default();
                let mut known = Controller::ALL.iter().copied();
                let directory = match known.find(|known| known.name() == prefix) {
                    Some(controller) => {
                        if version_of(controller) != Some(Version::V2) {
                            bail!(
                                "{controller} is not a controller of cgroup v2 on this machine; remove it, or boot with cgroup_no_v1={controller}"
                            );
                        }
                        group.enable(controller)?;
                        directory_of(controller)?
                    }
                    None if prefix == "cgroup" => match group.unified_directory() {
                        Some(directory) => directory,
                        None => bail!("cgroup v2 is not mounted on this machine; remove it"),
                    },
                    None => bail!("{prefix} is no controller; remove it"),
                };
                (directory, name.clone(), value.clone())
            }
        };
        Ok(Some(Write {
            directory,
            name,
            value,
            optional: matches!(self, Self::Reserved { .. }),
        }))
    }
}

impl Write<'_> {
    fn open(&self, access: OFlags) -> io::Result<File> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(self.directory, &self.name, flags, Mode::empty())?;
        Ok(file.into())
    }

    /// What is there now.
    fn read(&self) -> io::Result<String> {
        let mut text = String::new();
        self.open(OFlags::RDONLY)?.read_to_string(&mut text)?;
        Ok(text)
    }

    fn write(&self, value: &str) -> Result<()> {
        let written = self
            .open(OFlags::WRONLY)
            .and_then(|mut file| file.write_all(value.as_bytes()));
        match written {
            Err(error) if self.optional && error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("cannot write `{value}` to {}", self.name)),
        }
    }
}

/// The name of a size of huge pages, as the kernel has it.
pub(crate) fn page_size(size: Bytes) -> String {
    match size.get() {
        large if large >= 1 << 30 => format!("{}GB", large >> 30),
        medium if medium >= 1 << 20 => format!("{}MB", medium >> 20),
        small => format!("{}KB", small >> 10),
    }
}

/// Engines write 0 where nothing was asked for, and -1 for no limit.
fn bytes(value: Option<i64>, property: &str) -> Result<Option<Max<Bytes>>> {
    match value {
        None | Some(0) => Ok(None),
        Some(-1) => Ok(Some(Max::Unlimited)),
        Some(value) => match u64::try_from(value) {
            Ok(bytes) => Ok(Some(Max::At(Bytes::new(bytes)))),
            Err(_) => bail!(
                "linux.resources.memory.{property}: {value} is no amount; -1 is without limit"
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(resources: &str) -> Result<Vec<(String, Step)>> {
        let text = format!(r#"{{"ociVersion": "1.0.2", "linux": {{"resources": {resources}}}}}"#);
        let config = crate::load::parse(&text)?.0;
        Ok(Resources::of(&config.linux.resources)?.steps)
    }

    #[test]
    fn swap_counts_memory() {
        let steps = of(r#"{"memory": {"limit": 100, "swap": 150}}"#).unwrap();
        let limits = Limits::new();
        assert_eq!(
            steps[0].1,
            Step::Limits(Box::new(limits.clone().memory_max(Bytes::new(100))))
        );
        assert_eq!(
            steps[1].1,
            Step::Limits(Box::new(limits.memory_swap_max(Bytes::new(50))))
        );
        for wrong in [
            r#"{"memory": {"limit": 100, "swap": 50}}"#,
            r#"{"memory": {"swap": 50}}"#,
            r#"{"memory": {"limit": -2}}"#,
            r#"{"memory": {"swappiness": 101}}"#,
            r#"{"memory": {"useHierarchy": false}}"#,
        ] {
            let message = of(wrong).unwrap_err().to_string();
            assert!(message.starts_with("linux.resources.memory."), "{message}");
        }
    }

    #[test]
    fn zero_asks_for_nothing() {
        let zeros = r#"{"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": ""}, "blockIO": {"weight": 0}}"#;
        assert_eq!(of(zeros).unwrap(), []);
        let unlimited = of(r#"{"memory": {"limit": -1}, "pids": {"limit": -1}}"#).unwrap();
        assert_eq!(
            unlimited[0].1,
            Step::Limits(Box::new(Limits::new().memory_max(Max::Unlimited)))
        );
        assert_eq!(
            unlimited[1].1,
            Step::Limits(Box::new(Limits::new().pids_max(Max::Unlimited)))
        );
        // Of processes it is a number.
        assert_eq!(
            of(r#"{"pids": {"limit": 0}}"#).unwrap()[0].1,
            Step::Limits(Box::new(Limits::new().pids_max(1)))
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (wrong, place) in [
            (r#"{"blockIO": {"weight": 5}}"#, "blockIO.weight"),
            (
                r#"{"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 5000}]}}"#,
                "blockIO.weightDevice[0].weight",
            ),
            (
                r#"{"hugepageLimits": [{"pageSize": "big", "limit": 1}]}"#,
                "hugepageLimits[0].pageSize",
            ),
            (r#"{"unified": {"../x.y": "1"}}"#, "unified.../x.y"),
            (r#"{"cpu": {"idle": 2}}"#, "cpu.idle"),
        ] {
            let message = format!("{:#}", of(wrong).unwrap_err());
            assert!(
                message.starts_with(&format!("linux.resources.{place}: ")),
                "{message}"
            );
        }
    }

    #[test]
    fn huge_pages_are_counted_in_use_and_reserved() {
        let steps = of(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#).unwrap();
        let (size, limit) = (Bytes::new(2 << 20), Bytes::new(4 << 20));
        let in_use = Limits::new().hugetlb_max([(size, Max::At(limit))]);
        assert_eq!(steps[0].1, Step::Limits(Box::new(in_use)));
        assert_eq!(steps[1].1, Step::Reserved { size, limit });
        for name in ["64KB", "2MB", "512MB", "1GB"] {
            assert_eq!(page_size(name.parse().unwrap()), name);
        }
    }

    #[test]
    fn throttles_of_one_device_are_one_limit() {
        let steps = of(
            r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}],
                            "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 10}]}}"#,
        )
        .unwrap();
        assert_eq!(steps.len(), 1);
        let max = IoMax::UNLIMITED.read_bytes(Bytes::new(1024)).writes(10);
        let Step::Limits(limits) = &steps[0].1 else {
            panic!("{steps:?}")
        };
        assert_eq!(limits.io_max, Some([(DeviceNumber::new(8, 0), max)].into()));
    }
}
