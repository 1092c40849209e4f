//! `linux.cgroupsPath` and `linux.resources`: the container's control group.

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cgroups::{Bytes, Cgroup, CpuQuota, Error, Guard, Hierarchy, IdSet, Limits, Max, Weight};

use crate::config::{Config, Cpu, Memory};
use crate::devices;
use crate::id::ContainerId;
use crate::warn;

/// The control group of the container. Whatever still runs in it is killed when it is dropped, and
/// the group removed.
pub(crate) struct Group(Option<Guard>);

/// A control group to be made.
#[derive(Debug)]
pub(crate) struct Plan {
    path: PathBuf,
    /// The limits by the property that asks for them, in the order of setting.
    limits: Vec<(&'static str, Limits)>,
    devices: devices::Rules,
}

impl Plan {
    /// The control group that the configuration asks for.
    pub(crate) fn of(config: &Config, id: &ContainerId) -> Result<Self> {
        let path = match &config.linux.cgroups_path {
            Some(path) if !path.as_os_str().is_empty() => path.as_path(),
            _ => Path::new(id.as_str()),
        };
        // A relative path is one from where the runtime decides: the top of the hierarchy, as an
        // absolute one, because a group with processes, as this one's own, cannot have limited
        // groups below it on v2.
        let path = path.strip_prefix("/").unwrap_or(path);
        check(path)?;
        Ok(Self {
            path: path.to_owned(),
            limits: limits(config)?,
            devices: devices::Rules::of(config)?,
        })
    }

    /// Makes the group with its limits.
    pub(crate) fn create(&self) -> Result<Group> {
        let group = new_group(&self.path).context("linux.cgroupsPath")?;
        let group = Group(Some(group.guard()));
        for (property, limits) in &self.limits {
            group
                .cgroup()?
                .apply(limits)
                .with_context(|| format!("linux.resources.{property}"))?;
        }
        self.devices.apply(group.cgroup()?)?;
        Ok(group)
    }
}

impl Group {
    /// The group itself.
    pub(crate) fn cgroup(&self) -> Result<&Cgroup> {
        self.0.as_deref().context("the control group is gone")
    }

