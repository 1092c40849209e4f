//! `linux.cgroupsPath`: the container's control group.

use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cgroups::{Cgroup, Error, Guard, Hierarchy, Layout};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::container::id_map;
use crate::devices;
use crate::id::ContainerId;
use crate::resources::Resources;
use crate::scope::Scope;
use crate::warn;

/// Where a container's control group is, for later commands.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Place {
    /// From the top of the hierarchy.
    pub(crate) path: PathBuf,
    /// The unit of systemd whose group it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<Scope>,
}

/// The control group of a container that is being made. Whatever runs in it is killed when it is
/// dropped, and the group removed.
pub(crate) struct Group {
    guard: Option<Guard>,
    scope: Option<Scope>,
}

/// A control group to be made.
#[derive(Debug)]
pub(crate) struct Plan {
    place: Place,
    resources: Resources,
    devices: devices::Rules,
    /// The group may be gone without, when nothing asks for it.
    optional: bool,
    /// Who may make groups below it.
    owner: Option<(u32, u32)>,
}

impl Plan {
    /// The control group that the configuration asks for.
    pub(crate) fn of(
        config: &Config,
        id: &ContainerId,
        systemd: bool,
        rootless: bool,
    ) -> Result<Self> {
        let asked = config
            .linux
            .cgroups_path
            .as_deref()
            .filter(|path| !path.as_os_str().is_empty());
        let owner = owner(config);
        let resources = Resources::of(&config.linux.resources)?;
        let devices = devices::Rules::of(config)?;
        if systemd {
            let scope = Scope::of(asked.map(Path::to_string_lossy).as_deref(), id, rootless)?;
            return Ok(Self {
                place: Place {
                    // systemd tells.
                    path: PathBuf::new(),
                    scope: Some(scope),
                },
                resources,
                devices,
                optional: rootless,
                owner,
            });
        }
        let path = asked.unwrap_or(Path::new(id.as_str()));
        // A relative path is one from where the runtime decides: the top of the hierarchy, as an
        // absolute one, because a group with processes, as this one's own, cannot have limited
        // groups below it on v2.
        let path = path.strip_prefix("/").unwrap_or(path);
        check(path)?;
        Ok(Self {
            place: Place {
                path: path.to_owned(),
                scope: None,
            },
            resources,
            devices,
            optional: rootless,
            owner,
        })
    }

    /// Where it will be.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Makes the group with its limits. One of systemd's is made when there is a process for it,
    /// by [`enter`](Self::enter).
    pub(crate) fn create(&self) -> Result<Group> {
        if self.place.scope.is_some() {
            return Ok(Group {
                guard: None,
                scope: None,
            });
        }
        let group = match new_group(&self.place.path) {
            Ok(group) => group,
            Err(Error::NotDelegated { .. } | Error::ReadOnly { .. })
                if self.optional && self.resources.is_empty() =>
            {
                return Ok(Group {
                    guard: None,
                    scope: None,
                });
            }
            Err(error) => return Err(error).context("linux.cgroupsPath"),
        };
        let group = Group {
            guard: Some(group.guard()),
            scope: None,
        };
        if let Some(cgroup) = group.cgroup() {
            self.fill(cgroup)?;
        }
        Ok(group)
    }

    fn fill(&self, cgroup: &Cgroup) -> Result<()> {
        self.resources.apply(cgroup)?;
        if !self.optional {
            self.devices.apply(cgroup)?;
        }
        match self.owner {
            Some((uid, gid)) if cgroup.hierarchy().layout() == Layout::Unified => cgroup
                .delegate(uid, gid)
                .context("linux.cgroupsPath: cannot give the group to process.user"),
            _ => Ok(()),
        }
    }

    /// Puts the first process into the group; where it is.
    pub(crate) fn enter(&self, group: &mut Group, pid: u32) -> Result<Place> {
        let Some(scope) = &self.place.scope else {
            group.attach(pid)?;
            return Ok(self.place.clone());
        };
        let cgroup = scope.start(pid)?;
        let path = cgroup.path().to_owned();
        // From here on it is undone.
        group.scope = Some(scope.clone());
        scope.limit(&self.resources)?;
        self.fill(&cgroup)?;
        Ok(Place {
            path,
            scope: Some(scope.clone()),
        })
    }
}

impl Group {
    /// The group itself; none for an ordinary user who cannot make one.
    pub(crate) fn cgroup(&self) -> Option<&Cgroup> {
        self.guard.as_deref()
    }

