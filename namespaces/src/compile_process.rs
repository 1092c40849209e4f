//! The part of a plan that is about the process: attributes, credentials, program.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::process::Rlimit;
use rustix::thread::{CapabilitySet as KernelCaps, CapabilitySets, Gid, Uid};

use crate::compile::c_string;
use crate::plan::Op;
use crate::sys::{Instruction, SchedAttr};
use crate::{Capability, CapabilitySet, Command, Error, Namespace, Scheduler, SecurityLabel, Step};

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) fn process(command: &Command, ops: &mut Vec<Op>, in_user: bool) -> Result<(), Error> {
    if !command.init {
        session(command, ops);
    }
    for (resource, limit) in &command.rlimits {
        ops.push(Op::Rlimit(
            resource.to_kernel(),
            Rlimit {
                current: limit.soft,
                maximum: limit.hard,
            },
        ));
    }
    if command.umask.is_some() || command.new.contains(&Namespace::Mount) {
        ops.push(Op::Umask(Some(command.umask.unwrap_or(u32::MAX))));
    }
    let changes_user = command.uid.is_some() || command.gid.is_some() || command.groups.is_some();
    let directory = match (&command.current_dir, &command.root) {
        (Some(directory), _) => Some(c_string("working directory", directory.as_os_str())?),
        (None, Some(_)) => Some(c"/".to_owned()),
        (None, None) => None,
    };
    if let Some(path) = &directory {
        ops.push(Op::EnterDirectory {
            path: path.clone(),
            again: changes_user,
        });
    }
    if let Some(persona) = command.personality {
        ops.push(Op::Personality(persona));
    }
    if let Some(label) = &command.security_label {
        ops.push(security_label(label)?);
    }
    if !command.no_new_privs {
        // Later on there may be no CAP_SYS_ADMIN left.
        seccomp(command, ops)?;
    }
    if let Some(capabilities) = &command.capabilities {
        ops.push(Op::LimitBounding(
            (0..64)
                .filter(|number| capabilities.bounding.bits() & (1 << number) == 0)
                .filter_map(|number| Capability::ALL.get(number).copied())
                .collect(),
        ));
        if command.uid.is_some_and(|uid| uid != 0) {
            ops.push(Op::KeepCapabilities);
        }
    }
    let groups = match &command.groups {
        Some(groups) => Some((groups.iter().copied().map(Gid::from_raw).collect(), false)),
        None if command.uid.is_some() || in_user => Some((Vec::new(), true)),
        None => None,
    };
    if let Some((groups, implied)) = groups {
        ops.push(Op::Groups { groups, implied });
    }
    for (id, which) in [(command.gid, "gid"), (command.uid, "uid")] {
        if id == Some(u32::MAX) {
            return Err(Error::Invalid {
                setting: which,
                problem: "4294967295 is no id; give a smaller one",
            });
        }
    }
    if let Some(gid) = command.gid {
        ops.push(Op::Gid(Gid::from_raw(gid)));
    }
    if let Some(uid) = command.uid {
        ops.push(Op::Uid(Uid::from_raw(uid)));
    }
    if let Some(capabilities) = &command.capabilities {
        let kernel = |set: CapabilitySet| KernelCaps::from_bits_retain(set.bits());
        ops.push(Op::Capabilities {
            sets: CapabilitySets {
                effective: kernel(capabilities.effective),
                permitted: kernel(capabilities.permitted),
                inheritable: kernel(capabilities.inheritable),
            },
            ambient: capabilities.ambient.iter().collect(),
        });
    }
    if changes_user && let Some(path) = directory {
        ops.push(Op::EnterDirectoryAgain(path));
    }
    Ok(())
}

/// The session of the program: with an init it is not the init's.
pub(crate) fn session(command: &Command, ops: &mut Vec<Op>) {
    if command.new_session || command.terminal.is_some() {
        ops.push(Op::NewSession);
    }
    if command.terminal.is_some() {
        ops.push(Op::TakeTerminal);
    }
}

