//! The container's control group: its limits, and what it used.

use anyhow::{Context as _, Result};
use cgroups::{Bytes, Cgroup, CpuQuota, Error, Guard, Hierarchy, Knob, Limits, Max};

use crate::cli::Run;
use crate::privilege::Privilege;
use crate::report::{LimitNotSet, Usage};

/// The control group of one container, if one could be made. Removed when dropped.
pub(crate) struct Group {
    guard: Option<Guard>,
    not_set: Vec<LimitNotSet>,
}

impl Group {
    /// Makes the group of container `id` with the limits that `run` asks for.
    ///
    /// A limit that cannot be set is an error, unless `run` allows to go on without.
    pub(crate) fn create(id: &str, run: &Run, privilege: Privilege) -> Result<Self> {
        let wanted = wanted(run)?;
        match parent(privilege).and_then(|parent| parent.create_where_permitted(name(id))) {
            Ok(group) => {
                let guard = group.guard();
                let not_set = set(&guard, wanted, run.best_effort_limits)?;
                Ok(Self {
                    guard: Some(guard),
                    not_set,
                })
            }
            // Without limits a group only counts, and the container can do without.
            Err(error) if wanted.is_empty() || run.best_effort_limits => {
                let reason = error.to_string();
                let not_set = wanted.into_iter().map(|(option, _)| LimitNotSet {
                    option,
                    reason: reason.clone(),
                });
                Ok(Self {
                    guard: None,
                    not_set: not_set.collect(),
                })
            }
            Err(error) => Err(error).context(advice("cannot limit the container")),
        }
    }

    /// The limits that could not be set.
    pub(crate) fn not_set(&self) -> &[LimitNotSet] {
        &self.not_set
    }

    /// The group itself.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.guard.as_deref()
    }

    /// What was used, as far as the group counts it.
    pub(crate) fn usage(&self) -> Result<Usage> {
        let Some(group) = self.cgroup() else {
            return Ok(Usage::default());
        };
        let memory = group.memory_stats()?;
        let pids = group.pids_stats()?;
        let cpu = group.cpu_stats()?;
        Ok(Usage {
            memory_peak_bytes: memory
                .as_ref()
                .and_then(|memory| memory.peak)
                .map(Bytes::get),
            oom_kills: memory.and_then(|memory| memory.events.oom_kill),
            pids_refused: pids.and_then(|pids| pids.max_events),
            cpu: cpu.map(|cpu| cpu.usage),
        })
    }

    /// Removes the group.
    pub(crate) fn remove(self) -> Result<()> {
        match self.guard {
            Some(guard) => guard
                .close()
                .context("cannot remove the container's control group"),
            None => Ok(()),
        }
    }
}

/// Clears away the group that a killed engine left behind.
pub(crate) fn reclaim(id: &str, privilege: Privilege) -> Result<()> {
    let Ok(parent) = parent(privilege) else {
        return Ok(());
    };
    match parent.open(name(id)) {
        Ok(group) => group.kill().and_then(|()| group.remove()).with_context(|| {
            format!("cannot clear away the control group of the killed container {id}")
        }),
        Err(Error::NotFound { .. }) => Ok(()),
        Err(error) => Err(error).context("cannot look for control groups of killed containers"),
    }
}

fn name(id: &str) -> String {
    format!("cofferdam-{id}")
}

/// Root's containers stand at the top of the tree, as those of other engines do; an ordinary user
/// may have been given the part of the tree that this process is in.
fn parent(privilege: Privilege) -> cgroups::Result<Cgroup> {
    let hierarchy = Hierarchy::detect()?;
    match privilege {
        Privilege::Root => hierarchy.root(),
        Privilege::User => hierarchy.own(),
    }
}

/// The limits by the option that asks for them.
fn wanted(run: &Run) -> Result<Vec<(&'static str, Limits)>> {
    let mut wanted = Vec::new();
    if let Some(size) = run.memory {
        wanted.push(("--memory", Limits::new().memory_max(Bytes::new(size.bytes))));
    }
    if let Some(pids) = run.pids {
        wanted.push(("--pids", Limits::new().pids_max(Max::At(pids))));
    }
    if let Some(cpus) = run.cpus {
        wanted.push(("--cpus", Limits::new().cpu_max(CpuQuota::cpus(cpus.0)?)));
    }
    Ok(wanted)
}

fn set(
    group: &Cgroup,
    wanted: Vec<(&'static str, Limits)>,
    best_effort: bool,
) -> Result<Vec<LimitNotSet>> {
    let mut not_set = Vec::new();
    for (option, limits) in wanted {
        match apply(group, &limits) {
            Ok(()) => {}
            Err(error) if best_effort => not_set.push(LimitNotSet {
                option,
                reason: error.to_string(),
            }),
            Err(error) => return Err(error).context(advice(&format!("cannot set {option}"))),
        }
    }
    Ok(not_set)
}

/// Memory gets as much swap again, as under Docker; where swap is not accounted for, it is not
/// limited.
fn apply(group: &Cgroup, limits: &Limits) -> cgroups::Result<()> {
    let Some(memory) = limits.memory_max else {
        return group.apply(limits);
    };
    match group.apply(&limits.clone().memory_swap_max(memory)) {
        Err(Error::Unsupported {
            knob: Knob::MemorySwapMax,
            ..
        }) => group.apply(limits),
        applied => applied,
    }
}

fn advice(what: &str) -> String {
    format!("{what} (--best-effort-limits goes on without)")
}
