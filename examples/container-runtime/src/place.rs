//! Which part of config.json it was that the kernel refused.

use std::path::Path;

use namespaces::{Error, Step, StepError};

use crate::config::Config;
use crate::container;

/// The place in the configuration that an error of the new process is about, if it is about one.
pub(crate) fn of(error: &Error, config: &Config) -> Option<String> {
    let namespace = |wanted: Option<namespaces::Namespace>| {
        let mut all = config.linux.namespaces.iter();
        let index = all.position(|one| container::kind(&one.kind) == wanted)?;
        Some(format!("linux.namespaces[{index}].path"))
    };
    match error {
        Error::Step(step) => of_step(step, config),
        Error::NotThatNamespace { wanted, .. } => namespace(Some(*wanted)),
        Error::Clone { .. } => Some("linux.namespaces".to_owned()),
        Error::IdMap { path, .. } if path.ends_with("gid_map") => {
            Some("linux.gidMappings".to_owned())
        }
        Error::IdMap { .. } | Error::IdMapHelper { .. } => Some("linux.uidMappings".to_owned()),
        Error::InvalidIdMap { which, .. } => Some(format!("linux.{which}Mappings")),
        _ => None,
    }
}

fn of_step(error: &StepError, config: &Config) -> Option<String> {
    let place = match (error.step(), error.operation()) {
        (Step::Mount, _) => return of_target(error.target()?, config),
        (Step::JoinNamespace | Step::UnshareNamespace | Step::Clone, _) => "linux.namespaces",
        (Step::Hostname, _) => "hostname",
        (Step::Domainname, _) => "domainname",
        (Step::Propagation, _) => "linux.rootfsPropagation",
        (Step::AttachRoot | Step::PivotRoot, _) => "root.path",
        (Step::Mask, _) => "linux.maskedPaths",
        (Step::ReadOnly, _) => "linux.readonlyPaths",
        (Step::Session, _) => "process.terminal",
        (Step::ResourceLimit, _) => "process.rlimits",
        (Step::CurrentDirectory, _) => "process.cwd",
        (Step::Credentials, "setgroups" | "setresgid" | "setresuid") => "process.user",
        (Step::Credentials, _) => "process.capabilities",
        (Step::NoNewPrivs, _) => "process.noNewPrivileges",
        (Step::Seccomp, _) => "linux.seccomp",
        (Step::Sysctl, _) => "linux.sysctl",
        (Step::Scheduling, "ioprio_set") => "process.ioPriority",
        (Step::Scheduling, "set_mempolicy") => "linux.memoryPolicy",
        (Step::Scheduling, "sched_setaffinity") => "process.execCPUAffinity.final",
        (Step::Scheduling, _) => "process.scheduler",
        (Step::Personality, _) => "linux.personality",
        (Step::SecurityLabel, _) => match config.process.as_ref()?.apparmor_profile {
            Some(_) => "process.apparmorProfile",
            None => "process.selinuxLabel",
        },
        _ => return None,
    };
    Some(place.to_owned())
}

/// The device or mount at a place of the root; the mount in which it is, where a mount comes to
/// several.
fn of_target(target: &Path, config: &Config) -> Option<String> {
    let mut devices = config.linux.devices.iter();
    if let Some(index) = devices.position(|device| device.path.as_deref() == Some(target)) {
        return Some(format!("linux.devices[{index}]"));
    }
    let destinations = config.mounts.iter().enumerate();
    let (index, _) = destinations
        .filter_map(|(index, mount)| {
            let destination = Path::new("/").join(mount.destination.as_ref()?);
            target
                .starts_with(&destination)
                .then(|| (index, destination.components().count()))
        })
        .max_by_key(|(_, depth)| *depth)?;
    Some(format!("mounts[{index}]"))
}
