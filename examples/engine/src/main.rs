//! `cofferdam`: run OCI images as containers.
//!
//! One file per concern: [`cli`] is what a person types; [`run`] is the whole of a run, in order;
//! [`rundir`] its directory, [`rootfs`] its root filesystem, [`group`] its limits, [`process`] the
//! process inside; [`supervise`] waits and passes signals on; [`privilege`] makes an ordinary user
//! root of a namespace; [`report`] tells how it ended. [`pack`] makes images of directories.
#![forbid(unsafe_code)]

mod cli;
mod group;
mod pack;
mod privilege;
mod process;
mod report;
mod rootfs;
mod run;
mod rundir;
mod signals;
mod supervise;

use std::process::ExitCode;

use clap::Parser as _;

/// Exit status when cofferdam itself fails, as Docker has it.
const OWN_FAILURE: u8 = 125;

fn main() -> ExitCode {
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { OWN_FAILURE } else { 0 });
        }
    };
    let result = match cli.command {
        cli::Command::Run(run) => run::run(cli.root, &run),
        cli::Command::Pack(pack) => pack::pack(&pack),
    };
    result.unwrap_or_else(|error| {
        eprintln!("cofferdam: {}", one_line(&error));
        let shell_status = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<namespaces::Error>()?.shell_status());
        ExitCode::from(shell_status.unwrap_or(OWN_FAILURE))
    })
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