pub(crate) fn time_offsets(command: &Command) -> Result<Option<CString>, Error> {
    let [Some(monotonic), Some(boottime)] = command.time_offsets else {
        return Ok(None);
    };
    if [monotonic, boottime]
        .iter()
        .any(|offset| offset.nanoseconds > 999_999_999)
    {
        return Err(Error::Invalid {
            setting: "time offsets",
            problem: "more than 999999999 nanoseconds; count them as seconds",
        });
    }
    let lines = format!(
        "monotonic {} {}\nboottime {} {}\n",
        monotonic.seconds, monotonic.nanoseconds, boottime.seconds, boottime.nanoseconds
    );
    c_string("time offset", OsStr::new(&lines)).map(Some)
}

/// The bits of these numbers, which must be below 1024.
fn bits(setting: &'static str, numbers: impl IntoIterator<Item = u32>) -> Result<Vec<u64>, Error> {
    let mut bits = vec![0_u64; 16];
    for number in numbers {
        let word = usize::try_from(number / 64)
            .ok()
            .and_then(|word| bits.get_mut(word))
            .ok_or(Error::Invalid {
                setting,
                problem: "a number is above 1023; give smaller ones",
            })?;
        *word |= 1 << (number % 64);
    }
    Ok(bits)
}

pub(crate) fn scheduling(command: &Command, ops: &mut Vec<Op>) -> Result<(), Error> {
    if let Some(cpus) = &command.cpu_affinity {
        ops.push(Op::Affinity(bits("CPU affinity", cpus.iter().copied())?));
    }
    let mut nice = command.nice.map(i32::from);
    if let Some(scheduler) = command.scheduler {
        let mut attr = SchedAttr::default();
        attr.policy = match scheduler {
            Scheduler::Normal => 0,
            Scheduler::Fifo { priority } => {
                attr.priority = priority;
                1
            }
            Scheduler::RoundRobin { priority } => {
                attr.priority = priority;
                2
            }
            Scheduler::Batch => 3,
            Scheduler::Idle => 5,
            Scheduler::Deadline {
                runtime,
                deadline,
                period,
            } => {
                (attr.runtime, attr.deadline, attr.period) = (runtime, deadline, period);
                6
            }
        };
        if matches!(
            scheduler,
            Scheduler::Normal | Scheduler::Batch | Scheduler::Idle
        ) {
            // The call sets the nice value too.
            attr.nice = nice
                .take()
                .unwrap_or_else(|| rustix::process::getpriority_process(None).unwrap_or_default());
        }
        attr.flags = command.scheduler_flags;
        ops.push(Op::Scheduler(attr));
    }
    if let Some(nice) = nice {
        ops.push(Op::Nice(nice));
    }
    if let Some(priority) = command.io_priority {
        ops.push(Op::IoPriority(priority.to_kernel().ok_or(
            Error::Invalid {
                setting: "I/O priority",
                problem: "the level is above 7; give 0 to 7",
            },
        )?));
    }
    if let Some(policy) = &command.memory_policy {
        let nodes = policy.nodes.iter().map(|node| u32::from(*node));
        ops.push(Op::MemoryPolicy {
            mode: policy.mode | policy.flags,
            nodes: if policy.nodes.is_empty() {
                Vec::new()
            } else {
                bits("memory policy", nodes)?
            },
        });
    }
    Ok(())
}

pub(crate) fn sysctls(command: &Command, ops: &mut Vec<Op>) -> Result<(), Error> {
    for (name, value) in &command.sysctls {
        // As sysctl(8): the first separator decides; with slashes, dots belong to names.
        let slashes = name
            .as_bytes()
            .iter()
            .find(|byte| matches!(byte, b'.' | b'/'))
            == Some(&b'/');
        let mut path = b"sys/".to_vec();
        path.extend(name.as_bytes().iter().map(|byte| match byte {
            b'.' if !slashes => b'/',
            b'/' if !slashes => b'.',
            other => *other,
        }));
        if path
            .split(|byte| *byte == b'/')
            .any(|part| part.is_empty() || part == b"..")
        {
            return Err(Error::Invalid {
                setting: "sysctl",
                problem: "the name is not one; write it as in /proc/sys, with dots for slashes",
            });
        }
        ops.push(Op::WriteProc {
            path: c_string("sysctl", OsStr::from_bytes(&path))?,
            value: value.as_bytes().to_vec(),
            step: Step::Sysctl,
        });
    }
    Ok(())
}

