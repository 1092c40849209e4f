//! `start`: letting a created container's program run.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, Result, bail};
use namespaces::Process;

use crate::config::Config;
use crate::hooks::{self, Point};
use crate::id::ContainerId;
use crate::state::{State, Status};
use crate::store::Store;

/// Lets the program of a created container run.
pub(crate) fn start(store: &Store, id: &ContainerId) -> Result<()> {
    let locked = store.open(id)?.lock()?;
    let state = locked.state()?;
    match state.status(&locked)? {
        Status::Created => {}
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running => bail!("cannot start an already running container"),
        other => bail!("cannot start a container that is {other}"),
    }
    let process = state.running_process()?;
    let config = locked.config()?;
    hooks::run(
        Point::StartContainer,
        &config,
        &state,
        Status::Created,
        Some(&process),
    )
    .inspect_err(|_| {
        let _ = process.signal(SIGKILL);
    })?;
    let fifo = locked.fifo();
    let cannot = || format!("cannot let the container go through {}", fifo.display());
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits();
    File::options()
        .write(true)
        .custom_flags(i32::try_from(nonblocking).unwrap_or(0))
        .open(&fifo)
        .and_then(|mut file| file.write_all(b"0"))
        .with_context(cannot)?;
    // Until it executes its program the process still reads here: whoever asks now is told that
    // it runs.
    fs::remove_file(&fifo).with_context(cannot)?;
    told_that_it_runs(&config, &state, &process)
}

const SIGKILL: i32 = 9;

/// Runs the hooks for a container that runs. One that fails ends it.
pub(crate) fn told_that_it_runs(config: &Config, state: &State, process: &Process) -> Result<()> {
    hooks::run(Point::Poststart, config, state, Status::Running, None).inspect_err(|_| {
        let _ = process.signal(SIGKILL);
    })
}
