//! `update`: changing the limits of a container.

use std::fs;
use std::io::Read as _;

use anyhow::{Context as _, Result, bail};
use cgroups::{Bytes, Max};

use crate::cli::Update;
use crate::config;
use crate::group;
use crate::load;
use crate::resources::Resources;
use crate::state::{State, Status};
use crate::store::Store;

/// Changes the limits of a container, all or none.
pub(crate) fn update(store: &Store, options: &Update) -> Result<()> {
    let mut asked = asked(options)?;
    let locked = store.open(&options.id)?.lock()?;
    let state = locked.state()?;
    if state.status(&locked)? == Status::Stopped {
        bail!("container not running: {}", options.id.as_str());
    }
    let schemata: Vec<String> = [&options.l3_cache_schema, &options.mem_bw_schema]
        .into_iter()
        .flatten()
        .cloned()
        .collect();
    if schemata.is_empty() {
        return limit(&mut asked, &state);
    }
    let Some(resctrl) = &state.resctrl else {
        bail!("the container has no group of resctrl; ask for one with linux.intelRdt");
    };
    let before = resctrl.change(&schemata)?;
    limit(&mut asked, &state).inspect_err(|_| drop(resctrl.change(&before)))
}

/// Changes the limits of its control group.
fn limit(asked: &mut config::Resources, state: &State) -> Result<()> {
    let swap = asked.memory.swap.is_some_and(|swap| swap > 0);
    if swap && asked.memory.limit.is_none_or(|limit| limit == 0) {
        // The kernel counts swap by itself, for which the limit that is there is to be known.
        let limits = group::open(&state.cgroup)?.limits()?;
        let limit = limits.memory_max.and_then(Max::limit);
        asked.memory.limit = limit.and_then(|limit| i64::try_from(limit.get()).ok());
    }
    let resources = Resources::of(asked)?;
    if resources.is_empty() {
        return Ok(());
    }
    let group = group::open(&state.cgroup)?;
    if asked.memory.check_before_update == Some(true)
        && let Some(limit) = asked
            .memory
            .limit
            .and_then(|limit| u64::try_from(limit).ok())
        && let Some(stats) = group.memory_stats()?
        && stats.current > Bytes::new(limit)
    {
        bail!(
            "linux.resources.memory.limit: {limit} is less than the {} in use; checkBeforeUpdate forbids it",
            stats.current.get()
        );
    }
    resources.change(&group)?;
    // What the kernel has taken systemd takes, too.
    match &state.cgroup.scope {
        Some(scope) => scope.limit(&resources),
        None => Ok(()),
    }
}

fn asked(options: &Update) -> Result<config::Resources> {
    if let Some(file) = &options.resources {
        let mut text = String::new();
        if file.as_os_str() == "-" {
            std::io::stdin()
                .take(1 << 20)
                .read_to_string(&mut text)
                .context("--resources: cannot read the standard input")?;
        } else {
            text = fs::read_to_string(file)
                .with_context(|| format!("--resources: cannot read {}", file.display()))?;
        }
        return load::resources(&text).context("--resources");
    }
    let mut asked = config::Resources::default();
    asked.block_io.weight = options.blkio_weight;
    asked.pids.limit = options.pids_limit;
    let cpu = &mut asked.cpu;
    cpu.period = options.cpu_period;
    cpu.quota = options.cpu_quota;
    cpu.burst = options.cpu_burst;
    cpu.shares = options.cpu_shares;
    cpu.realtime_period = options.cpu_rt_period;
    cpu.realtime_runtime = options.cpu_rt_runtime;
    cpu.cpus.clone_from(&options.cpuset_cpus);
    cpu.mems.clone_from(&options.cpuset_mems);
    cpu.idle = options.cpu_idle;
    let memory = &mut asked.memory;
    memory.limit = amount("--memory", options.memory.as_deref())?;
    memory.reservation = amount(
        "--memory-reservation",
        options.memory_reservation.as_deref(),
    )?;
    memory.swap = amount("--memory-swap", options.memory_swap.as_deref())?;
    memory.kernel = amount("--kernel-memory", options.kernel_memory.as_deref())?;
    memory.kernel_tcp = amount("--kernel-memory-tcp", options.kernel_memory_tcp.as_deref())?;
    Ok(asked)
}

/// Bytes, with a unit if there is one; -1 is without limit.
fn amount(option: &str, text: Option<&str>) -> Result<Option<i64>> {
    let Some(text) = text else { return Ok(None) };
    if text == "-1" {
        return Ok(Some(-1));
    }
    let bytes: Bytes = text.parse().context(option.to_owned())?;
    let bytes = i64::try_from(bytes.get()).with_context(|| format!("{option}: too large"))?;
    Ok(Some(bytes))
}
