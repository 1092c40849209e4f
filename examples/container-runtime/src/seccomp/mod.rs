//! `linux.seccomp`: which system calls the container may make.
//!
//! From the profile a classic BPF program is made, without libseccomp: that would have to be there
//! to build and to run, cannot be had as a static library everywhere, and takes longer for Docker's
//! profile than the rest of a container's start. [`arch`] knows the numbers of the system calls,
//! [`bpf`] makes the program, and the meaning of a profile is runc's:
//!
//! - the machine's own architecture is always among those of the profile; a call by one that is not
//!   kills the thread;
//! - of the rules for a system call the first whose conditions hold decides; a rule with two
//!   conditions on one argument is two rules;
//! - a system call newer than every one that the profile knows gets `ENOSYS`, so that programs fall
//!   back to an older one, unless the profile allows what it does not name.

mod arch;
mod bpf;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail};

use crate::config::{Config, Seccomp, SeccompArg, SeccompRule};
use crate::spec::OCI_VERSION;
use crate::state::{State, Status};
use crate::{terminal, warn};
use arch::Arch;
use bpf::{Action, Compare, Condition, Rule};

/// A filter that is ready to be installed.
#[derive(Debug)]
pub(crate) struct Filter {
    pub(crate) program: Vec<u8>,
    pub(crate) flags: u32,
    /// Somebody is to be told of some calls, and to decide.
    pub(crate) notifies: bool,
}

const ENOSYS: u32 = 38;
const EPERM: u32 = 1;

/// The filter that the configuration asks for; none when it would allow everything.
pub(crate) fn filter(seccomp: &Seccomp) -> Result<Option<Filter>> {
    let place = "linux.seccomp";
    let default = action(
        &seccomp.default_action,
        seccomp.default_errno_ret,
        &format!("{place}.defaultAction"),
    )?;
    let flags = flags(&seccomp.flags)?;
    let architectures = architectures(&seccomp.architectures)?;
    let mut notifies = false;
    let mut rules = Vec::new();
    for (index, rule) in seccomp.syscalls.iter().enumerate() {
        let place = format!("{place}.syscalls[{index}]");
        let made = rules_of(rule, &place)?;
        notifies |= made.iter().any(|(_, rule)| rule.action == Action::NOTIFY);
        if rule.names.is_empty() {
            bail!("{place}.names: empty; write the names of system calls");
        }
        let restricts = made.iter().any(|(_, rule)| rule.action != Action::ALLOW);
        for name in &rule.names {
            if restricts
                && default == Action::ALLOW
                && architectures.iter().all(|arch| arch.number(name).is_none())
            {
                warn(&format!(
                    "{place}.names: {name} is no system call that this runtime knows, and is not restricted"
                ));
            }
        }
        rules.extend(made);
    }
    if default == Action::NOTIFY {
        bail!(
            "{place}.defaultAction: SCMP_ACT_NOTIFY would wait for an answer before the container runs; name system calls instead"
        );
    }
    if notifies {
        // The very calls by which the listener gets to whoever answers, and the program runs.
        for (name, rule) in &rules {
            if rule.action == Action::NOTIFY && ["write", "sendmsg"].contains(&name.as_str()) {
                bail!(
                    "{place}.syscalls: {name} cannot be SCMP_ACT_NOTIFY: nobody could be told of it"
                );
            }
        }
        if seccomp.listener_path.is_none() {
            bail!("{place}.listenerPath: missing; SCMP_ACT_NOTIFY needs a socket to tell");
        }
    } else if seccomp.listener_path.is_some() {
        // The specification wants it ignored.
        warn(&format!(
            "{place}.listenerPath: no rule is SCMP_ACT_NOTIFY, nobody is told"
        ));
    } else if seccomp.listener_metadata.is_some() {
        bail!("{place}.listenerMetadata: means nothing without listenerPath; remove it");
    }
    if rules.is_empty() && default == Action::ALLOW {
        return Ok(None);
    }
    let blocks: Vec<bpf::Block> = architectures
        .iter()
        .map(|arch| block(arch, default, &rules))
        .collect();
    let program = bpf::program(&blocks);
    if program.len() > 4096 * 8 {
        bail!(
            "{place}: makes a filter of {} instructions, the kernel takes 4096; shorten it",
            program.len() / 8
        );
    }
    Ok(Some(Filter {
        program,
        flags,
        notifies,
    }))
}

/// Passes the listener on to whoever answers, with what the runtime-spec has them told.
pub(crate) fn pass_listener(config: &Config, state: &State, listener: &OwnedFd) -> Result<()> {
    let Some(seccomp) = &config.linux.seccomp else {
        return Ok(());
    };
    let Some(socket) = &seccomp.listener_path else {
        return Ok(());
    };
    let told = serde_json::json!({
        "ociVersion": OCI_VERSION,
        "fds": ["seccompFd"],
        "pid": state.init.map(|init| init.pid),
        "metadata": seccomp.listener_metadata.as_deref().unwrap_or_default(),
        "state": state.told(Status::Creating),
    });
    let text = serde_json::to_vec(&told).context("cannot write the state as JSON")?;
    terminal::pass(socket, &[listener.as_fd()], &text).context("linux.seccomp.listenerPath")
}

