//! `cargo xtask demo`: a container and a virtual machine side by side.

mod busybox;
mod container;
mod guest;
mod programs;
mod stage;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use programs::Programs;
use stage::Stage;

/// Run an image in a container and a guest on a virtual CPU, and compare what each costs
///
/// Builds the programs, packs a small busybox image, runs it in a container
/// with limits, shows that isolation and limits are real, runs a bare-metal
/// guest on a virtual CPU, and prints both side by side; every number is
/// measured in that run. Works as root and as an ordinary user (who may set
/// fewer limits). Nothing is left behind.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// An OCI layout (PATH or PATH:TAG) or a saved archive to run instead of the image made from
    /// busybox
    #[arg(long, value_name = "PATH")]
    image: Option<String>,

    /// Use the programs that are built there, instead of building them
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

pub(crate) fn run(args: Args) -> Result<ExitCode> {
    let mut stage = Stage::set()?;
    let played = play(&mut stage, args);
    // Interrupted, whatever failed because of it is no news.
    if let Some(signal) = stage.interrupted() {
        stage.close()?;
        eprintln!("\ninterrupted; everything is cleaned up");
        return Ok(ExitCode::from(128 + u8::try_from(signal).unwrap_or(0)));
    }
    played?;
    stage.close()?;
    Ok(ExitCode::SUCCESS)
}

fn play(stage: &mut Stage, args: Args) -> Result<()> {
    let programs = match args.programs {
        Some(dir) => Programs::find(&dir)?,
        None => Programs::build(stage)?,
    };

    stage.say("$DEMO is a temporary directory.");
    stage.scene("An image");
    let image = match args.image {
        Some(image) => {
            stage.say(&format!("{image}, as it is."));
            image
        }
        None => busybox::pack(stage, &programs).context("cannot make the busybox image")?,
    };

    stage.scene("A container");
    let mut containers = container::Containers::new(stage, &programs, image);
    if !containers.first(stage)? {
        stage.say("The image has no shell. The rest is shown with an image that has one:");
        let image = busybox::pack(stage, &programs).context("cannot make the busybox image")?;
        containers = container::Containers::new(stage, &programs, image);
        containers.first(stage)?;
    }

    stage.scene("Isolation and limits are real");
    let seen = containers.proofs(stage)?;

    stage.scene("A guest on a virtual CPU");
    let guests = guest::run(stage, &programs)?;

    stage.scene("Side by side");
    let container = containers.measure(stage)?;
    table::print(stage, &seen, &container, guests.as_ref());
    Ok(())
}
