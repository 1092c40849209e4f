//! Gives a stack of root's layers other owners, without changing a file: each layer is an
//! idmapped mount.
//!
//! Linux 5.19, on a filesystem that can be idmapped (ext4, xfs, btrfs; tmpfs since 6.3).
//! Run as root: `idmapped /proc/PID/ns/user LAYER…`, where PID is in a user namespace whose
//! maps are to be used. The layers are given bottom first.

#![forbid(unsafe_code)]

use std::error::Error;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

use overlayfs::{Overlay, attach, idmapped};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let namespace = File::open(
        arguments
            .next()
            .ok_or("usage: idmapped /proc/PID/ns/user LAYER LAYER…")?,
    )?;
    // Kernels before 6.15 only take layers that are attached, so they are, in a directory
    // that goes away again.
    let scratch = tempfile::tempdir()?;
    let mut layers = Vec::new();
    for (number, layer) in arguments.enumerate() {
        let place = scratch.path().join(number.to_string());
        fs::create_dir(&place)?;
        layers.push(attach(idmapped(layer, &namespace)?, place)?);
    }
    let root =
        Overlay::bottom_up(layers.iter().map(overlayfs::Mounted::target)).mount_detached()?;
    for entry in fs::read_dir(format!("/proc/self/fd/{}", root.as_raw_fd()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        println!(
            "{:>7} {:>7} {}",
            metadata.uid(),
            metadata.gid(),
            entry.file_name().display()
        );
    }
    Ok(())
}
