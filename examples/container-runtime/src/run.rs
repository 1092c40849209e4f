//! `cofferdam-runtime run`: from a bundle to an exit status.

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::cli::Run;
use crate::container;
use crate::group::Plan;
use crate::load::load;
use crate::mounts::Mounts;
use crate::signals::Signals;
use crate::supervise::{self, exit_code};

/// Runs a container in the foreground.
pub(crate) fn run(options: &Run) -> Result<ExitCode> {
    if options.no_pivot {
        bail!(
            "--no-pivot is refused: with chroot alone a container can reach the machine's root filesystem; run from a root filesystem that can be pivoted, not from an initramfs"
        );
    }
    namespaces::protect_own_executable().context("no container is started")?;
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let bundle = fs::canonicalize(&options.bundle)
        .with_context(|| format!("cannot find the bundle {}", options.bundle.display()))?;
    let config = load(&bundle)?;
    // Everything is understood before anything is made.
    let mut command = container::command(&config, &bundle)?;
    let mounts = Mounts::of(&config, &bundle)?;
    let group = Plan::of(&config, &options.id)?.create()?;

    let mounts = mounts.resolve(group.cgroup()?)?;
    command
        .mounts(mounts.mounts)
        .read_only_paths(mounts.read_only);
    if let Some(directory) = group.cgroup()?.unified_directory() {
        command.cgroup(directory);
    }

    let cannot_start = || format!("cannot start the container {}", options.id.as_str());
    let starting = command.start().with_context(cannot_start)?;
    // It was born in the unified hierarchy's group; this adds those of v1.
    group.cgroup()?.attach(starting.pid())?;
    if let Some(file) = &options.pid_file {
        write_whole(file, &starting.pid().to_string())
            .with_context(|| format!("cannot write the pid file {}", file.display()))?;
    }
    // The process has no handlers yet: for it a signal would be lost, or the end.
    if let Some(signal) = signals.take().next() {
        return Ok(ExitCode::from(
            u8::try_from(128 + signal).unwrap_or(u8::MAX),
        ));
    }
    let mut child = starting.exec().with_context(cannot_start)?;
    drop(command);

    let status = supervise::wait(&mut child, &mut signals)?;
    group.remove()?;
    Ok(ExitCode::from(exit_code(status)))
}

/// Writes a file so that nobody reads a part of it.
fn write_whole(path: &Path, text: &str) -> io::Result<()> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it has no name",
        ));
    };
    let mut part = std::ffi::OsString::from(".");
    part.push(name);
    part.push(format!(".{}", std::process::id()));
    let part = path.with_file_name(part);
    fs::write(&part, text)?;
    fs::rename(&part, path).inspect_err(|_| {
        let _ = fs::remove_file(&part);
    })
}
