//! `cofferdam-runtime`: run OCI bundles.
//!
//! One file per concern. [`cli`] is what a person or an engine types. [`config`] has the types of
//! `config.json`, [`load`] reads it, and [`refuse`] knows what this runtime cannot honour.
//! [`container`], [`process`], [`attributes`], [`mounts`], [`mount_options`], [`nodes`] and [`seccomp`] turn the rest
//! into a process with its namespaces and file systems, and [`place`] tells what the kernel refused of it; [`group`], [`resources`] and [`devices`]
//! into its control group.
//!
//! [`make`] makes a container out of these, and [`store`] keeps its [`state`]. Then there is a file
//! for each command, and what some of them share: [`hooks`], [`terminal`], [`supervise`].
//!
//! It is a program and no library: what is public is [`main`], and what the fuzzer calls.
#![forbid(unsafe_code)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "they are for who reads the source"
)]

mod attributes;
mod checkpoint;
mod cli;
mod config;
mod container;
mod criu;
mod delete;
mod devices;
mod events;
mod exec;
mod features;
mod files;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod group;
mod hooks;
mod id;
mod kill;
mod list;
mod load;
mod log;
mod make;
mod manual;
mod mount_options;
mod mounts;
mod network;
mod nodes;
mod pause;
mod place;
mod process;
mod ps;
mod refuse;
mod resctrl;
mod resources;
mod restore;
mod rootless;
mod run;
mod scope;
mod seccomp;
mod shared_root;
mod signals;
mod spec;
mod start;
mod state;
mod store;
mod supervise;
mod terminal;
mod update;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser as _;

use cli::{Cli, Command};
use store::Store;

/// Exit status when the runtime itself fails, as runc has it.
const OWN_FAILURE: u8 = 1;

/// The same for `exec`, whose process may well end with 1.
const EXEC_FAILURE: u8 = 255;

/// Does what the command line says; the exit status is that of `cofferdam-runtime --help`.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { OWN_FAILURE } else { 0 });
        }
    };
    log::open(&cli.global);
    let failure = match cli.command {
        Command::Exec(_) => EXEC_FAILURE,
        _ => OWN_FAILURE,
    };
    execute(&cli).unwrap_or_else(|error| {
        log::write(log::Level::Error, &one_line(&error));
        ExitCode::from(failure)
    })
}

fn execute(cli: &Cli) -> Result<ExitCode> {
    let global = &cli.global;
    let store = || Store::new(global.root.as_deref());
    let done = |()| ExitCode::SUCCESS;
    if matches!(
        cli.command,
        Command::Create(_)
            | Command::Run(_)
            | Command::Exec(_)
            | Command::Start(_)
            | Command::Restore(_)
    ) {
        // Before anything is opened: the program is executed again.
        namespaces::protect_own_executable().context("no container is touched")?;
    }
    match &cli.command {
        Command::Create(options) => make::create(global, &store()?, options).map(done),
        Command::Start(options) => start::start(&store()?, &options.id).map(done),
        Command::Run(options) => run::run(global, &store()?, options),
        Command::State(options) => list::state(&store()?, &options.id).map(done),
        Command::Kill(options) => kill::kill(&store()?, options).map(done),
        Command::Delete(options) => delete::delete(&store()?, options).map(done),
        Command::List(options) => list::list(&store()?, options).map(done),
        Command::Ps(options) => ps::ps(&store()?, options).map(done),
        Command::Exec(options) => exec::exec(&store()?, options),
        Command::Pause(options) => pause::pause(&store()?, &options.id).map(done),
        Command::Resume(options) => pause::resume(&store()?, &options.id).map(done),
        Command::Update(options) => update::update(&store()?, options).map(done),
        Command::Events(options) => events::events(&store()?, options).map(done),
        Command::Checkpoint(options) => {
            checkpoint::checkpoint(global, &store()?, options).map(done)
        }
        Command::Restore(options) => restore::restore(global, &store()?, options),
        Command::Spec(options) => spec::write(options).map(done),
        Command::Features => features::print().map(done),
        Command::Completions(options) => manual::completions(options).map(done),
        Command::Man(options) => manual::pages(options).map(done),
    }
}

/// Tells of something that is not as the configuration may have meant it.
fn warn(what: &str) {
    log::write(log::Level::Warning, what);
}

/// An error and its causes, without those that the line names already.
fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if line.is_empty() {
            line = cause;
        } else if !line.contains(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}
