//! `events`: what a container uses, in the form that runc prints.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cgroups::{Cgroup, Max};
use serde_json::{Map, Value, json};

use crate::cli::Events;
use crate::group;
use crate::list::print;
use crate::resources::page_size;
use crate::state::Status;
use crate::store::Store;

/// How often it is seen whether the container still runs.
const LOOK: Duration = Duration::from_millis(100);

/// Prints what a container uses, once or every few seconds.
pub(crate) fn events(store: &Store, options: &Events) -> Result<()> {
    let entry = store.open(&options.id)?;
    let state = entry.state()?;
    if state.status(&entry)? == Status::Stopped {
        bail!("container not running: {}", options.id.as_str());
    }
    let process = state.running_process()?;
    let group = group::open(&state.cgroup)?;
    let id = options.id.as_str();
    if options.stats {
        return tell("stats", id, Some(stats(&group)?));
    }
    let interval = Duration::from_secs_f64(options.interval);
    let killed = |group: &Cgroup| -> Result<u64> {
        let stats = group.memory_stats()?;
        Ok(stats.and_then(|stats| stats.events.oom_kill).unwrap_or(0))
    };
    let mut last = killed(&group)?;
    let mut next = Instant::now();
    while !process.wait_timeout(LOOK.min(interval))? {
        let now = killed(&group).unwrap_or(last);
        if now > last {
            tell("oom", id, None)?;
            last = now;
        }
        if Instant::now() >= next {
            match stats(&group) {
                Ok(stats) => tell("stats", id, Some(stats))?,
                // It is being removed.
                Err(_) if process.has_ended()? => break,
                Err(error) => return Err(error),
            }
            next = Instant::now() + interval;
        }
    }
    // The last of it: what ended the container may have been this.
    sleep(Duration::from_millis(1));
    if killed(&group).is_ok_and(|now| now > last) {
        tell("oom", id, None)?;
    }
    Ok(())
}

fn tell(kind: &str, id: &str, data: Option<Value>) -> Result<()> {
    let mut event = json!({"type": kind, "id": id});
    if let (Some(data), Some(event)) = (data, event.as_object_mut()) {
        event.insert("data".to_owned(), data);
    }
    print(&serde_json::to_string(&event).context("cannot write the event as JSON")?)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn limit(limit: Option<Max<cgroups::Bytes>>) -> u64 {
    match limit {
        Some(Max::At(limit)) => limit.get(),
        // As runc has it.
        _ => u64::MAX,
    }
}

fn stats(group: &Cgroup) -> Result<Value> {
    let limits = group.limits()?;
    let mut data = Map::new();
    if let Some(cpu) = group.cpu_stats()? {
        data.insert(
            "cpu".to_owned(),
            json!({
                "usage": {
                    "total": nanoseconds(cpu.usage),
                    "kernel": nanoseconds(cpu.system.unwrap_or_default()),
                    "user": nanoseconds(cpu.user.unwrap_or_default()),
                },
                "throttling": {
                    "periods": cpu.periods.unwrap_or(0),
                    "throttledPeriods": cpu.throttled_periods.unwrap_or(0),
                    "throttledTime": nanoseconds(cpu.throttled.unwrap_or_default()),
                },
            }),
        );
    }
    if let Some(memory) = group.memory_stats()? {
        let mut raw = Map::new();
        if let Some(counters) = group.memory_counters()? {
            raw.extend(
                counters
                    .iter()
                    .map(|(key, value)| (key.to_owned(), json!(value))),
            );
        }
        let swap = memory.swap_current.map_or(0, cgroups::Bytes::get);
        data.insert(
            "memory".to_owned(),
            json!({
                "cache": raw.get("cache").or(raw.get("file")).cloned().unwrap_or(json!(0)),
                "usage": {
                    "limit": limit(limits.memory_max),
                    "usage": memory.current.get(),
                    "max": memory.peak.map_or(0, cgroups::Bytes::get),
                    "failcnt": memory.events.max.unwrap_or(0),
                },
                "swap": {
                    "limit": limit(limits.memory_swap_max),
                    "usage": swap,
                    "failcnt": 0,
                },
                "kernel": {"failcnt": 0},
                "kernelTCP": {"failcnt": 0},
                "raw": raw,
            }),
        );
    }
    if let Some(pids) = group.pids_stats()? {
        let limit = match limits.pids_max {
            Some(Max::At(limit)) => limit,
            _ => 0,
        };
        data.insert(
            "pids".to_owned(),
            json!({"current": pids.current, "limit": limit}),
        );
    }
    if let Some(io) = group.io_stats()? {
        let mut bytes = Vec::new();
        let mut operations = Vec::new();
        for (device, stats) in &io.devices {
            let entry = |op: &str, value: u64| json!({"major": device.major, "minor": device.minor, "op": op, "value": value});
            bytes.push(entry("Read", stats.read_bytes.get()));
            bytes.push(entry("Write", stats.written_bytes.get()));
            operations.push(entry("Read", stats.reads));
            operations.push(entry("Write", stats.writes));
        }
        data.insert(
            "blkio".to_owned(),
            json!({"ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations}),
        );
    }
    if let Some(sizes) = group.hugetlb_stats()? {
        let sizes: Map<String, Value> = sizes
            .iter()
            .map(|(size, stats)| {
                (
                    page_size(*size),
                    json!({"usage": stats.current.get(), "failcnt": stats.max_events.unwrap_or(0)}),
                )
            })
            .collect();
        data.insert("hugetlb".to_owned(), Value::Object(sizes));
    }
    data.insert("intel_rdt".to_owned(), json!({}));
    data.insert("network_interfaces".to_owned(), Value::Null);
    Ok(Value::Object(data))
}
