//! `cofferdam-runtime`: run OCI bundles.
//!
//! One file per concern: [`cli`] is what a person types; [`config`] the types of `config.json`, and
//! [`load`] the reading of it; [`refuse`] what this runtime cannot honour; [`mounts`], [`process`],
//! [`container`] and [`group`] turn the rest into mounts, a process, its namespaces and its control
//! group, [`devices`] into device rules; [`run`] is the whole of a run, in order; [`supervise`]
//! waits and passes signals on; [`spec`] and [`features`] tell what can be asked for.
#![forbid(unsafe_code)]

mod cli;
mod config;
mod container;
mod devices;
mod features;
mod group;
mod id;
mod load;
mod mounts;
mod process;
mod refuse;
mod run;
mod signals;
mod spec;
mod supervise;

use std::process::ExitCode;

use clap::Parser as _;

/// Exit status when the runtime itself fails, as runc has it.
const OWN_FAILURE: u8 = 1;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { OWN_FAILURE } else { 0 });
        }
    };
    let result = match cli.command {
        cli::Command::Spec(options) => spec::write(&options).map(|()| ExitCode::SUCCESS),
        cli::Command::Run(options) => run::run(&options),
        cli::Command::Features => features::print().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("cofferdam-runtime: {}", one_line(&error));
        ExitCode::from(OWN_FAILURE)
    })
}

/// Tells of something that is not as the configuration may have meant it.
fn warn(what: &str) {
    eprintln!("cofferdam-runtime: warning: {what}");
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
