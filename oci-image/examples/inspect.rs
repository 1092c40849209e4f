//! Shows what an image is and verifies all of it:
//!
//! ```sh
//! cargo run --example inspect -- hello:latest
//! cargo run --features registry --example inspect -- docker://registry.example/team/app
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::process::ExitCode;

use oci_image::TarReader;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: inspect PATH[:NAME]|docker://REFERENCE");
        return ExitCode::FAILURE;
    };
    match inspect(path.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inspect: {error}");
            ExitCode::FAILURE
        }
    }
}

fn inspect(path: &std::path::Path) -> Result<(), Box<dyn Error>> {
    let image = oci_image::open(path)?;
    println!("manifest  {}", image.manifest().digest());
    println!("config    {}", image.config().digest());
    println!("platform  {}", image.config().platform());
    match image.process(&[]) {
        Ok(process) => println!("command   {:?}", process.args),
        Err(error) => println!("command   none ({error})"),
    }
    for layer in image.layers() {
        let reader = layer.open()?;
        let compression = reader.compression();
        let mut archive = TarReader::new(reader, image.limits());
        let (mut entries, mut bytes) = (0u64, 0u64);
        while let Some(entry) = archive.next_entry()? {
            entries += 1;
            bytes += entry.size;
        }
        // The end of the stream is where it is verified.
        std::io::copy(&mut archive.into_inner(), &mut std::io::sink())?;
        println!(
            "layer     {} {compression:?}, {entries} entries, {bytes} bytes of contents",
            layer.descriptor().digest
        );
    }
    Ok(())
}
