//! Checks a Dockerfile like a compiler, and shows what a build of it would do:
//!
//! ```sh
//! cargo run --example dockerfile -- Dockerfile --target build VERSION=13
//! ```
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use oci_image::dockerfile::{Action, Base, BuildOptions, Dockerfile};
use oci_image::{ImageConfig, Platform};

const USAGE: &str = "usage: dockerfile FILE [--target STAGE] [NAME=VALUE]…";

fn main() -> ExitCode {
    match show(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn show(mut args: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let path = args
        .next()
        .filter(|path| !path.starts_with('-'))
        .ok_or(USAGE)?;
    let mut out = std::io::stdout().lock();
    let mut options = BuildOptions::new();
    while let Some(arg) = args.next() {
        if arg == "--target" {
            options = options.target(args.next().ok_or(USAGE)?);
        } else {
            let (name, value) = arg.split_once('=').ok_or(USAGE)?;
            options = options.arg(name, value);
        }
    }
    let file = Dockerfile::read(path)?;
    for warning in file.warnings() {
        eprintln!("{warning}\n");
    }
    let plan = file.plan(&options)?;
    for name in plan.unused_args() {
        eprintln!("warning: no ARG declares {name}\n");
    }
    let mut built = BTreeMap::new();
    for stage in plan.stages() {
        let evaluated = match stage.base() {
            Base::Stage(number) => stage.evaluate_after(&built[number])?,
            // Whoever builds would open the image here; this shows the stage on top of nothing.
            Base::Scratch | Base::Image(_) => {
                stage.evaluate(&ImageConfig::new(&Platform::host()))?
            }
        };
        writeln!(out, "stage {} from {:?}", stage.number(), stage.base())?;
        for step in &evaluated.steps {
            let mark = if step.action == Action::Configure {
                ' '
            } else {
                '*'
            };
            writeln!(out, "  {mark} {}", step.created_by)?;
        }
        built.insert(stage.number(), evaluated);
    }
    if let Some((_, last)) = built.last_key_value() {
        let config = serde_json::to_string_pretty(&last.config.config)?;
        writeln!(out, "{config}")?;
    }
    Ok(())
}
