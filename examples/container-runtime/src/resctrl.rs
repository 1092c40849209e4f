//! `linux.intelRdt`: shares of the cache and of the memory bandwidth, by the file system resctrl.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::config::Config;
use crate::id::ContainerId;

const ROOT: &str = "/sys/fs/resctrl";

/// A group of resctrl to be made or joined.
#[derive(Debug)]
pub(crate) struct Plan {
    directory: PathBuf,
    /// Given by name, so that several containers may share it.
    shared: bool,
    schemata: Vec<String>,
    monitoring: bool,
}

/// Whether this machine has resctrl.
pub(crate) fn is_available() -> bool {
    Path::new(ROOT).join("schemata").exists()
}

impl Plan {
    /// The group that the configuration asks for.
    pub(crate) fn of(config: &Config, id: &ContainerId) -> Result<Option<Self>> {
        let Some(asked) = &config.linux.intel_rdt else {
            return Ok(None);
        };
        let name = asked.clos_id.as_deref().filter(|name| !name.is_empty());
        if let Some(name) = name
            && (name == "." || name == ".." || name.contains('/'))
        {
            bail!("linux.intelRdt.closID: `{name}` is no name of a directory");
        }
        if !is_available() {
            bail!(
                "linux.intelRdt: {ROOT} is not there; on a machine with it, mount -t resctrl resctrl {ROOT}"
            );
        }
        let schemata = [&asked.l3_cache_schema, &asked.mem_bw_schema]
            .into_iter()
            .flatten()
            .chain(&asked.schemata);
        Ok(Some(Self {
            directory: Path::new(ROOT).join(name.unwrap_or(id.as_str())),
            shared: name.is_some(),
            schemata: schemata.cloned().collect(),
            monitoring: asked.enable_monitoring || asked.enable_cmt || asked.enable_mbm,
        }))
    }

    /// Puts a process into the group; the answer is the directory to be removed with the container.
    pub(crate) fn create(&self, pid: u32) -> Result<Option<PathBuf>> {
        let cannot = || format!("linux.intelRdt: {}", self.directory.display());
        let made = match fs::create_dir(&self.directory) {
            Ok(()) => true,
            Err(error) if self.shared && error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).with_context(cannot),
        };
        let set = || -> Result<()> {
            write(&self.directory, self.schemata.iter())?;
            fs::write(self.directory.join("tasks"), pid.to_string()).with_context(cannot)?;
            if self.monitoring {
                let group = self
                    .directory
                    .join("mon_groups")
                    .join(format!("cofferdam-{pid}"));
                fs::create_dir(&group)
                    .and_then(|()| fs::write(group.join("tasks"), pid.to_string()))
                    .with_context(cannot)?;
            }
            Ok(())
        };
        set().inspect_err(|_| {
            if made {
                let _ = fs::remove_dir(&self.directory);
            }
        })?;
        Ok((made && !self.shared).then(|| self.directory.clone()))
    }
}

/// Sets lines of a group's schemata.
pub(crate) fn write<'a>(directory: &Path, lines: impl Iterator<Item = &'a String>) -> Result<()> {
    for line in lines {
        fs::write(directory.join("schemata"), format!("{line}\n"))
            .with_context(|| format!("linux.intelRdt: cannot write `{line}` to schemata"))?;
    }
    Ok(())
}