fn security_label(label: &SecurityLabel) -> Result<Op, Error> {
    let (path, value) = match label {
        SecurityLabel::Selinux(label) => (c"self/attr/exec", label.as_bytes().to_vec()),
        SecurityLabel::Apparmor(profile) => (
            c"self/attr/apparmor/exec",
            [b"exec ", profile.as_bytes()].concat(),
        ),
    };
    if value.contains(&0) {
        return Err(Error::Invalid {
            setting: "security label",
            problem: "it has a NUL byte in it; take it out",
        });
    }
    Ok(Op::WriteProc {
        path: path.to_owned(),
        value,
        step: Step::SecurityLabel,
    })
}

pub(crate) fn seccomp(command: &Command, ops: &mut Vec<Op>) -> Result<(), Error> {
    if let Some(program) = &command.seccomp {
        ops.push(Op::Seccomp {
            program: instructions(program)?,
            flags: command.seccomp_flags,
            listener: command.seccomp_listener,
        });
    }
    Ok(())
}

pub(crate) fn environment(command: &Command) -> Result<Vec<CString>, Error> {
    let mut variables: BTreeMap<OsString, OsString> = if command.env_clear {
        BTreeMap::new()
    } else {
        std::env::vars_os().collect()
    };
    for (key, value) in &command.env {
        match value {
            Some(value) => variables.insert(key.clone(), value.clone()),
            None => variables.remove(key),
        };
    }
    variables
        .into_iter()
        .map(|(mut variable, value)| {
            variable.push("=");
            variable.push(value);
            c_string("environment variable", &variable)
        })
        .collect()
}

/// Where the program may be, and the directories of `PATH` if they are searched.
pub(crate) fn programs(command: &Command) -> Result<(Vec<CString>, Vec<PathBuf>), Error> {
    let program = &command.program;
    if program.is_empty() || program.as_bytes().contains(&b'/') {
        return Ok((vec![c_string("program", program)?], Vec::new()));
    }
    let path = match command.env.get(OsStr::new("PATH")) {
        Some(path) => path.clone(),
        None if command.env_clear => None,
        None => std::env::var_os("PATH"),
    };
    let path = path.unwrap_or_else(|| DEFAULT_PATH.into());
    let mut candidates = Vec::new();
    let mut searched = Vec::new();
    for directory in std::env::split_paths(&path) {
        // An empty entry of PATH is the current directory, as for execvp.
        let directory = if directory.as_os_str().is_empty() {
            PathBuf::from(".")
        } else {
            directory
        };
        candidates.push(c_string("program", directory.join(program).as_os_str())?);
        searched.push(directory);
    }
    Ok((candidates, searched))
}

fn instructions(program: &[u8]) -> Result<Vec<Instruction>, Error> {
    let (chunks, rest) = program.as_chunks::<8>();
    if !rest.is_empty() || chunks.is_empty() || chunks.len() > 4096 {
        return Err(Error::Invalid {
            setting: "seccomp",
            problem: "the program must be 1 to 4096 instructions of 8 bytes (struct sock_filter)",
        });
    }
    Ok(chunks
        .iter()
        .map(|[c0, c1, jt, jf, k0, k1, k2, k3]| Instruction {
            code: u16::from_ne_bytes([*c0, *c1]),
            jt: *jt,
            jf: *jf,
            k: u32::from_ne_bytes([*k0, *k1, *k2, *k3]),
        })
        .collect())
}