    /// Kills what is left in the group, and removes it.
    pub(crate) fn remove(mut self) -> Result<()> {
        if let Some(guard) = self.0.take() {
            guard
                .kill()
                .and_then(|()| guard.close())
                .context("cannot remove the container's control group")?;
        }
        Ok(())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(guard) = &self.0
            && let Err(error) = guard.kill()
        {
            warn(&format!(
                "cannot clear the container's control group: {error}"
            ));
        }
    }
}

fn check(path: &Path) -> Result<()> {
    if path.to_string_lossy().contains(':') {
        bail!(
            "linux.cgroupsPath: {} is in systemd's form; not supported yet by this runtime, give a path",
            path.display()
        );
    }
    if path.as_os_str().is_empty()
        || !path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
    {
        bail!("linux.cgroupsPath: must name a group below the top, without `..`");
    }
    Ok(())
}

fn new_group(path: &Path) -> cgroups::Result<Cgroup> {
    let root = Hierarchy::detect()?.root()?;
    match root.create_where_permitted(path) {
        // Left by a runtime that was killed: its container died with it. A group with processes is
        // not removed, and the answer stays.
        Err(error @ Error::AlreadyExists { .. }) => {
            if root.open(path)?.remove_if_unused()? {
                root.create_where_permitted(path)
            } else {
                Err(error)
            }
        }
        made => made,
    }
}

/// The limits by the property that asks for them, in the order of setting.
fn limits(config: &Config) -> Result<Vec<(&'static str, Limits)>> {
    let resources = &config.linux.resources;
    let mut limits = Vec::new();
    memory(&resources.memory, &mut limits)?;
    cpu(&resources.cpu, &mut limits)?;
    if let Some(limit) = resources.pids.limit {
        let limit = match u64::try_from(limit) {
            Ok(limit) if limit > 0 => Max::At(limit),
            _ => Max::Unlimited,
        };
        limits.push(("pids.limit", Limits::new().pids_max(limit)));
    }
    Ok(limits)
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

fn memory(memory: &Memory, limits: &mut Vec<(&'static str, Limits)>) -> Result<()> {
    let limit = bytes(memory.limit, "limit")?;
    if let Some(limit) = limit {
        limits.push(("memory.limit", Limits::new().memory_max(limit)));
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
        limits.push(("memory.swap", Limits::new().memory_swap_max(swap)));
    }
    if let Some(reservation) = bytes(memory.reservation, "reservation")? {
        limits.push(("memory.reservation", Limits::new().memory_low(reservation)));
    }
    Ok(())
}

fn cpu(cpu: &Cpu, limits: &mut Vec<(&'static str, Limits)>) -> Result<()> {
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        limits.push((
            "cpu.shares",
            Limits::new().cpu_weight(Weight::from_shares(shares)),
        ));
    }
    let period = cpu.period.filter(|period| *period != 0).unwrap_or(100_000);
    match cpu.quota {
        // A period limits nothing by itself.
        None | Some(0) => {}
        Some(-1) => limits.push(("cpu.quota", Limits::new().cpu_max(Max::Unlimited))),
        Some(quota) => {
            let quota = u64::try_from(quota).ok().context(
                "linux.resources.cpu.quota: must be microseconds in a period; -1 is without limit",
            )?;
            let quota = CpuQuota::new(Duration::from_micros(quota), Duration::from_micros(period))
                .context("linux.resources.cpu.quota")?;
            limits.push(("cpu.quota", Limits::new().cpu_max(quota)));
        }
    }
    if let Some(burst) = cpu.burst.filter(|burst| *burst != 0) {
        limits.push(("cpu.burst", Limits::new().cpu_max_burst(burst)));
    }
    match cpu.idle {
        None => {}
        Some(idle @ (0 | 1)) => limits.push(("cpu.idle", Limits::new().cpu_idle(idle == 1))),
        Some(idle) => bail!("linux.resources.cpu.idle: {idle} is neither 0 nor 1"),
    }
    let set = |text: &str, property: &str| {
        text.parse::<IdSet>()
            .with_context(|| format!("linux.resources.cpu.{property}"))
    };
    if let Some(cpus) = cpu.cpus.as_deref().filter(|cpus| !cpus.is_empty()) {
        limits.push(("cpu.cpus", Limits::new().cpuset_cpus(set(cpus, "cpus")?)));
    }
    if let Some(mems) = cpu.mems.as_deref().filter(|mems| !mems.is_empty()) {
        limits.push(("cpu.mems", Limits::new().cpuset_mems(set(mems, "mems")?)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(resources: &str) -> Result<Vec<(&'static str, Limits)>> {
        let text = format!(r#"{{"ociVersion": "1.0.2", "linux": {{"resources": {resources}}}}}"#);
        limits(&crate::load::parse(&text)?.0)
    }

    #[test]
    fn swap_counts_memory() {
        let limits = of(r#"{"memory": {"limit": 100, "swap": 150}}"#).unwrap();
        assert_eq!(limits[0].1.memory_max, Some(Max::At(Bytes::new(100))));
        assert_eq!(limits[1].1.memory_swap_max, Some(Max::At(Bytes::new(50))));
        for wrong in [
            r#"{"memory": {"limit": 100, "swap": 50}}"#,
            r#"{"memory": {"swap": 50}}"#,
            r#"{"memory": {"limit": -2}}"#,
        ] {
            let message = of(wrong).unwrap_err().to_string();
            assert!(message.starts_with("linux.resources.memory."), "{message}");
        }
    }

    #[test]
    fn zero_asks_for_nothing() {
        let zeros = r#"{"memory": {"limit": 0, "swap": 0}, "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": ""}}"#;
        assert_eq!(of(zeros).unwrap(), []);
        let unlimited = of(r#"{"memory": {"limit": -1}, "pids": {"limit": 0}}"#).unwrap();
        assert_eq!(unlimited[0].1.memory_max, Some(Max::Unlimited));
        assert_eq!(unlimited[1].1.pids_max, Some(Max::Unlimited));
    }

    #[test]
    fn paths_lead_below_the_top() {
        for good in ["a", "a/b", "kubepods/x.y"] {
            assert!(check(Path::new(good)).is_ok(), "{good}");
        }
        for bad in ["", "..", "a/../..", "system.slice:docker:1"] {
            assert!(check(Path::new(bad)).is_err(), "{bad}");
        }
    }
}
