//! `ps`: the processes of a container.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use cgroups::Cgroup;

use crate::cli::{Format, Ps};
use crate::group;
use crate::list::print;
use crate::store::Store;

/// Lists the processes of a container.
pub(crate) fn ps(store: &Store, options: &Ps) -> Result<()> {
    let state = store.open(&options.id)?.state()?;
    let mut pids = BTreeSet::new();
    match group::find(&state.cgroup)? {
        Some(group) => collect(&group, &mut pids)?,
        None => {
            if let Some(process) = state.process()? {
                pids.insert(process.pid());
            }
        }
    }
    match options.format {
        Format::Json => {
            print(&serde_json::to_string(&pids).context("cannot write the list as JSON")?)
        }
        Format::Table => table(&options.options, &pids),
    }
}

/// Those of the group, and of the groups that the container made in it.
fn collect(group: &Cgroup, pids: &mut BTreeSet<u32>) -> Result<()> {
    pids.extend(group.processes()?);
    for child in group.children()? {
        match group.open(&child) {
            Ok(child) => collect(&child, pids)?,
            // It has been removed since.
            Err(cgroups::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn table(options: &[String], pids: &BTreeSet<u32>) -> Result<()> {
    let output = Command::new("ps")
        .args(options)
        .output()
        .context("cannot run ps(1); install procps, or ask for --format json")?;
    if !output.status.success() {
        bail!(
            "ps {}: {}",
            options.join(" "),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let title = lines.next().unwrap_or_default();
    let Some(column) = title.split_whitespace().position(|name| name == "PID") else {
        bail!("ps {}: prints no PID column; add it", options.join(" "));
    };
    let mut shown = vec![title];
    shown.extend(lines.filter(|line| {
        line.split_whitespace()
            .nth(column)
            .and_then(|pid| pid.parse().ok())
            .is_some_and(|pid| pids.contains(&pid))
    }));
    print(&shown.join("\n"))
}
