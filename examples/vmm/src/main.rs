//! `cofferdam-vmm`: one virtual machine in one process, over [`kvm_vcpu`].
#![forbid(unsafe_code)]

mod cli;
mod error;
mod guests;
mod image;
mod machine;
mod serial;
mod stats;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::error::Error;

fn main() -> ExitCode {
    let clock = stats::Clock::start();
    let result = match Cli::parse().command {
        Command::Boot(args) => machine::boot(&args, clock),
        Command::Guest(args) => guests::write(&args).map(|()| 0),
    };
    match result {
        Ok(status) => status.into(),
        Err(e) => {
            report(&e);
            e.status().into()
        }
    }
}

/// One line on standard error; when even that cannot be written, the status has to do.
fn report(e: &Error) {
    let _ = writeln!(std::io::stderr(), "cofferdam-vmm: {e}");
}
