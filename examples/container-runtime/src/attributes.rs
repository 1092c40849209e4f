//! What a process is given beyond users and limits: scheduling, memory, execution domain, labels.

use anyhow::{Context as _, Result, bail};
use cgroups::IdSet;
use namespaces::{Command, IoPriority, MemoryPolicy, Scheduler, SecurityLabel, TimeOffset};

use crate::config::{self, Linux, Process};

/// Adds what `process` asks for, in a new process and in one that enters a container.
pub(crate) fn of_process(command: &mut Command, process: &Process) -> Result<()> {
    if let Some(asked) = &process.scheduler {
        scheduler(command, asked)?;
    }
    if let Some(asked) = &process.io_priority {
        command.io_priority(io_priority(asked)?);
    }
    if let Some(label) = label(process)? {
        command.security_label(label);
    }
    // For processes to come; what is wrong with it is told now.
    if let Some(asked) = &process.exec_cpu_affinity {
        affinity(asked)?;
    }
    Ok(())
}

/// The CPUs of `initial` and `final`, where they are given.
pub(crate) fn affinity(asked: &config::ExecCpuAffinity) -> Result<[Option<IdSet>; 2]> {
    let set = |place: &str, text: &Option<String>| -> Result<Option<IdSet>> {
        let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let place = || format!("process.execCPUAffinity.{place}");
        let set: IdSet = text.parse().with_context(place)?;
        if set.iter().any(|cpu| cpu >= 1024) {
            bail!("{}: a number is above 1023", place());
        }
        Ok(Some(set))
    };
    Ok([set("initial", &asked.initial)?, set("final", &asked.last)?])
}

/// Adds what `linux` asks for.
pub(crate) fn of_container(command: &mut Command, linux: &Linux) -> Result<()> {
    if let Some(persona) = personality_of(linux)? {
        command.personality(persona);
    }
    if let Some(asked) = &linux.memory_policy {
        command.memory_policy(memory_policy(asked)?);
    }
    if !linux.time_offsets.is_empty() {
        let is_new = |one: &config::Namespace| one.kind == "time" && one.path.is_none();
        if !linux.namespaces.iter().any(is_new) {
            bail!(
                "linux.timeOffsets: the clocks are the machine's or another container's; add {{\"type\": \"time\"}} to linux.namespaces"
            );
        }
        let mut offsets = [TimeOffset::default(); 2];
        for (clock, offset) in &linux.time_offsets {
            let place = match clock.as_str() {
                "monotonic" => &mut offsets[0],
                "boottime" => &mut offsets[1],
                other => bail!(
                    "linux.timeOffsets.{other}: has no offset; choose between monotonic and boottime"
                ),
            };
            *place = TimeOffset {
                seconds: offset.secs,
                nanoseconds: offset.nanosecs,
            };
        }
        let [monotonic, boottime] = offsets;
        command.time_offsets(monotonic, boottime);
    }
    Ok(())
}

fn scheduler(command: &mut Command, asked: &config::Scheduler) -> Result<()> {
    let place = "process.scheduler";
    let priority = || {
        u32::try_from(asked.priority)
            .ok()
            .filter(|priority| (1..=99).contains(priority))
            .with_context(|| format!("{place}.priority: {} is not from 1 to 99", asked.priority))
    };
    let scheduler = match asked.policy.as_str() {
        "SCHED_OTHER" => Scheduler::Normal,
        "SCHED_BATCH" => Scheduler::Batch,
        "SCHED_IDLE" => Scheduler::Idle,
        "SCHED_FIFO" => Scheduler::Fifo {
            priority: priority()?,
        },
        "SCHED_RR" => Scheduler::RoundRobin {
            priority: priority()?,
        },
        "SCHED_DEADLINE" => Scheduler::Deadline {
            runtime: asked.runtime,
            deadline: asked.deadline,
            period: asked.period,
        },
        "SCHED_ISO" => bail!("{place}.policy: Linux has no SCHED_ISO; choose SCHED_RR"),
        other => bail!(
            "{place}.policy: `{other}` is none; choose among SCHED_OTHER, SCHED_BATCH, SCHED_IDLE, SCHED_FIFO, SCHED_RR, SCHED_DEADLINE"
        ),
    };
    let shared = matches!(
        scheduler,
        Scheduler::Normal | Scheduler::Batch | Scheduler::Idle
    );
    if asked.nice != 0 {
        let nice = i8::try_from(asked.nice)
            .ok()
            .filter(|nice| (-20..=19).contains(nice));
        let Some(nice) = nice else {
            bail!("{place}.nice: {} is not from -20 to 19", asked.nice);
        };
        if !shared {
            bail!("{place}.nice: means nothing to {}; remove it", asked.policy);
        }
        command.nice(nice);
    }
    if shared && asked.priority != 0 {
        bail!(
            "{place}.priority: means nothing to {}; remove it, or set nice",
            asked.policy
        );
    }
    let mut flags = 0;
    for (index, name) in asked.flags.iter().enumerate() {
        flags |= scheduler_flag(name, &format!("{place}.flags[{index}]"))?;
    }
    command.scheduler(scheduler).scheduler_flags(flags);
    Ok(())
}

