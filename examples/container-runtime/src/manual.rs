//! Completions for shells and manual pages, both from the command line itself.

use std::fs;
use std::io;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use crate::cli::{Cli, Completions, Man};
use crate::list::print;

const NAME: &str = "cofferdam-runtime";

/// Prints a script for a shell.
pub(crate) fn completions(options: &Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut Cli::command(), NAME, &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}

/// Writes a page for the program and one for each subcommand.
pub(crate) fn pages(options: &Man) -> Result<()> {
    let write = || -> io::Result<()> {
        fs::create_dir_all(&options.directory)?;
        clap_mangen::generate_to(Cli::command(), &options.directory)
    };
    write().with_context(|| format!("cannot write pages into {}", options.directory.display()))
}
