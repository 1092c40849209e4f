//! Runs a command on a throw-away copy of a directory, shows what it changed, and keeps or
//! drops that.
//!
//! ```text
//! # throwaway /etc sed -i s/a/b/ passwd
//! C /passwd
//! Keep these changes? [y/N]
//! ```
//!
//! The copy is an overlay: nothing is copied until it is written. As an ordinary user run it
//! in a user namespace: `unshare --user --map-root-user --mount throwaway …`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use overlayfs::{CopyOptions, Overlay, Upper};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(directory), Some(program)) = (arguments.next(), arguments.next()) else {
        return Err("usage: throwaway DIRECTORY COMMAND [ARGUMENT…]".into());
    };
    let directory = PathBuf::from(directory);
    // A filesystem of its own holds the changes, so that it does not matter where this runs.
    let scratch = tempfile::tempdir()?;
    let _memory = overlayfs::attach(memory()?, scratch.path())?;
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| scratch.path().join(name));
    for path in [&upper, &work, &merged] {
        std::fs::create_dir(path)?;
    }
    let overlay = Overlay::bottom_up([&directory])
        .upper(&upper, &work)
        .mount(&merged)?;
    let status = Command::new(program)
        .args(arguments)
        .current_dir(&merged)
        .status()?;
    overlay.close()?;
    println!("{status}");

    let upper = Upper::over_bottom_up([&directory], &upper)?;
    let mut count = 0;
    for change in upper.changes() {
        println!("{}", change?);
        count += 1;
    }
    if count == 0 {
        println!("nothing changed");
        return Ok(());
    }
    print!("Keep these changes? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if answer.trim() == "y" {
        upper.apply(&directory, CopyOptions::new())?;
        println!("kept");
    } else {
        println!("dropped");
    }
    Ok(())
}

/// A filesystem in memory that is attached nowhere yet.
fn memory() -> std::io::Result<std::os::fd::OwnedFd> {
    use rustix::mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen,
    };
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&fs)?;
    Ok(fsmount(
        &fs,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )?)
}