/// The `SCHED_FLAG_…` of `linux/sched.h`.
fn scheduler_flag(name: &str, place: &str) -> Result<u64> {
    Ok(match name {
        "SCHED_FLAG_RESET_ON_FORK" => 0x01,
        "SCHED_FLAG_RECLAIM" => 0x02,
        "SCHED_FLAG_DL_OVERRUN" => 0x04,
        "SCHED_FLAG_KEEP_POLICY" => 0x08,
        "SCHED_FLAG_KEEP_PARAMS" => 0x10,
        "SCHED_FLAG_UTIL_CLAMP_MIN" | "SCHED_FLAG_UTIL_CLAMP_MAX" => {
            bail!("{place}: {name}: the specification has no property for the value; remove it")
        }
        other => bail!(
            "{place}: `{other}` is none; choose among SCHED_FLAG_RESET_ON_FORK, SCHED_FLAG_RECLAIM, SCHED_FLAG_DL_OVERRUN, SCHED_FLAG_KEEP_POLICY, SCHED_FLAG_KEEP_PARAMS"
        ),
    })
}

fn io_priority(asked: &config::IoPriority) -> Result<IoPriority> {
    let place = "process.ioPriority";
    let level = u8::try_from(asked.priority)
        .ok()
        .filter(|level| *level <= 7)
        .with_context(|| format!("{place}.priority: {} is not from 0 to 7", asked.priority))?;
    Ok(match asked.class.as_str() {
        "IOPRIO_CLASS_RT" => IoPriority::Realtime(level),
        "IOPRIO_CLASS_BE" => IoPriority::BestEffort(level),
        "IOPRIO_CLASS_IDLE" => IoPriority::Idle,
        other => bail!(
            "{place}.class: `{other}` is none; choose among IOPRIO_CLASS_RT, IOPRIO_CLASS_BE, IOPRIO_CLASS_IDLE"
        ),
    })
}

/// Whether the machine has AppArmor.
pub(crate) fn has_apparmor() -> bool {
    std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|enabled| enabled.starts_with('Y'))
}

/// Whether the machine has SELinux.
fn has_selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

fn label(process: &Process) -> Result<Option<SecurityLabel>> {
    let given = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    match (
        given(&process.apparmor_profile),
        given(&process.selinux_label),
    ) {
        (None, None) => Ok(None),
        (Some(profile), None) => {
            if !has_apparmor() {
                bail!(
                    "process.apparmorProfile: this machine has no AppArmor; remove it, or boot with apparmor=1 security=apparmor"
                );
            }
            Ok(Some(SecurityLabel::Apparmor(profile.into())))
        }
        (None, Some(label)) => {
            if !has_selinux() {
                bail!(
                    "process.selinuxLabel: this machine has no SELinux; remove it, or enable SELinux"
                );
            }
            Ok(Some(SecurityLabel::Selinux(label.into())))
        }
        (Some(_), Some(_)) => bail!(
            "process.selinuxLabel: together with process.apparmorProfile is not supported by this runtime; keep that of the machine's module"
        ),
    }
}

/// The execution domain that the container's processes have.
pub(crate) fn personality_of(linux: &Linux) -> Result<Option<u32>> {
    linux.personality.as_ref().map(personality).transpose()
}

fn personality(asked: &config::Personality) -> Result<u32> {
    if let Some(flag) = asked.flags.first() {
        bail!("linux.personality.flags[0]: {flag}: the specification knows none; remove it");
    }
    Ok(match asked.domain.as_str() {
        "LINUX" => 0,
        "LINUX32" => 8,
        other => bail!("linux.personality.domain: `{other}` is none; choose LINUX or LINUX32"),
    })
}

/// The memory policies, each at the place of its number.
pub(crate) const MEMORY_MODES: [&str; 7] = [
    "MPOL_DEFAULT",
    "MPOL_PREFERRED",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
];