    /// Puts a process into every hierarchy of it.
    pub(crate) fn attach(&self, pid: u32) -> Result<()> {
        if let Some(cgroup) = self.cgroup() {
            cgroup.attach(pid)?;
        }
        Ok(())
    }

    /// Leaves it, for the container that runs in it now.
    pub(crate) fn keep(mut self) {
        self.scope = None;
        if let Some(guard) = self.guard.take() {
            guard.keep();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let scope = self.scope.as_ref().map(Scope::stop).transpose();
        let killed = self.guard.as_ref().map(|guard| guard.kill()).transpose();
        if let Err(error) = scope.and_then(|_| Ok(killed?)) {
            warn(&format!(
                "cannot clear the container's control group: {error}"
            ));
        }
    }
}

/// The control group of a container, if it has one.
pub(crate) fn find(place: &Place) -> Result<Option<Cgroup>> {
    if place.path.as_os_str().is_empty() {
        // systemd had not made it yet.
        return Ok(None);
    }
    match Hierarchy::detect().and_then(|hierarchy| hierarchy.root()?.open(&place.path)) {
        Ok(group) => Ok(Some(group)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error).context("cannot open the container's control group"),
    }
}

/// The control group of a container that needs one for what is to be done.
pub(crate) fn open(place: &Place) -> Result<Cgroup> {
    match find(place)? {
        Some(group) => Ok(group),
        None => bail!(
            "the container has no control group: {} does not exist",
            place.path.display()
        ),
    }
}

/// Whether the container is paused.
pub(crate) fn is_frozen(place: &Place) -> bool {
    find(place)
        .ok()
        .flatten()
        .is_some_and(|group| group.is_frozen().unwrap_or(false))
}

/// Kills what is left in the container's group, and removes it with all groups below.
pub(crate) fn remove(place: &Place) -> Result<()> {
    let group = find(place)?;
    if let (Some(scope), Some(group)) = (&place.scope, &group) {
        group.kill()?;
        scope.stop()?;
    }
    let Some(group) = group else {
        return Ok(());
    };
    let cannot = || format!("cannot remove the control group {}", place.path.display());
    match group.kill().and_then(|()| group.remove()) {
        Err(Error::Vanished { .. } | Error::NotFound { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(error).with_context(cannot),
    }
}

/// How long a process may take to see that who made it is gone, and to end.
const ORPHAN: Duration = Duration::from_secs(1);

/// Removes a group that nothing may have run in: it need not be the container's. What was being
/// made in it ends by itself.
pub(crate) fn remove_unused(place: &Place) -> Result<()> {
    let Some(group) = find(place)? else {
        return Ok(());
    };
    let begin = Instant::now();
    loop {
        let removed = group
            .remove_if_unused()
            .context("cannot remove the container's control group")?;
        if removed || begin.elapsed() > ORPHAN {
            return Ok(());
        }
        sleep(Duration::from_millis(5));
    }
}

/// The user that the group is to belong to, where it is the top of what the container sees and can
/// write to.
fn owner(config: &Config) -> Option<(u32, u32)> {
    let linux = &config.linux;
    let new = |name: &str| {
        let mut namespaces = linux.namespaces.iter();
        namespaces.any(|one| one.kind == name && one.path.is_none())
    };
    let writable = config.mounts.iter().any(|mount| {
        mount.kind.as_deref() == Some("cgroup")
            && mount.destination.as_deref() == Some(Path::new("/sys/fs/cgroup"))
            && !mount.options.iter().any(|option| option == "ro")
    });
    if !writable || !new("cgroup") {
        return None;
    }
    let user = &config.process.as_ref()?.user;
    let (uid, gid) = if new("user") {
        (
            id_map(&linux.uid_mappings).to_outside(user.uid)?,
            id_map(&linux.gid_mappings).to_outside(user.gid)?,
        )
    } else {
        (user.uid, user.gid)
    };
    // Nobody is given what they have.
    (uid != rustix::process::geteuid().as_raw()).then_some((uid, gid))
}

fn check(path: &Path) -> Result<()> {
    if path.to_string_lossy().contains(':') {
        bail!(
            "linux.cgroupsPath: {} is in systemd's form, SLICE:PREFIX:NAME; give --systemd-cgroup, or a path",
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
        // Left by a runtime that was killed, or made by the engine. A group with processes is not
        // removed, and the answer stays.
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

#[cfg(test)]
mod tests {
    use super::*;

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
