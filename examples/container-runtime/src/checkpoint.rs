//! `checkpoint` and `restore`, by criu(8).

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::{Checkpoint, Global, Restore};
use crate::store::Store;

/// Saves a running container.
pub(crate) fn checkpoint(_: &Global, _: &Store, options: &Checkpoint) -> Result<()> {
    bail!("checkpoint of {}: not supported yet", options.id.as_str())
}

/// Runs a container from a checkpoint.
pub(crate) fn restore(_: &Global, _: &Store, options: &Restore) -> Result<ExitCode> {
    bail!("restore of {}: not supported yet", options.id.as_str())
}
