//! `pause` and `resume`: stopping a container's processes, and letting them go on.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::group;
use crate::id::ContainerId;
use crate::state::Status;
use crate::store::Store;

/// How long it may take until the last process stands still.
const PATIENCE: Duration = Duration::from_secs(10);

/// Stops every process of a container.
pub(crate) fn pause(store: &Store, id: &ContainerId) -> Result<()> {
    let locked = store.open(id)?.lock()?;
    let state = locked.state()?;
    match state.status(&locked)? {
        Status::Running | Status::Created => {}
        Status::Stopped => bail!("container not running: {}", id.as_str()),
        other => bail!("cannot pause a container that is {other}"),
    }
    let group = group::open(&state.cgroup)?;
    group
        .freeze()
        .and_then(|()| group.wait_frozen(PATIENCE))
        .inspect_err(|_| {
            // Not half of them.
            let _ = group.thaw();
        })
        .context("cannot pause the container")
}

/// Lets the processes of a paused container go on.
pub(crate) fn resume(store: &Store, id: &ContainerId) -> Result<()> {
    let locked = store.open(id)?.lock()?;
    let state = locked.state()?;
    match state.status(&locked)? {
        Status::Paused => {}
        Status::Stopped => bail!("container not running: {}", id.as_str()),
        other => bail!("container not paused: {} is {other}", id.as_str()),
    }
    group::open(&state.cgroup)?
        .thaw()
        .context("cannot resume the container")
}
