//! Pulls an image into a store, with what happens told on the way, and unpacks it there, layer by layer:
//!
//! ```sh
//! cargo run --features registry --example pull -- registry.example/team/app:1 store
//! ```
//!
//! Broken off and started again, it goes on where it was.
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;

use oci_image::{
    Devices, Ownership, Platform, Progress, Registry, RegistryOptions, Store, UnpackOptions,
    Whiteouts,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, store] = args.as_slice() else {
        eprintln!("usage: pull REFERENCE STORE");
        return ExitCode::FAILURE;
    };
    match pull(name, store) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pull: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pull(name: &str, store: &str) -> Result<(), Box<dyn Error>> {
    let name = name.parse()?;
    let options = RegistryOptions::from_env().progress(|event| match event {
        Progress::Started { digest, size } => eprintln!("{digest}: {size} bytes"),
        Progress::Resumed { digest, offset } => eprintln!("{digest}: goes on at {offset}"),
        Progress::Finished { digest } => eprintln!("{digest}: done"),
        Progress::Retrying { reason, wait, .. } => eprintln!("again in {wait:?}: {reason}"),
        _ => {}
    });
    let image = Registry::new(options).image(&name, &Platform::host())?;
    let store = Store::open(store)?;
    let image = store.add(&image, &name)?;

    let me = std::fs::metadata(store.path())?;
    let mut options = UnpackOptions::new(Whiteouts::OverlayUser);
    if me.uid() != 0 {
        let (uid, gid) = (me.uid(), me.gid());
        options = options
            .ownership(Ownership::Squash { uid, gid })
            .devices(Devices::Skip);
    }
    for layer in &store.unpack(&image, &options)?.layers {
        writeln!(std::io::stdout(), "{}", layer.display())?;
    }
    Ok(())
}
