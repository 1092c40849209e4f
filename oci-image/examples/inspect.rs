//! Shows what an image is and verifies all of it:
//!
//! ```sh
//! cargo run --example inspect -- hello:latest
//! cargo run --features registry --example inspect -- docker://registry.example/team/app
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use oci_image::TarReader;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let result = match args.as_slice() {
        [path] if path != "--help" => inspect(path.as_ref()),
        _ => Err("usage: inspect PATH[:NAME]|docker://REFERENCE".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("inspect: {error}");
            ExitCode::FAILURE
        }
    }
}

fn inspect(path: &Path) -> Result<(), Box<dyn Error>> {
    let image = oci_image::open(path)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "manifest  {}", image.manifest().digest())?;
    writeln!(out, "config    {}", image.config().digest())?;
    writeln!(out, "platform  {}", image.config().platform())?;
    match image.process(&[]) {
        Ok(process) => writeln!(out, "command   {:?}", process.args)?,
        Err(error) => writeln!(out, "command   none ({error})")?,
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
        writeln!(
            out,
            "layer     {} {compression:?}, {entries} entries, {bytes} bytes of contents",
            layer.descriptor().digest
        )?;
    }
    Ok(())
}
