//! `delete`: removing what is left of a container.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::cli::Delete;
use crate::config::Config;
use crate::hooks::{self, Point};
use crate::id::ContainerId;
use crate::state::{State, Status};
use crate::store::{Entry, Locked, Store};
use crate::{group, shared_root, warn};

/// How long a killed process may take to end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Removes a container.
pub(crate) fn delete(store: &Store, options: &Delete) -> Result<()> {
    let Some(entry) = store.find(&options.id) else {
        if options.force {
            return Ok(());
        }
        return store.open(&options.id).map(drop);
    };
    let locked = match entry.lock() {
        Err(_) if options.force && store.find(&options.id).is_none() => return Ok(()),
        locked => locked?,
    };
    let state = match locked.state() {
        Ok(state) => state,
        // Of a command that was killed while it removed the container.
        Err(_) if options.force => return locked.remove(),
        Err(error) => return Err(error),
    };
    let status = state.status(&locked)?;
    if !options.force && !matches!(status, Status::Stopped | Status::Created) {
        bail!(
            "cannot delete container {} that is not stopped: {status}",
            options.id.as_str()
        );
    }
    end(&state)?;
    let config = match locked.config() {
        Ok(config) => Some(config),
        Err(error) => {
            warn(&format!("no hooks are run: {}", crate::one_line(&error)));
            None
        }
    };
    remove(locked, &state, config.as_ref())
}

/// Ends the container's first process, and waits until it has ended.
fn end(state: &State) -> Result<()> {
    let Some(process) = state.process()? else {
        return Ok(());
    };
    let killed = process.signal(9);
    // A frozen process would keep the signal for later.
    if group::is_frozen(&state.cgroup) {
        group::open(&state.cgroup)?.thaw()?;
    }
    if !process.wait_timeout(PATIENCE)? {
        killed.context("cannot kill the container's process")?;
        bail!(
            "the container's process {} does not end though it is killed; is it waiting for a disk?",
            process.pid()
        );
    }
    Ok(())
}

/// Removes a container that has ended under this program's eyes, unless somebody has before.
pub(crate) fn when_it_has_ended(
    store: &Store,
    id: &ContainerId,
    state: &State,
    config: &Config,
) -> Result<()> {
    let Some(Ok(locked)) = store.find(id).map(Entry::lock) else {
        return Ok(());
    };
    let same = locked
        .state()
        .is_ok_and(|found| found.created == state.created);
    if same {
        remove(locked, state, Some(config))
    } else {
        Ok(())
    }
}

/// Removes what is left of a container whose first process has ended.
pub(crate) fn remove(locked: Locked, state: &State, config: Option<&Config>) -> Result<()> {
    if state.init.is_some() {
        group::remove(&state.cgroup)?;
    } else {
        // Its making was cut short: what is at its place may be somebody else's.
        group::remove_unused(&state.cgroup)?;
    }
    shared_root::detach(state)?;
    if let Some(resctrl) = &state.resctrl {
        resctrl.remove()?;
    }
    if let Some(config) = config {
        hooks::run(Point::Poststop, config, state, Status::Stopped, None)?;
    }
    locked.remove()
}
