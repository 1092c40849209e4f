//! The programs that the demo runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::stage::Stage;
use crate::places;

/// Where the programs are.
pub(crate) struct Programs {
    /// `cofferdam`, the engine.
    pub(crate) engine: PathBuf,
    /// `cofferdam-vmm`.
    pub(crate) vmm: PathBuf,
}

impl Programs {
    /// Builds them, optimised, so that what is measured is what people would use.
    pub(crate) fn build(stage: &Stage) -> Result<Self> {
        // Cargo's progress goes to the terminal as it is.
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(places::workspace())
            .args(["build", "--release", "-p", "engine", "-p", "vmm"])
            .status()
            .context("cannot start cargo")?;
        if stage.interrupted().is_some() {
            bail!("interrupted");
        }
        if !status.success() {
            bail!("cargo could not build the programs; its messages are above");
        }
        Self::find(&places::target().join("release"))
    }

    /// Finds them in the directory that they were built in.
    pub(crate) fn find(dir: &Path) -> Result<Self> {
        let program = |name: &str| {
            let path = dir.join(name);
            path.canonicalize().with_context(|| {
                format!(
                    "no program {}; build it with: cargo build --release -p engine -p vmm",
                    path.display()
                )
            })
        };
        Ok(Self {
            engine: program("cofferdam")?,
            vmm: program("cofferdam-vmm")?,
        })
    }
}
