//! `linux.intelRdt`: shares of the cache and of the memory bandwidth, by the file system resctrl.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::id::ContainerId;

const ROOT: &str = "/sys/fs/resctrl";

const SCHEMATA: &str = "schemata";

/// A group of resctrl to be made or joined.
#[derive(Debug)]
pub(crate) struct Plan {
    directory: PathBuf,
    /// Given by name: several containers may share it, and it stays when they are gone.
    shared: bool,
    schemata: Vec<String>,
    /// The group below it in which the container alone is counted.
    monitor: Option<PathBuf>,
}

/// The group of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Group {
    directory: PathBuf,
    shared: bool,
    monitor: Option<PathBuf>,
}

impl Plan {
    /// The group that the configuration asks for.
    pub(crate) fn of(config: &Config, id: &ContainerId) -> Result<Option<Self>> {
        Self::below(Path::new(ROOT), config, id)
    }

    fn below(root: &Path, config: &Config, id: &ContainerId) -> Result<Option<Self>> {
        let Some(asked) = &config.linux.intel_rdt else {
            return Ok(None);
        };
        let name = asked.clos_id.as_deref().filter(|name| !name.is_empty());
        let directory = match name {
            None => root.join(id.as_str()),
            Some("/") => root.to_owned(),
            Some(name) if name == "." || name == ".." || name.contains('/') => {
                bail!("linux.intelRdt.closID: `{name}` is no name of a directory");
            }
            Some(name) => root.join(name),
        };
        let mut schemata = Vec::new();
        for (property, lines, prefix) in [
            ("l3CacheSchema", asked.l3_cache_schema.as_slice(), "L3"),
            ("memBwSchema", asked.mem_bw_schema.as_slice(), "MB:"),
            ("schemata", &asked.schemata, ""),
        ] {
            for line in lines {
                if line.contains('\n') || !line.starts_with(prefix) {
                    bail!(
                        "linux.intelRdt.{property}: `{}` is not one line such as MB:0=20;1=70",
                        line.escape_debug()
                    );
                }
                schemata.push(line.clone());
            }
        }
        if !root.join(SCHEMATA).exists() {
            bail!(
                "linux.intelRdt: {ROOT} is not there; on a machine with it, mount -t resctrl resctrl {ROOT}"
            );
        }
        let monitoring = asked.enable_monitoring || asked.enable_cmt || asked.enable_mbm;
        let monitor = monitoring.then(|| directory.join("mon_groups").join(id.as_str()));
        Ok(Some(Self {
            directory,
            shared: name.is_some(),
            schemata,
            monitor,
        }))
    }

    /// Puts a process into the group, which is made if it is not there.
    pub(crate) fn create(&self, pid: u32) -> Result<Group> {
        let cannot = || format!("linux.intelRdt: {}", self.directory.display());
        let made = match fs::create_dir(&self.directory) {
            Ok(()) => true,
            Err(error) if self.shared && error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error).with_context(cannot),
        };
        let fill = || -> Result<()> {
            match (made, self.shared) {
                // Others have been told how much it is.
                (false, _) => compare(&self.directory, &self.schemata)?,
                (true, true) if self.schemata.is_empty() => bail!(
                    "linux.intelRdt.closID: {} does not exist; make it, or write schemata to have it made",
                    self.directory.display()
                ),
                (true, _) => write(&self.directory, &self.schemata)?,
            }
            fs::write(self.directory.join("tasks"), pid.to_string()).with_context(cannot)?;
            let Some(monitor) = &self.monitor else {
                return Ok(());
            };
            fs::create_dir(monitor)
                .and_then(|()| {
                    let joined = fs::write(monitor.join("tasks"), pid.to_string());
                    joined.inspect_err(|_| drop(fs::remove_dir(monitor)))
                })
                .with_context(|| {
                    let monitor = monitor.display();
                    format!("linux.intelRdt.enableMonitoring: {monitor}")
                })
        };
        fill().inspect_err(|_| {
            if made {
                let _ = fs::remove_dir(&self.directory);
            }
        })?;
        Ok(Group {
            directory: self.directory.clone(),
            shared: self.shared,
            monitor: self.monitor.clone(),
        })
    }
}

impl Group {
    /// Puts another process into it.
    pub(crate) fn join(&self, pid: u32) -> Result<()> {
        let group = self.monitor.as_ref().unwrap_or(&self.directory);
        fs::write(group.join("tasks"), pid.to_string())
            .with_context(|| format!("linux.intelRdt: {}", group.display()))
    }

