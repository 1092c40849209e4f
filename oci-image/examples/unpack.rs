//! Verifies an image and unpacks it into a new directory, as the caller's own files:
//!
//! ```sh
//! cargo run --example unpack -- hello:latest rootfs
//! cargo run --features registry --example unpack -- docker://registry.example/team/app rootfs
//! ```
//!
//! From a registry, layers are unpacked while they come.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use oci_image::{Devices, Ownership, UnpackOptions, Whiteouts};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [image, directory] = args.as_slice() else {
        eprintln!("usage: unpack PATH[:NAME]|docker://REFERENCE DIRECTORY");
        return ExitCode::FAILURE;
    };
    match unpack(image.as_ref(), directory.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("unpack: {error}");
            ExitCode::FAILURE
        }
    }
}

fn unpack(image: &Path, directory: &Path) -> Result<(), Box<dyn Error>> {
    let image = oci_image::open(image)?;
    std::fs::create_dir(directory)
        .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
    let root = File::open(directory)?;
    let me = root.metadata()?;
    let mut options = UnpackOptions::new(Whiteouts::Apply);
    if me.uid() != 0 {
        let ids = Ownership::Squash {
            uid: me.uid(),
            gid: me.gid(),
        };
        options = options.ownership(ids).devices(Devices::Skip);
    }
    let report = image.unpack_flat(&root, &options)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{} entries, {} bytes", report.entries, report.bytes)?;
    for skipped in &report.skipped {
        writeln!(out, "left out: {} ({:?})", skipped.entry, skipped.reason)?;
    }
    Ok(())
}
