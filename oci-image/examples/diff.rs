//! Shows what differs between two images: `A` for what was added, `M` for what was changed, `D` for what is gone.
//!
//! ```sh
//! cargo run --example diff -- old:latest new:latest
//! cargo run --features registry --example diff -- docker://registry.example/app:1 docker://registry.example/app:2
//! ```
#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use oci_image::{ChangeKind, Devices, Ownership, UnpackOptions, Whiteouts};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [old, new] = args.as_slice() else {
        eprintln!("usage: diff PATH[:NAME]|docker://REFERENCE PATH[:NAME]|docker://REFERENCE");
        return ExitCode::FAILURE;
    };
    match diff(old.as_ref(), new.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("diff: {error}");
            ExitCode::FAILURE
        }
    }
}

fn diff(old: &Path, new: &Path) -> Result<(), Box<dyn Error>> {
    let (old, new) = (unpack(old)?, unpack(new)?);
    let mut out = std::io::stdout().lock();
    for change in oci_image::diff(&old, &new)? {
        let change = change?;
        let letter = match change.kind {
            ChangeKind::Added => 'A',
            ChangeKind::Modified => 'M',
            ChangeKind::Removed => 'D',
        };
        writeln!(out, "{letter} /{}", change.entry.path.display())?;
    }
    Ok(())
}

/// Everything of the image in one directory, which is removed in the end.
fn unpack(image: &Path) -> Result<tempfile::TempDir, Box<dyn Error>> {
    let image = oci_image::open(image)?;
    let directory = tempfile::tempdir()?;
    let root = File::open(&directory)?;
    let me = root.metadata()?;
    let mut options = UnpackOptions::new(Whiteouts::Apply);
    if me.uid() != 0 {
        let ids = Ownership::Squash {
            uid: me.uid(),
            gid: me.gid(),
        };
        options = options.ownership(ids).devices(Devices::Skip);
    }
    image.unpack_flat(&root, &options)?;
    Ok(directory)
}
