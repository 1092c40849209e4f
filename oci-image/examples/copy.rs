//! A small `skopeo copy`, from any form to any form:
//!
//! ```sh
//! cargo run --example copy -- saved.tar oci:layout:latest
//! cargo run --example copy -- layout:latest docker-archive:saved.tar:team/app:1
//! ```
//!
//! With registries, as whom `docker login` has logged in:
//!
//! ```sh
//! cargo run --features registry --example copy -- docker://registry.example/team/app:1 oci:layout:latest
//! cargo run --features registry --example copy -- layout:latest docker://registry.example/team/app:2
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use oci_image::{Destination, copy, open};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [from, to] = args.as_slice() else {
        eprintln!(
            "usage: copy PATH[:NAME]|docker://REFERENCE \
             oci:PATH[:NAME]|oci-archive:PATH[:NAME]|docker-archive:PATH[:REFERENCE]|docker://REFERENCE"
        );
        return ExitCode::FAILURE;
    };
    match run(from, to) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("copy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(from: &str, to: &str) -> Result<(), Box<dyn Error>> {
    let to: Destination = to.parse()?;
    let image = open(from)?;
    copy(&image, &to)?;
    writeln!(std::io::stdout(), "{}", image.manifest().digest())?;
    Ok(())
}
