//! `cofferdam-vmm`: one virtual machine in one process, over [`kvm_vcpu`].
//!
//! It is a program and no library: what is public is [`main`], and what the fuzzer calls.
#![forbid(unsafe_code)]

mod acpi;
mod board;
mod boot;
mod cli;
mod config;
mod control;
mod error;
mod event;
mod files;
mod filter;
mod firmware;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
#[cfg(feature = "gdb")]
mod gdb;
mod generation;
mod guests;
mod image;
mod input;
mod jail;
mod kit;
mod layout;
mod log;
mod machine;
mod processor;
mod serial;
mod snapshot;
mod stats;
mod store;
mod terminal;
mod virtio;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::error::Error;

/// Does what the command line says; the exit status is that of `cofferdam-vmm --help`.
#[must_use]
pub fn main() -> ExitCode {
    let clock = stats::Clock::start();
    let result = match Cli::parse().command {
        Command::Boot(args) => machine::boot(&args, clock),
        Command::Restore(args) => snapshot::restore(&args, clock),
        Command::Config(args) => config::print(&args).map(|()| 0),
        Command::Guest(args) => guests::write(&args).map(|()| 0),
    };
    match result {
        Ok(status) => status.into(),
        Err(e) => {
            tracing::error!(status = e.status(), error = %e, "failed");
            report(&e);
            e.status().into()
        }
    }
}

/// One line on standard error; when even that cannot be written, the status has to do.
fn report(e: &Error) {
    let _ = writeln!(std::io::stderr(), "cofferdam-vmm: {e}");
}
