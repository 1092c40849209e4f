//! Stacks 500 layers, the most that the kernel takes, and reads one file out of each: once
//! through a mount, and once without.
//!
//! Run as root, or with `unshare --user --map-root-user --mount`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs;
use std::os::fd::AsRawFd;
use std::time::Instant;

use overlayfs::{MAX_LOWER_LAYERS, Merged, Overlay};

fn main() -> Result<(), Box<dyn Error>> {
    let scratch = tempfile::tempdir()?;
    let layers: Vec<_> = (0..MAX_LOWER_LAYERS)
        .map(|number| scratch.path().join(format!("layer{number}")))
        .collect();
    for (number, layer) in layers.iter().enumerate() {
        fs::create_dir(layer)?;
        fs::write(
            layer.join(format!("file{number}")),
            format!("from layer {number}"),
        )?;
    }

    let start = Instant::now();
    let root = Overlay::bottom_up(&layers).mount_detached()?;
    println!("mounted {} layers in {:?}", layers.len(), start.elapsed());
    // Attached nowhere: the descriptor is the only way in, and the mount ends with it.
    let inside = format!("/proc/self/fd/{}", root.as_raw_fd());
    for number in [0, 250, 499] {
        println!(
            "  {}",
            fs::read_to_string(format!("{inside}/file{number}"))?
        );
    }

    let merged = Merged::bottom_up(&layers)?;
    let start = Instant::now();
    println!(
        "walked {} entries without a mount in {:?}",
        merged.walk().count(),
        start.elapsed()
    );
    Ok(())
}
