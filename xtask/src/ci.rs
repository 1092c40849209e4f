//! `cargo xtask ci`: everything that must hold before a change is accepted.

use std::fs;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::exec::{self, Interrupted};
use crate::places;
use crate::test::{self, Needs, Totals};

/// No step takes this long; one that does hangs.
const LIMIT: Duration = Duration::from_mins(30);

/// Check everything that must hold before a change is accepted
///
/// Format, lints, dependencies, docs, the fuzz targets' compilation, and then every test, as
/// `cargo xtask test` runs them. Stops at the first step that fails.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave something out: a class of tests, or the check against known vulnerabilities, whose
    /// database is fetched from the network
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_enum)]
    without: Vec<Without>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Without {
    Root,
    Kvm,
    Lab,
    Advisories,
}

impl Without {
    fn needs(self) -> Option<Needs> {
        match self {
            Without::Root => Some(Needs::Root),
            Without::Kvm => Some(Needs::Kvm),
            Without::Lab => Some(Needs::Lab),
            Without::Advisories => None,
        }
    }
}

/// A step that has been taken, or was left out.
struct Step {
    name: &'static str,
    result: String,
    time: Duration,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut steps = Vec::new();
    let result = take(args, &mut steps);
    println!("\n{:<8} {:<34} {:>8}", "step", "result", "time");
    for step in &steps {
        let seconds = step.time.as_secs_f64();
        println!("{:<8} {:<34} {seconds:>6.1} s", step.name, step.result);
    }
    match result {
        Ok(Some(totals)) => {
            totals.print();
            Ok(totals.exit_code())
        }
        Ok(None) => Ok(ExitCode::FAILURE),
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted");
            Ok(ExitCode::from(130))
        }
        Err(error) => Err(error),
    }
}

/// Takes the steps; `None` if one before the tests failed.
fn take(args: &Args, steps: &mut Vec<Step>) -> Result<Option<Totals>> {
    let advisories = !args.without.contains(&Without::Advisories);
    if !steps_of_cargo(advisories, steps)? {
        return Ok(None);
    }
    let without: Vec<Needs> = args.without.iter().filter_map(|w| w.needs()).collect();
    let started = Instant::now();
    eprintln!("\n==== test");
    let totals = test::run_all(&test::Args::everything(without));
    let result = match &totals {
        Ok(totals) if totals.is_good() => "ok",
        _ => "FAILED",
    };
    steps.push(Step {
        name: "test",
        result: result.to_owned(),
        time: started.elapsed(),
    });
    totals.map(Some)
}

fn steps_of_cargo(advisories: bool, steps: &mut Vec<Step>) -> Result<bool> {
    let deny = [
        "deny",
        "--all-features",
        "check",
        "bans",
        "licenses",
        "sources",
    ];
    let doc = ["doc", "--workspace", "--no-deps", "--all-features"];
    let clippy = ["clippy", "--workspace", "--all-targets", "--all-features"];
    let mut all: Vec<(&str, Vec<&str>)> = vec![
        ("fmt", vec!["fmt", "--all", "--check"]),
        ("clippy", [&clippy[..], &["--", "-D", "warnings"]].concat()),
        ("deny", deny.to_vec()),
        ("doc", doc.to_vec()),
    ];
    if advisories {
        all[2].1.push("advisories");
    }
    let fuzz = places::workspace().join("fuzz");
    let has_targets =
        fs::read_dir(fuzz.join("fuzz_targets")).is_ok_and(|mut entries| entries.any(|e| e.is_ok()));
    if has_targets {
        // A workspace of its own, since cargo-fuzz builds with its own flags.
        all.push(("fuzz", vec!["check", "--manifest-path", "fuzz/Cargo.toml"]));
    }
    // So are the benches beside other libraries, for the sake of these.
    all.push((
        "peers",
        vec![
            "check",
            "--benches",
            "--manifest-path",
            "benches/peers/Cargo.toml",
        ],
    ));
    for (name, words) in all {
        eprintln!("\n==== {name}: cargo {}", words.join(" "));
        if name == "deny" {
            let mut version = Command::new(places::cargo());
            version.args(["deny", "--version"]);
            if !exec::run(version, LIMIT, exec::quiet)?.success() {
                bail!("cargo-deny is missing; install with: cargo install --locked cargo-deny");
            }
        }
        let mut command = Command::new(places::cargo());
        command.args(&words).current_dir(places::workspace());
        match name {
            "doc" => {
                command.env("RUSTDOCFLAGS", "-D warnings");
            }
            "fuzz" | "peers" => {
                command.env("CARGO_TARGET_DIR", places::target().join(name));
            }
            _ => {}
        }
        let ran = exec::run(command, LIMIT, exec::aloud)?;
        let result = match (ran.success(), name) {
            (true, "deny") if !advisories => "ok, without advisories as asked".to_owned(),
            (true, _) => "ok".to_owned(),
            (false, _) => format!("FAILED ({})", ran.end()),
        };
        steps.push(Step {
            name,
            result,
            time: ran.time,
        });
        if !ran.success() {
            return Ok(false);
        }
    }
    if !has_targets {
        steps.push(Step {
            name: "fuzz",
            result: "no targets in fuzz/fuzz_targets".to_owned(),
            time: Duration::ZERO,
        });
    }
    Ok(true)
}
