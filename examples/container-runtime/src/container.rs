//! The process with its namespaces and its root filesystem, as something to be started.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use namespaces::{Command, IdMap, IdRange, Namespace, Propagation, Root, UserMapping};
use rustix::fs::{Mode, OFlags};

use crate::config::{Config, IdMapping};
use crate::{attributes, nodes, process, warn};

/// The container as something to be started, but for its control group and its mounts.
pub(crate) fn command(config: &Config, bundle: &Path) -> Result<Command> {
    let Some(process) = &config.process else {
        bail!("process: missing; write what to run");
    };
    let Some(root) = &config.root else {
        bail!("root: missing; write the directory of the root filesystem in root.path");
    };
    let Some(path) = &root.path else {
        bail!("root.path: missing; write the directory of the root filesystem");
    };
    let path = bundle.join(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&path, flags, Mode::empty())
        .map_err(std::io::Error::from)
        .with_context(|| format!("root.path: cannot open the directory {}", path.display()))?;

    let linux = &config.linux;
    let kinds = kinds(config)?;
    let new_user = kinds.contains(&(Namespace::User, false));
    let mut command = process::command(process, &directory, new_user)?;
    isolate(&mut command, config, &kinds)?;
    attributes::of_process(&mut command, process)?;
    attributes::of_container(&mut command, linux)?;
    if linux
        .mount_label
        .as_ref()
        .is_some_and(|label| !label.is_empty())
    {
        bail!("linux.mountLabel: mounts cannot be labelled; remove it");
    }

    if has_mounts_of_its_own(config) {
        command.root(path);
    } else {
        if linux.rootfs_propagation.is_some() {
            bail!(
                "linux.rootfsPropagation: would change the machine's mounts; add {{\"type\": \"mount\"}} to linux.namespaces, or remove it"
            );
        }
        warn(
            "linux.namespaces: without a mount namespace the container's mounts are this machine's until it is deleted, and a process that may chroot can leave its root",
        );
        command.root(Root::shared(path));
    }
    command
        .root_read_only(root.readonly)
        .root_propagation(propagation(linux.rootfs_propagation.as_deref())?)
        .masked_paths(&linux.masked_paths)
        .read_only_paths(&linux.readonly_paths)
        .devices(nodes::of(linux)?)
        // The terminal's signals come to this program alone, which passes them on.
        .new_session(true);
    Ok(command)
}

/// Whether the container has a mount namespace, new or joined.
pub(crate) fn has_mounts_of_its_own(config: &Config) -> bool {
    let mut namespaces = config.linux.namespaces.iter();
    namespaces.any(|namespace| kind(&namespace.kind) == Some(Namespace::Mount))
}

/// The kinds of namespaces, each with whether it is joined.
fn kinds(config: &Config) -> Result<BTreeSet<(Namespace, bool)>> {
    let mut kinds = BTreeSet::new();
    for (index, namespace) in config.linux.namespaces.iter().enumerate() {
        let place = format!("linux.namespaces[{index}]");
        let kind = kind(&namespace.kind)
            .with_context(|| format!("{place}.type: `{}` is no namespace; choose among pid, network, mount, ipc, uts, user, cgroup, time", namespace.kind))?;
        if kinds.iter().any(|(other, _)| *other == kind) {
            bail!(
                "{place}.type: {} stands there twice; keep one",
                namespace.kind
            );
        }
        kinds.insert((kind, namespace.path.is_some()));
    }
    Ok(kinds)
}

/// The kind of a namespace by its name.
pub(crate) fn kind(name: &str) -> Option<Namespace> {
    Some(match name {
        "pid" => Namespace::Pid,
        "network" => Namespace::Net,
        "mount" => Namespace::Mount,
        "ipc" => Namespace::Ipc,
        "uts" => Namespace::Uts,
        "user" => Namespace::User,
        "cgroup" => Namespace::Cgroup,
        "time" => Namespace::Time,
        _ => return None,
    })
}

