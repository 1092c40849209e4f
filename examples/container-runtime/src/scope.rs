//! `--systemd-cgroup`: the container's control group as a scope of systemd.

use anyhow::{Context as _, Result, bail};
use cgroups::{Cgroup, Error, Hierarchy, Layout, Systemd, TransientUnit};
use serde::{Deserialize, Serialize};

use crate::id::ContainerId;
use crate::resources::Resources;

/// A scope, and the manager that has it.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Scope {
    slice: String,
    unit: String,
    description: String,
    /// Of the user's manager rather than the machine's.
    user: bool,
}

impl Scope {
    /// The scope that `linux.cgroupsPath` names: `SLICE:PREFIX:NAME`.
    pub(crate) fn of(asked: Option<&str>, id: &ContainerId, user: bool) -> Result<Self> {
        if !Hierarchy::detect().is_ok_and(|all| all.layout() == Layout::Unified) {
            bail!(
                "--systemd-cgroup: this machine has control groups of v1, which systemd is not asked for; leave the option out, or boot with systemd.unified_cgroup_hierarchy=1"
            );
        }
        let default_slice = if user { "user.slice" } else { "system.slice" };
        let (slice, prefix, name) = match asked {
            None => (default_slice, "cofferdam", id.as_str()),
            Some(asked) => {
                let parts: Vec<&str> = asked.split(':').collect();
                let [slice, prefix, name] = parts.as_slice() else {
                    bail!(
                        "linux.cgroupsPath: {asked} is not SLICE:PREFIX:NAME, as --systemd-cgroup wants it"
                    );
                };
                let slice = if slice.is_empty() {
                    default_slice
                } else {
                    *slice
                };
                (slice, *prefix, *name)
            }
        };
        let unit = if prefix.is_empty() {
            format!("{name}.scope")
        } else {
            format!("{prefix}-{name}.scope")
        };
        Ok(Self {
            slice: slice.to_owned(),
            unit,
            description: format!("container {}", id.as_str()),
            user,
        })
    }

    fn manager(&self) -> Systemd {
        if self.user {
            Systemd::user()
        } else {
            Systemd::system()
        }
    }

    /// Makes the scope with its first process.
    pub(crate) fn start(&self, pid: u32) -> Result<Cgroup> {
        let unit = TransientUnit::scope(self.unit.clone(), pid)
            .and_then(|unit| unit.in_slice(self.slice.clone()))
            .context("linux.cgroupsPath")?
            .description(self.description.clone())
            .delegate();
        self.manager().start(&unit).context("linux.cgroupsPath")
    }

    /// Tells systemd of limits, so that it keeps them.
    pub(crate) fn limit(&self, resources: &Resources) -> Result<()> {
        for (property, limits) in resources.limits() {
            self.manager()
                .update(&self.unit, limits)
                .with_context(|| format!("linux.resources.{property}"))?;
        }
        Ok(())
    }

    /// Ends the scope. It has ended by itself when its last process did.
    pub(crate) fn stop(&self) -> Result<()> {
        match self.manager().stop(&self.unit) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error).context("cannot stop the container's scope"),
        }
    }
}
