//! The process in the container: what the image asks for, what the command line changes, and the
//! namespaces and mounts around it.

use std::env;
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use namespaces::{Capabilities, Command, Mount, Namespace};
use oci_image::{Image, Process};

use crate::cli::Run;

/// Where programs are looked for when the image does not say, as under Docker.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the kernel shows of the machine to everyone, and a container should not see.
const MASKED: [&str; 9] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What acts on the whole machine, and a container should not change.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The image's process with the command line's changes.
pub(crate) fn of_image(image: &Image, run: &Run) -> Result<Process> {
    let mut config = image.config().config.clone();
    if let Some(entrypoint) = &run.entrypoint {
        // The image's arguments belong to the image's program.
        config.entrypoint = vec![entrypoint.clone()];
        config.cmd.clear();
    }
    for variable in &run.env {
        if variable.contains('=') {
            config.env.push(variable.clone());
        } else if let Ok(value) = env::var(variable) {
            config.env.push(format!("{variable}={value}"));
        }
    }
    if let Some(user) = &run.user {
        config.user.clone_from(user);
    }
    if let Some(workdir) = &run.workdir {
        config.working_dir = workdir.to_string_lossy().into_owned();
    }
    Process::new(&config, &run.command).with_context(|| format!("cannot run {}", image.name()))
}

/// The process in its container, as something to be started.
pub(crate) fn command(
    process: &Process,
    image: &Image,
    root: OwnedFd,
    hostname: &str,
    run: &Run,
) -> Result<Command> {
    let user = process.user.resolve(&root, image.limits())?;
    let Some((program, arguments)) = process.args.split_first() else {
        unreachable!("a process of an image has a command line");
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", &user.home)
        .env("HOSTNAME", hostname)
        .envs(process.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&process.cwd)
        .create_current_dir(true)
        .unshare([
            Namespace::Mount,
            Namespace::Pid,
            Namespace::Uts,
            Namespace::Ipc,
            Namespace::Net,
            Namespace::Cgroup,
        ])
        .loopback_up(true)
        .hostname(hostname)
        .root(root)
        .root_read_only(run.read_only)
        .mounts(Mount::standard())
        .masked_paths(MASKED)
        .read_only_paths(READ_ONLY)
        .uid(user.uid)
        .gid(user.gid)
        .capabilities(Capabilities::container_default())
        // The terminal's signals come to this program alone, which passes them on.
        .new_session(true)
        .die_with_parent(true)
        .kill_on_drop(true);
    // Without any, the groups of this process are dropped where that is allowed, which it is not in
    // a user namespace with a single id.
    if !user.groups.is_empty() {
        command.groups(user.groups);
    }
    Ok(command)
}
