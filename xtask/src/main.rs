//! The project's own commands, run as `cargo xtask COMMAND`.
#![forbid(unsafe_code)]

mod bench;
mod ci;
mod demo;
mod exec;
mod lab;
mod places;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Cofferdam's own commands: see it work, test it, measure it.
#[derive(Parser)]
#[command(bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Args),
    Test(test::Args),
    Lab(lab::Args),
    Bench(bench::Args),
    Ci(ci::Args),
    #[command(hide = true)]
    LabAgent,
    #[command(hide = true)]
    LabTests {
        limit: u64,
    },
    #[command(hide = true)]
    LabMachines,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(args),
        Command::Test(args) => test::run(&args),
        Command::Lab(args) => Ok(lab::run(&args)),
        Command::Bench(args) => bench::run(&args),
        Command::Ci(args) => ci::run(&args),
        Command::LabAgent => lab::agent::run(),
        Command::LabMachines => bench::run_inside(),
        Command::LabTests { limit } => test::run_inside(limit),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
