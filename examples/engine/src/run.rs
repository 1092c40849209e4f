//! `cofferdam run`: from an image to an exit status.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::cli::Run;
use crate::group::{self, Group};
use crate::privilege::{self, Privilege};
use crate::process;
use crate::report::{Report, Timings};
use crate::rootfs::Rootfs;
use crate::rundir::RunDir;
use crate::signals::Signals;
use crate::supervise::{self, OnSignal, exit_code};

/// Runs a command in a new container.
pub(crate) fn run(root: Option<PathBuf>, run: &Run) -> Result<ExitCode> {
    if privilege::is_unprivileged() {
        return privilege::run_again_in_user_namespace();
    }
    namespaces::protect_own_executable().context("no container is started")?;
    let privilege = Privilege::detect()?;
    let root = match root {
        Some(root) => root,
        None => default_root(privilege)?,
    };
    let mut signals = Signals::catch().context("cannot catch signals")?;

    let begin = Instant::now();
    let image = oci_image::open(&run.image)?;
    let process = process::of_image(&image, run)?;
    let dir = RunDir::create(&root, |id| group::reclaim(id, privilege))?;
    let mut rootfs = Rootfs::unpack(&image, &dir, privilege, &mut signals)?;
    let unpack = begin.elapsed();

    let begin = Instant::now();
    let group = Group::create(dir.id(), run, privilege)?;
    for limits in group.not_set().chunk_by(|a, b| a.reason == b.reason) {
        let options: Vec<&str> = limits.iter().map(|limit| limit.option).collect();
        eprintln!(
            "cofferdam: not limited: {}: {}",
            options.join(", "),
            limits[0].reason
        );
    }
    let hostname = run.hostname.as_deref().unwrap_or(dir.id());
    let mut command = process::command(&process, &image, rootfs.mount()?, hostname, run)?;
    if let Some(directory) = group.cgroup().and_then(cgroups::Cgroup::unified_directory) {
        command.cgroup(directory);
    }
    let starting = command.start()?;
    if let Some(group) = group.cgroup() {
        // It was born in the unified hierarchy's group; this adds those of v1.
        group.attach(starting.pid())?;
    }
    let mut child = starting.exec()?;
    drop(command);
    let start = begin.elapsed();

    let begin = Instant::now();
    let engine_memory_bytes = own_memory();
    let status = supervise::wait(&mut child, &mut signals, OnSignal::ForwardToInit)?;
    let report = Report {
        id: dir.id().to_owned(),
        exit_code: exit_code(status),
        signal: std::os::unix::process::ExitStatusExt::signal(&status),
        limits_not_set: group.not_set().to_vec(),
        usage: group.usage()?,
        engine_memory_bytes,
        timings: Timings {
            unpack,
            start,
            run: begin.elapsed(),
        },
        not_unpacked: rootfs.take_not_unpacked(),
        changes: if run.summary || run.report.is_some() {
            rootfs.changes()?
        } else {
            Vec::new()
        },
    };
    group.remove()?;
    drop(rootfs);
    dir.remove()?;

    if run.summary {
        eprint!("{report}");
    }
    if let Some(path) = &run.report {
        let text =
            serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?;
        fs::write(path, text + "\n")
            .with_context(|| format!("cannot write the report to {}", path.display()))?;
    }
    Ok(ExitCode::from(report.exit_code))
}

fn default_root(privilege: Privilege) -> Result<PathBuf> {
    if privilege == Privilege::Root {
        return Ok(PathBuf::from("/var/lib/cofferdam"));
    }
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    match absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share"))) {
        Some(data) => Ok(data.join("cofferdam")),
        None => bail!("no place for containers' files: set HOME, or name a directory with --root"),
    }
}

/// Memory of this process in bytes: its proportional set size, in which shared pages are divided
/// among those who share them. Of an ordinary user's run it is that of the process in the user
/// namespace; the kernel does not let it look at the one outside.
fn own_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
