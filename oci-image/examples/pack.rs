//! Packs a directory into an OCI layout, the same bytes each time:
//!
//! ```sh
//! SOURCE_DATE_EPOCH=0 cargo run --example pack -- rootfs hello:latest --env PATH=/bin /bin/sh
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use oci_image::{ImageBuilder, LayoutWriter, PackOptions, Platform, walk};

const USAGE: &str = "usage: pack DIRECTORY LAYOUT[:NAME] [--env NAME=VALUE]… [COMMAND…]";

fn main() -> ExitCode {
    match pack(std::env::args().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pack: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pack(mut args: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let (Some(directory), Some(target)) = (args.next(), args.next()) else {
        return Err(USAGE.into());
    };
    let (path, name) = target.split_once(':').unwrap_or((&target, "latest"));

    // Everything belongs to root, whoever packs it; SOURCE_DATE_EPOCH bounds the times.
    let options = PackOptions::from_env()?.owner(0, 0);
    let mut image = ImageBuilder::new(&Platform::host().without_level());
    if let Some(seconds) = options.latest_time() {
        image = image.created(seconds);
    }
    let mut command = Vec::new();
    while let Some(arg) = args.next() {
        if arg == "--env" && command.is_empty() {
            let variable = args.next().ok_or(USAGE)?;
            let (key, value) = variable.split_once('=').ok_or(USAGE)?;
            image = image.env(key, value);
        } else if arg.starts_with('-') && command.is_empty() {
            return Err(USAGE.into());
        } else {
            command.push(arg);
        }
    }

    let mut entries = walk(&directory)?;
    let mut layout = LayoutWriter::open(path)?;
    let layer = layout.layer(&mut entries, &options)?;
    for socket in entries.sockets() {
        eprintln!("pack: left out the socket {}", socket.display());
    }
    let manifest = layout.image(Some(name), image.layer(layer, "pack").cmd(command))?;
    writeln!(std::io::stdout(), "{}", manifest.digest())?;
    Ok(())
}