fn isolate(
    command: &mut Command,
    config: &Config,
    kinds: &BTreeSet<(Namespace, bool)>,
) -> Result<()> {
    let linux = &config.linux;
    for (index, namespace) in linux.namespaces.iter().enumerate() {
        let Some(kind) = kind(&namespace.kind) else {
            continue;
        };
        match &namespace.path {
            None => command.unshare([kind]),
            Some(path) if path.is_absolute() => command.join_path(kind, path),
            Some(path) => bail!(
                "linux.namespaces[{index}].path: {} does not begin with /; give the whole path",
                path.display()
            ),
        };
    }
    command.loopback_up(kinds.contains(&(Namespace::Net, false)));

    let has = |kind| kinds.iter().any(|(other, _)| *other == kind);
    for (property, name) in [
        ("hostname", &config.hostname),
        ("domainname", &config.domainname),
    ] {
        if name.as_ref().is_some_and(|name| name.len() > 64) {
            bail!("{property}: longer than 64 bytes; shorten it");
        }
        if name.is_some() && !has(Namespace::Uts) {
            bail!(
                "{property}: would change the machine's; add {{\"type\": \"uts\"}} to linux.namespaces"
            );
        }
    }
    if let Some(name) = config.hostname.as_ref().filter(|name| !name.is_empty()) {
        command.hostname(name);
    }
    if let Some(name) = config.domainname.as_ref().filter(|name| !name.is_empty()) {
        command.domainname(name);
    }

    for (name, value) in &linux.sysctl {
        match owner(name) {
            Some(kind) if has(kind) => command.sysctl(name, value),
            Some(kind) => bail!(
                "linux.sysctl.{name}: would change the machine's; it needs a {kind} namespace in linux.namespaces"
            ),
            None => bail!(
                "linux.sysctl.{name}: belongs to no namespace, it would change the machine's; set it there"
            ),
        };
    }

    if kinds.contains(&(Namespace::User, false)) {
        for (property, mappings) in [
            ("uidMappings", &linux.uid_mappings),
            ("gidMappings", &linux.gid_mappings),
        ] {
            if mappings.is_empty() {
                bail!("linux.{property}: missing; a new user namespace needs it");
            }
        }
        command.user_namespace(UserMapping::Exact {
            uids: id_map(&linux.uid_mappings),
            gids: id_map(&linux.gid_mappings),
        });
    } else if !linux.uid_mappings.is_empty() || !linux.gid_mappings.is_empty() {
        bail!(
            "linux.uidMappings: without a new user namespace they mean nothing; add {{\"type\": \"user\"}} to linux.namespaces, or remove them"
        );
    }
    Ok(())
}

/// The kind of namespace that has a kernel parameter of its own. A name is written with dots or
/// with slashes.
fn owner(name: &str) -> Option<Namespace> {
    const IPC: [&str; 8] = [
        "kernel.msgmax",
        "kernel.msgmnb",
        "kernel.msgmni",
        "kernel.sem",
        "kernel.shmall",
        "kernel.shmmax",
        "kernel.shmmni",
        "kernel.shm_rmid_forced",
    ];
    let name = name.replace('/', ".");
    if name.split('.').any(str::is_empty) {
        // `..` leads elsewhere.
        None
    } else if name.starts_with("net.") {
        Some(Namespace::Net)
    } else if name.starts_with("fs.mqueue.") || IPC.contains(&name.as_str()) {
        Some(Namespace::Ipc)
    } else if name == "kernel.domainname" {
        Some(Namespace::Uts)
    } else {
        None
    }
}

/// A map of ids.
pub(crate) fn id_map(mappings: &[IdMapping]) -> IdMap {
    mappings
        .iter()
        .map(|mapping| IdRange {
            inside: mapping.container_id,
            outside: mapping.host_id,
            count: mapping.size,
        })
        .collect()
}

fn propagation(name: Option<&str>) -> Result<Propagation> {
    // Of the root alone or of everything below: what is below is made for the container.
    Ok(match name.unwrap_or_default() {
        "" | "private" | "rprivate" => Propagation::Private,
        "slave" | "rslave" => Propagation::Slave,
        "shared" | "rshared" => Propagation::Shared,
        "unbindable" | "runbindable" => Propagation::Unbindable,
        other => bail!(
            "linux.rootfsPropagation: `{other}` is none; choose among private, slave, shared, unbindable"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_machine_have_no_owner() {
        assert_eq!(owner("net.ipv4.ip_forward"), Some(Namespace::Net));
        assert_eq!(
            owner("net/ipv4/conf/eth0.1/forwarding"),
            Some(Namespace::Net)
        );
        assert_eq!(owner("fs.mqueue.msg_max"), Some(Namespace::Ipc));
        for name in [
            "vm.swappiness",
            "kernel.hostname",
            "net",
            "net/../vm/swappiness",
            "net..x",
            "",
        ] {
            assert_eq!(owner(name), None, "{name}");
        }
    }
}