    /// Removes what is the container's alone.
    pub(crate) fn remove(&self) -> Result<()> {
        let own = (!self.shared).then_some(&self.directory);
        for directory in self.monitor.iter().chain(own) {
            match fs::remove_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error)
                        .with_context(|| format!("cannot remove {}", directory.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets lines of the schemata, all or none; the answer are the lines that were there.
    pub(crate) fn change(&self, lines: &[String]) -> Result<Vec<String>> {
        let before = lines_of(&self.directory)?;
        write(&self.directory, lines).inspect_err(|_| drop(write(&self.directory, &before)))?;
        Ok(before)
    }
}

fn lines_of(directory: &Path) -> Result<Vec<String>> {
    let path = directory.join(SCHEMATA);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("linux.intelRdt: cannot read {}", path.display()))?;
    Ok(text.lines().map(|line| line.trim().to_owned()).collect())
}

fn write(directory: &Path, lines: &[String]) -> Result<()> {
    for line in lines {
        fs::write(directory.join(SCHEMATA), format!("{line}\n"))
            .with_context(|| format!("linux.intelRdt: cannot write `{line}` to schemata"))?;
    }
    Ok(())
}

/// Whether a group that is there already is as it is asked for.
fn compare(directory: &Path, asked: &[String]) -> Result<()> {
    let there = lines_of(directory)?;
    for line in asked {
        let wanted = shares(line);
        let same = there
            .iter()
            .map(|line| shares(line))
            .filter(|(resource, _)| *resource == wanted.0)
            .any(|(_, found)| wanted.1.iter().all(|share| found.contains(share)));
        if !same {
            bail!(
                "linux.intelRdt.closID: {} exists and is not `{line}`; name another, or leave the schemata out",
                directory.display()
            );
        }
    }
    Ok(())
}

/// A line such as `L3:0=7f0;1=01f`: the resource, and its shares, which the kernel pads.
fn shares(line: &str) -> (&str, Vec<(&str, String)>) {
    let (resource, shares) = line.split_once(':').unwrap_or((line, ""));
    let shares = shares.split(';').filter_map(|share| {
        let (domain, value) = share.split_once('=')?;
        let value = value.trim().trim_start_matches('0').to_ascii_lowercase();
        Some((domain.trim(), value))
    });
    (resource.trim(), shares.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(root: &Path, json: &str) -> Result<Plan> {
        let text = format!(r#"{{"ociVersion": "1.3.0", "linux": {{"intelRdt": {json}}}}}"#);
        let config = crate::load::parse(&text)?.0;
        let plan = Plan::below(root, &config, &"mine".parse().unwrap())?;
        Ok(plan.expect("a group is asked for"))
    }

    /// A directory with what the kernel has in it.
    fn group(directory: &Path, schemata: &str) {
        fs::create_dir_all(directory.join("mon_groups")).unwrap();
        fs::write(directory.join(SCHEMATA), schemata).unwrap();
    }

    fn tasks(directory: &Path) -> String {
        fs::read_to_string(directory.join("tasks")).unwrap()
    }

    #[test]
    fn a_group_that_is_there_is_joined_if_it_is_the_one_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        group(root, "MB:0=100\n");
        let there = root.join("gold");
        group(&there, "    L3:0=7f0;1=01f\n    MB:0= 20;1= 70\n");
        let same = r#"{"closID": "gold", "l3CacheSchema": "L3:1=1F", "schemata": ["MB:0=20"], "enableMonitoring": true}"#;
        let joined = plan(root, same).unwrap().create(7).unwrap();
        assert_eq!(tasks(&there), "7");
        let monitor = there.join("mon_groups/mine");
        assert_eq!(tasks(&monitor), "7");
        fs::remove_file(monitor.join("tasks")).unwrap();
        joined.remove().unwrap();
        assert!(there.exists() && !monitor.exists());
        plan(root, r#"{"closID": "gold"}"#)
            .unwrap()
            .create(8)
            .unwrap();
        assert_eq!(tasks(&there), "8");
        plan(root, r#"{"closID": "/"}"#).unwrap().create(9).unwrap();
        assert_eq!(tasks(root), "9");

        let before = fs::read_to_string(there.join(SCHEMATA)).unwrap();
        let other = plan(root, r#"{"closID": "gold", "memBwSchema": "MB:0=30"}"#).unwrap();
        let message = other.create(9).unwrap_err().to_string();
        assert!(message.starts_with("linux.intelRdt.closID: "), "{message}");
        assert_eq!(fs::read_to_string(there.join(SCHEMATA)).unwrap(), before);
        let missing = plan(root, r#"{"closID": "silver"}"#).unwrap();
        let message = missing.create(9).unwrap_err().to_string();
        assert!(message.starts_with("linux.intelRdt.closID: "), "{message}");
        assert!(!root.join("silver").exists());
    }

    #[test]
    fn a_group_that_is_not_there_is_made() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        group(root, "MB:0=100\n");
        let asked = r#"{"memBwSchema": "MB:0=30", "schemata": ["L3:0=ff"]}"#;
        plan(root, asked).unwrap().create(7).unwrap();
        assert_eq!(tasks(&root.join("mine")), "7");
        // A file of the kernel takes the lines one after the other; this one keeps the last.
        let text = fs::read_to_string(root.join("mine/schemata")).unwrap();
        assert_eq!(text, "L3:0=ff\n");
        // Of one's own name there must be none.
        assert!(plan(root, "{}").unwrap().create(7).is_err());
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for (json, place) in [
            (r#"{"closID": "../x"}"#, "closID"),
            (r#"{"memBwSchema": "L3:0=1"}"#, "memBwSchema"),
            (r#"{"l3CacheSchema": "MB:0=1"}"#, "l3CacheSchema"),
            (r#"{"schemata": ["L2:0=f", "L3:0=1\nMB:0=1"]}"#, "schemata"),
        ] {
            let message = plan(Path::new("/nonexistent"), json)
                .unwrap_err()
                .to_string();
            assert!(
                message.starts_with(&format!("linux.intelRdt.{place}: ")),
                "{message}"
            );
        }
    }
}
