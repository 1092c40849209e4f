//! `restore`: a container from its checkpoint.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use namespaces::{Command, Mount, Namespace, Process};

use crate::cli::{Global, Restore};
use crate::config::Config;
use crate::criu::{self, Criu};
use crate::group::{Group, Plan};
use crate::hooks::{self, Point};
use crate::make;
use crate::signals::Signals;
use crate::state::{Init, State};
use crate::store::Store;
use crate::{delete, rootless, start, supervise};

/// Runs a container from a checkpoint.
pub(crate) fn restore(global: &Global, store: &Store, options: &Restore) -> Result<ExitCode> {
    let signals = if options.detach {
        None
    } else {
        Some(Signals::catch().context("cannot catch signals")?)
    };
    let making = &options.making;
    let read = make::read(making)?;
    let config = read.config();
    hooks::check(config)?;
    criu::check(config)?;
    for point in [
        Point::Prestart,
        Point::CreateRuntime,
        Point::CreateContainer,
        Point::StartContainer,
    ] {
        if point.is_used(config) {
            bail!(
                "hooks.{}: cannot be run while a container is restored; remove it",
                point.name()
            );
        }
    }
    if making.console_socket.is_some() {
        bail!("--console-socket: a container with a terminal cannot be restored");
    }
    let rootless = rootless::is_rootless(global.rootless.asked());
    let plan = Plan::of(config, &options.id, global.systemd_cgroup, rootless)?;
    let mut state = read.state(&options.id, &plan);
    let locked = store.create(&options.id, &state, read.text())?;
    let restored = fs::remove_file(locked.fifo())
        .context("cannot remove the FIFO")
        .and_then(|()| plan.create())
        .and_then(|group| with_criu(global, options, config, &plan, group, &mut state))
        .and_then(|(process, group)| {
            state.ready = true;
            locked.save(&state)?;
            make::tell(
                making.pid_file.as_deref(),
                making.pidfd_socket.as_deref(),
                &process,
            )?;
            group.keep();
            Ok(process)
        });
    let process = match restored {
        Ok(process) => process,
        Err(error) => {
            make::undo(locked, &state, config);
            return Err(error)
                .with_context(|| format!("cannot restore the container {}", state.id));
        }
    };
    start::told_that_it_runs(config, &state, &process)?;
    drop(locked);
    let Some(mut signals) = signals else {
        return Ok(ExitCode::SUCCESS);
    };
    let code = supervise::wait_for(&process, &mut signals)?;
    delete::when_it_has_ended(store, &options.id, &state, config)?;
    Ok(ExitCode::from(code))
}

/// Lets criu make the processes, in the container's control group, as children of this process.
fn with_criu(
    global: &Global,
    options: &Restore,
    config: &Config,
    plan: &Plan,
    mut group: Group,
    state: &mut State,
) -> Result<(Process, Group)> {
    let mut criu = Criu::new("restore", &options.images)?;
    let pid_file = criu.images.join(format!("{}.pid", state.id));
    let _ = fs::remove_file(&pid_file);
    criu.option("--root", state.rootfs.as_os_str())
        .option("--pidfile", pid_file.as_os_str())
        .flag("--restore-detached")
        .flag("--restore-sibling");
    if let Some(profile) = &options.lsm_profile {
        criu.option("--lsm-profile", profile);
    }
    if let Some(context) = &options.lsm_mount_context {
        criu.option("--lsm-mount-context", context);
    }
    for (target, source) in criu::mounts_from_outside(config, &state.bundle, &state.rootfs) {
        criu.external(&format!("mnt[{}]", target.display()), &source);
    }

    let mut command = Command::new(&global.criu);
    if let Some(path) = criu::outer_network(config) {
        let file = File::open(path)
            .with_context(|| format!("linux.namespaces: cannot open {}", path.display()))?;
        command.fd(FIRST_PASSED + 3, file);
        criu.option(
            "--inherit-fd",
            format!("fd[{}]:outer-net", FIRST_PASSED + 3),
        );
    }
    for (number, (name, stream)) in (FIRST_PASSED..).zip(streams(&criu)?) {
        command.fd(number, stream);
        criu.option("--inherit-fd", format!("fd[{number}]:{name}"));
    }
    // criu wants the root to be a mount. What it mounts besides is nobody else's concern.
    command
        .unshare([Namespace::Mount])
        .mount(Mount::bind(&state.rootfs, &state.rootfs).create_target(false));
    if let Some(cgroup) = group.cgroup() {
        if let Some(directory) = cgroup.unified_directory() {
            command.cgroup(directory);
        }
        let mut root = std::ffi::OsString::from("/");
        root.push(cgroup.path());
        criu.option("--cgroup-root", root);
    }
    command.args(&criu.arguments);
    let starting = command.start().map_err(|error| {
        anyhow::Error::from(error).context("cannot run criu; install it, or name it with --criu")
    })?;
    state.cgroup = plan.enter(&mut group, starting.pid())?;
    let status = starting
        .exec()
        .map_err(|error| make::said(error, config))?
        .wait()?;
    criu.check(status)?;

    let text = fs::read_to_string(&pid_file)
        .with_context(|| format!("cannot read {}", pid_file.display()))?;
    let _ = fs::remove_file(&pid_file);
    let pid: u32 = text
        .trim()
        .parse()
        .with_context(|| format!("{}: `{text}` is no number", pid_file.display()))?;
    let Some(process) = Process::open(pid)? else {
        bail!("the restored process ended at once");
    };
    state.init = Some(Init {
        pid,
        start_time: process.start_time(),
    });
    Ok((process, group))
}

/// The first number at which criu is given descriptors; lower ones may be in use by it.
const FIRST_PASSED: i32 = 20;

/// This program's streams in place of what the container's were outside of it.
fn streams(criu: &Criu) -> Result<BTreeMap<String, OwnedFd>> {
    let path = criu.images.join(criu::STREAMS);
    let names: Vec<String> = match fs::read_to_string(&path) {
        Ok(text) => serde_json::from_str(&text)
            .with_context(|| format!("{} is not one of a runtime's", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}", path.display()));
        }
    };
    let own = [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    // Two that were the same file or pipe are the same again.
    names
        .into_iter()
        .zip(own)
        .filter(|(name, _)| name.starts_with("pipe:") || name.starts_with("file["))
        .map(|(name, stream)| {
            let stream = stream.try_clone_to_owned();
            Ok((name, stream.context("cannot pass a stream on")?))
        })
        .collect()
}
