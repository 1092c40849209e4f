//! `run`: from a bundle to an exit status.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use namespaces::Starting;

use crate::cli::{Global, Run};
use crate::hooks::{self, Point};
use crate::make::{self, Life};
use crate::signals::Signals;
use crate::state::Status;
use crate::store::Store;
use crate::supervise::{self, exit_code};
use crate::{delete, start};

/// Runs a container, in the foreground unless asked otherwise.
pub(crate) fn run(global: &Global, store: &Store, options: &Run) -> Result<ExitCode> {
    let mut signals = if options.detach {
        None
    } else {
        Some(Signals::catch().context("cannot catch signals")?)
    };
    let life = if options.detach {
        Life::Detached
    } else {
        Life::Tied
    };
    let making = &options.making;
    let read = make::read(making)?;
    let made = make::make(global, store, making, &options.id, &read, life)?;
    let inside = Some(&made.process);
    if let Err(error) = hooks::run(
        Point::StartContainer,
        &made.config,
        &made.state,
        Status::Created,
        inside,
    ) {
        made.abort();
        return Err(error);
    }
    // The process has no handlers yet: for it a signal would be lost, or the end.
    if let Some(signal) = signals.as_mut().and_then(|signals| signals.take().next()) {
        made.abort();
        return Ok(ExitCode::from(
            u8::try_from(128 + signal).unwrap_or(u8::MAX),
        ));
    }
    let mut finished = made.finish(making, Starting::exec)?;
    start::told_that_it_runs(&finished.config, &finished.state, &finished.process)?;
    // From here on others may change the container.
    drop(finished.locked);
    let Some(mut signals) = signals else {
        return Ok(ExitCode::SUCCESS);
    };
    let status = supervise::wait(&mut finished.child, &mut signals, finished.terminal)?;
    if !options.keep {
        delete::when_it_has_ended(store, &options.id, &finished.state, &finished.config)?;
    }
    Ok(ExitCode::from(exit_code(status)))
}