/// The rules of one architecture by the numbers of system calls.
fn block(arch: &Arch, default: Action, rules: &[(String, Rule)]) -> bpf::Block {
    let mut by_number = std::collections::BTreeMap::<u32, Vec<Rule>>::new();
    let mut largest = None;
    for (name, rule) in rules {
        let Some(number) = arch.number(name) else {
            continue;
        };
        largest = largest.max(Some(number));
        if rule.action != default {
            by_number.entry(number).or_default().push(rule.clone());
        }
    }
    // The default must be a refusal of one kind: an engine that says ENOSYS or kills means it.
    let newer = match largest {
        Some(largest) if default.is_refusal() && default != Action::errno(ENOSYS) => {
            Some((largest + 1, Action::errno(ENOSYS)))
        }
        _ => None,
    };
    bpf::Block {
        arch: *arch,
        default,
        newer,
        rules: by_number,
    }
}

fn action(name: &str, errno: Option<u32>, place: &str) -> Result<Action> {
    let value = |default: u32| match errno {
        None => Ok(default),
        Some(errno) if errno <= 4095 => Ok(errno),
        Some(errno) => bail!("{place}: errnoRet {errno} is no error number; it is at most 4095"),
    };
    let action = match name {
        "SCMP_ACT_ERRNO" => return Ok(Action::errno(value(EPERM)?)),
        "SCMP_ACT_TRACE" => return Ok(Action::trace(value(EPERM)?)),
        "SCMP_ACT_ALLOW" => Action::ALLOW,
        "SCMP_ACT_LOG" => Action::LOG,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => Action::KILL_PROCESS,
        "SCMP_ACT_TRAP" => Action::TRAP,
        "SCMP_ACT_NOTIFY" => Action::NOTIFY,
        "" => bail!("{place}: missing; write one such as SCMP_ACT_ERRNO"),
        other => bail!(
            "{place}: `{other}` is none; see {}",
            KNOWN_ACTIONS.join(", ")
        ),
    };
    if errno.is_some() {
        bail!(
            "{place}: {name} has no error number, only SCMP_ACT_ERRNO and SCMP_ACT_TRACE do; remove errnoRet"
        );
    }
    Ok(action)
}

/// The actions, for `features`.
pub(crate) const KNOWN_ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// The comparisons, for `features`.
pub(crate) const KNOWN_OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// The flags, for `features`.
pub(crate) const KNOWN_FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// The architectures, for `features`.
pub(crate) fn known_architectures() -> Vec<&'static str> {
    arch::ALL.iter().map(|arch| arch.name).collect()
}

fn flags(names: &[String]) -> Result<u32> {
    let mut flags = 0;
    for (index, name) in names.iter().enumerate() {
        flags |= match name.as_str() {
            // The process has one thread when it installs the filter.
            "SECCOMP_FILTER_FLAG_TSYNC" => 0,
            "SECCOMP_FILTER_FLAG_LOG" => 1 << 1,
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => 1 << 2,
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 1 << 5,
            other => bail!(
                "linux.seccomp.flags[{index}]: `{other}` is none; see {}",
                KNOWN_FLAGS.join(", ")
            ),
        };
    }
    Ok(flags)
}

fn architectures(names: &[String]) -> Result<Vec<Arch>> {
    let mut all = vec![arch::native()];
    for (index, name) in names.iter().enumerate() {
        let Some(arch) = arch::ALL.iter().find(|arch| arch.name == name) else {
            bail!(
                "linux.seccomp.architectures[{index}]: `{name}` is none; see {}",
                known_architectures().join(", ")
            );
        };
        if !all.contains(arch) {
            all.push(*arch);
        }
    }
    Ok(all)
}

/// What a rule says, for each name: more than one rule where it has two conditions on one argument.
fn rules_of(rule: &SeccompRule, place: &str) -> Result<Vec<(String, Rule)>> {
    let action = action(&rule.action, rule.errno_ret, &format!("{place}.action"))?;
    let mut conditions = Vec::new();
    for (index, arg) in rule.args.iter().enumerate() {
        conditions.push(condition(arg, &format!("{place}.args[{index}]"))?);
    }
    let twice = conditions.iter().enumerate().any(|(index, one)| {
        conditions
            .iter()
            .take(index)
            .any(|other| other.argument == one.argument)
    });
    let alternatives: Vec<Vec<Condition>> = if twice {
        conditions.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![conditions]
    };
    Ok(rule
        .names
        .iter()
        .flat_map(|name| {
            alternatives.iter().map(|conditions| {
                let rule = Rule {
                    conditions: conditions.clone(),
                    action,
                };
                (name.clone(), rule)
            })
        })
        .collect())
}

fn condition(arg: &SeccompArg, place: &str) -> Result<Condition> {
    if arg.index > 5 {
        bail!("{place}.index: {} is not from 0 to 5", arg.index);
    }
    let compare = match arg.op.as_str() {
        "SCMP_CMP_EQ" => Compare::Equal,
        "SCMP_CMP_NE" => Compare::NotEqual,
        "SCMP_CMP_LT" => Compare::Less,
        "SCMP_CMP_LE" => Compare::LessOrEqual,
        "SCMP_CMP_GT" => Compare::Greater,
        "SCMP_CMP_GE" => Compare::GreaterOrEqual,
        "SCMP_CMP_MASKED_EQ" => {
            return Ok(Condition {
                argument: arg.index,
                compare: Compare::MaskedEqual { mask: arg.value },
                value: arg.value_two,
            });
        }
        "" => bail!("{place}.op: missing; write one such as SCMP_CMP_EQ"),
        other => bail!(
            "{place}.op: `{other}` is none; see {}",
            KNOWN_OPERATORS.join(", ")
        ),
    };
    Ok(Condition {
        argument: arg.index,
        compare,
        value: arg.value,
    })
}
