//! `cargo xtask bench`: the libraries' benches, also beside other libraries, and the programs
//! beside their peers.

mod bundle;
mod contender;
mod images;
mod machines;
mod peers;
mod plot;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::exec::{self, Interrupted};
use crate::places;

/// All benches together take minutes.
const LIMIT: Duration = Duration::from_hours(2);
/// So does compiling the programs for a measurement.
const BUILD: Duration = Duration::from_mins(30);

/// Measure: the libraries' benches, or whole programs beside their peers
///
/// Without --peers, the criterion benches run, and then those beside other libraries, which are a
/// workspace of their own in benches/peers; their reports are in target/criterion. With it, whole
/// commands are run in turn, round by round: a C program that does the least there is to
/// do, this project's programs, and those of others. Printed are medians and their ratios; they
/// are in target/bench/peers.json and peers.svg too. With --images, large images in memory are
/// unpacked by us and by others in the same way; the figures are in target/bench/images.json too.
/// Only ratios from one run mean something, and only on a machine that is otherwise idle.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run whole commands in turn with those of other projects and print the ratios
    #[arg(long, group = "whole")]
    peers: bool,
    /// Boot a distribution's kernel in turn with cofferdam-vmm and with QEMU's microvm, in the lab
    #[arg(long, group = "whole")]
    machines: bool,
    /// Unpack images in turn with other projects' programs and print the ratios
    #[arg(long, group = "whole")]
    images: bool,
    /// How many rounds: 40 with --peers, 7 with --machines and 5 with --images unless given
    #[arg(long, value_name = "N", requires = "whole",
        value_parser = clap::value_parser!(u32).range(3..=10_000))]
    rounds: Option<u32>,
    /// How large the images are, in percent of 1.4 GiB, 50 MiB and 0.6 GiB
    #[arg(long, value_name = "PERCENT", default_value_t = 100, requires = "images",
        value_parser = clap::value_parser!(u32).range(1..=1000))]
    size: u32,
    /// Only the benches whose names contain this
    #[arg(conflicts_with = "whole")]
    filter: Option<String>,
}

pub(crate) use machines::run_inside;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let result = if args.peers {
        peers::run(args.rounds.unwrap_or(40))
    } else if args.machines {
        machines::run(args.rounds.unwrap_or(7))
    } else if args.images {
        images::run(args.rounds.unwrap_or(5), args.size)
    } else {
        criterion(args.filter.as_deref())
    };
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted");
            Ok(ExitCode::from(130))
        }
        Err(error) => Err(error),
    }
}

fn criterion(filter: Option<&str>) -> Result<()> {
    let own = ["--package", "benches"];
    let beside_others = ["--manifest-path", "benches/peers/Cargo.toml"];
    for which in [own, beside_others] {
        let mut command = Command::new(places::cargo());
        command
            .arg("bench")
            .args(which)
            .args(["--benches", "--"])
            .args(filter)
            .current_dir(places::workspace())
            // Reports of both in one place.
            .env("CARGO_TARGET_DIR", places::target());
        let ran = exec::run(command, LIMIT, exec::aloud)?;
        if !ran.success() {
            bail!(
                "the benches failed ({}); what they said is above",
                ran.end()
            );
        }
    }
    Ok(())
}

/// Runs a program to its end, which must be a good one; what it said.
fn done(command: Command, show: fn(&[u8])) -> Result<String> {
    let what = command.get_program().display().to_string();
    let ran = exec::run(command, BUILD, show)?;
    if !ran.success() {
        bail!("{what} failed ({}):\n{}", ran.end(), ran.output.trim_end());
    }
    Ok(ran.output)
}

/// Where results are written.
fn directory() -> Result<PathBuf> {
    let out = places::target().join("bench");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    Ok(out)
}

/// Writes results as NAME.json; where to.
fn write(name: &str, results: &impl Serialize) -> Result<PathBuf> {
    let path = directory()?.join(name).with_extension("json");
    fs::write(&path, serde_json::to_string_pretty(results)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// In which order so many are run in a round: each begins with another, so that no one always
/// follows the same and all see the same machine.
fn order(round: u32, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| (turn + round as usize) % count)
}