/// Their flags.
pub(crate) const MEMORY_FLAGS: [&str; 3] = [
    "MPOL_F_NUMA_BALANCING",
    "MPOL_F_RELATIVE_NODES",
    "MPOL_F_STATIC_NODES",
];

fn memory_policy(asked: &config::MemoryPolicy) -> Result<MemoryPolicy> {
    let place = "linux.memoryPolicy";
    let Some(mode) = (0..)
        .zip(MEMORY_MODES)
        .find(|(_, name)| *name == asked.mode)
    else {
        bail!(
            "{place}.mode: `{}` is none; choose among {}",
            asked.mode,
            MEMORY_MODES.join(", ")
        );
    };
    let mut flags = 0;
    for (index, flag) in asked.flags.iter().enumerate() {
        flags |= match flag.as_str() {
            "MPOL_F_NUMA_BALANCING" => 1 << 13,
            "MPOL_F_RELATIVE_NODES" => 1 << 14,
            "MPOL_F_STATIC_NODES" => 1 << 15,
            other => bail!(
                "{place}.flags[{index}]: `{other}` is none; choose among {}",
                MEMORY_FLAGS.join(", ")
            ),
        };
    }
    let mut nodes = Vec::new();
    if let Some(text) = asked.nodes.as_deref().filter(|text| !text.is_empty()) {
        let set: IdSet = text.parse().with_context(|| format!("{place}.nodes"))?;
        for node in set.iter() {
            let node = u16::try_from(node).ok().filter(|node| *node < 1024);
            nodes.push(node.with_context(|| format!("{place}.nodes: a number is above 1023"))?);
        }
    }
    Ok(MemoryPolicy {
        mode: mode.0,
        flags,
        nodes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let of = |json: &str| {
            let process: Process = serde_json::from_str(json).unwrap();
            let error = of_process(&mut Command::new("x"), &process).unwrap_err();
            format!("{error:#}")
        };
        for (json, place) in [
            (
                r#"{"scheduler": {"policy": "X"}}"#,
                "process.scheduler.policy",
            ),
            (
                r#"{"scheduler": {"policy": "SCHED_FIFO"}}"#,
                "process.scheduler.priority",
            ),
            (
                r#"{"scheduler": {"policy": "SCHED_OTHER", "nice": 20}}"#,
                "process.scheduler.nice",
            ),
            (
                r#"{"scheduler": {"policy": "SCHED_OTHER", "priority": 3}}"#,
                "process.scheduler.priority",
            ),
            (
                r#"{"scheduler": {"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_RESET_ON_FORK", "X"]}}"#,
                "process.scheduler.flags[1]",
            ),
            (
                r#"{"ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 8}}"#,
                "process.ioPriority.priority",
            ),
            (
                r#"{"ioPriority": {"class": "X", "priority": 1}}"#,
                "process.ioPriority.class",
            ),
            (
                r#"{"execCPUAffinity": {"initial": "0", "final": "0-x"}}"#,
                "process.execCPUAffinity.final",
            ),
            (
                r#"{"execCPUAffinity": {"initial": "1024"}}"#,
                "process.execCPUAffinity.initial",
            ),
            (
                r#"{"apparmorProfile": "a", "selinuxLabel": "b"}"#,
                "process.selinuxLabel",
            ),
        ] {
            let message = of(json);
            assert!(message.starts_with(&format!("{place}: ")), "{message}");
        }
        let of = |json: &str| {
            let linux: Linux = serde_json::from_str(json).unwrap();
            of_container(&mut Command::new("x"), &linux)
                .unwrap_err()
                .to_string()
        };
        for (json, place) in [
            (
                r#"{"personality": {"domain": "BSD"}}"#,
                "linux.personality.domain",
            ),
            (
                r#"{"memoryPolicy": {"mode": "X"}}"#,
                "linux.memoryPolicy.mode",
            ),
            (
                r#"{"memoryPolicy": {"mode": "MPOL_BIND", "nodes": "5000"}}"#,
                "linux.memoryPolicy.nodes",
            ),
            (
                r#"{"namespaces": [{"type": "time"}], "timeOffsets": {"realtime": {"secs": 1}}}"#,
                "linux.timeOffsets.realtime",
            ),
            (
                r#"{"namespaces": [{"type": "time", "path": "/x"}], "timeOffsets": {"monotonic": {"secs": 1}}}"#,
                "linux.timeOffsets",
            ),
        ] {
            let message = of(json);
            assert!(message.starts_with(&format!("{place}: ")), "{message}");
        }
    }
}
