//! The jail around a machine, made of this project's own parts.
//!
//! This program starts itself again through `namespaces`: in a user namespace and with mounts,
//! processes, network, IPC, host name and control groups of its own, in a control group that limits
//! its memory and threads. There it opens what the machine needs, except for network interfaces, which
//! were opened before and come along. Then, before the guest runs, it [`confine`]s itself: its root
//! becomes an empty directory in memory, it gives up all capabilities, and each of its threads is held
//! to the system calls of its work (`filter.rs`).
//!
//! Two directories can come along, each as a tree of its own that no path leads out of: the one for
//! snapshots, as a file descriptor that only the main thread may use, and that of the vsock's sockets,
//! as the current directory, in which one can only connect.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use cgroups::{Bytes, Cgroup, Guard, Hierarchy, Limits, Max};
use namespaces::{Command, Namespace, UserMapping};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{
    Pid, Signal, chdir, fchdir, pidfd_send_signal, pivot_root, test_kill_process,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_no_new_privs};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::RunArgs;
use crate::config::Machine;
use crate::error::Error;
use crate::store::{Store, sealed};

/// Set in the environment of the program in the jail: how many interfaces came along.
pub(crate) const INSIDE: &str = "COFFERDAM_VMM_JAILED";
/// A machine's control group is called so, with the number of the process outside.
const GROUP: &str = "cofferdam-vmm-";
/// The first of the interfaces' file descriptors.
const FIRST_TAP: i32 = 10;

/// What the program may use beyond the guest's memory, and how many threads it may have.
const OVERHEAD_MIB: u64 = 128;
const THREADS: u64 = 512;

fn failed(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |e| Error::Jail {
        what: format!("cannot {what}: {e}"),
    }
}

/// Whether this process is in the jail already, or about to be: it is the first of its namespace.
pub(crate) fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some() && rustix::process::getpid().is_init()
}

/// Whether the machine is to be shut in: root's machines are, unless it is said otherwise.
pub(crate) fn is_wanted(args: &RunArgs) -> bool {
    args.jail || (!args.no_jail && rustix::process::geteuid().is_root())
}

/// Runs this program again with the same command line, in the jail; returns its exit status.
pub(crate) fn enter(machine: &Machine, run: &RunArgs) -> Result<u8, Error> {
    let error = |e: namespaces::Error| Error::Jail {
        what: e.to_string(),
    };
    let mut command = Command::new("/proc/self/exe");
    let mut arguments = std::env::args_os();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    for (number, network) in (FIRST_TAP..).zip(&machine.networks) {
        command.fd(number, crate::files::tap(network)?);
    }
    command
        .args(arguments)
        .env(INSIDE, machine.networks.len().to_string())
        .user_namespace(UserMapping::CallerAsRoot)
        .unshare([
            Namespace::Mount,
            Namespace::Pid,
            Namespace::Net,
            Namespace::Ipc,
            Namespace::Uts,
            Namespace::Cgroup,
        ])
        .die_with_parent(true)
        .kill_on_drop(true);
    let group = group(machine)?;
    if let Some(directory) = group.unified_directory() {
        command.cgroup(directory);
    }
    let starting = command.start().map_err(error)?;
    // The hierarchies of cgroup v1.
    group.attach(starting.pid()).map_err(|e| Error::Jail {
        what: e.to_string(),
    })?;
    // Should it be killed, it cannot put the terminal back.
    let terminal = rustix::termios::tcgetattr(std::io::stdin()).ok();
    // The signals of the terminal reach the program in the jail by themselves; one that is meant
    // for this process alone is passed on.
    let signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(failed("catch signals"))?;
    let mut child = starting.exec().map_err(error)?;
    pass_on(signals, &child)?;
    let status: ExitStatus = child.wait().map_err(error)?;
    group.close().map_err(|e| Error::Jail {
        what: format!("cannot remove its control group: {e}"),
    })?;
    // From inside, where there are no paths, it could not be removed.
    for socket in run.sockets() {
        crate::control::remove(socket);
    }
    if let Some(signal) = status.signal() {
        if let Some(before) = terminal {
            let when = rustix::termios::OptionalActions::Drain;
            // Nothing better can be done about a terminal that is gone.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), when, &before);
        }
        return Err(Error::Killed { signal });
    }
    Ok(status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(u8::MAX))
}

/// Has the program in the jail end when this one is told to. The kernel drops what it sends to the first
/// process of a namespace before that one catches it, so it is said again until it has effect.
fn pass_on(mut signals: Signals, child: &namespaces::Child) -> Result<(), Error> {
    const AGAIN: Duration = Duration::from_millis(100);
    let pidfd = child
        .as_fd()
        .try_clone_to_owned()
        .map_err(failed("keep hold of the program in the jail"))?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            while pidfd_send_signal(&pidfd, Signal::TERM).is_ok() {
                std::thread::sleep(AGAIN);
            }
        }
    });
    Ok(())
}

/// Removes the groups of machines that were killed from outside, so that nobody was left to do it: those
/// that are empty, and named after a process that is no more.
fn sweep(parent: &Cgroup) {
    for name in parent.children().unwrap_or_default() {
        let number = name.to_str().and_then(|n| n.strip_prefix(GROUP));
        let pid = number.and_then(|n| n.parse().ok()).and_then(Pid::from_raw);
        let is_gone = pid.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH));
        if is_gone && let Ok(group) = parent.open(&name) {
            // One that this user may not remove is not in the way.
            let _ = group.remove_if_unused();
        }
    }
}

/// The control group of the machine, below the topmost that is visible here.
fn group(machine: &Machine) -> Result<Guard, Error> {
    let error = |e: cgroups::Error| Error::Jail {
        what: format!("cannot limit its memory and threads: {e}"),
    };
    let limits = Limits::new()
        .memory_max(Bytes::new((machine.memory_mib + OVERHEAD_MIB) << 20))
        .pids_max(Max::At(THREADS));
    let name = format!("{GROUP}{}", std::process::id());
    let root = Hierarchy::detect().and_then(|h| h.root()).map_err(error)?;
    sweep(&root);
    let guard = root.create_where_permitted(name).map_err(error)?.guard();
    guard.apply(&limits).map_err(error)?;
    Ok(guard)
}

/// The network interfaces that came along into the jail.
pub(crate) fn taps() -> Result<Vec<OwnedFd>, Error> {
    let count: i32 = std::env::var(INSIDE)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0);
    // A file descriptor is only a number here; the kernel gives the file behind it.
    let own = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )
    .map_err(|e| failed("find this process")(e.into()))?;
    (FIRST_TAP..FIRST_TAP + count)
        .map(|number| {
            rustix::process::pidfd_getfd(&own, number, rustix::process::PidfdGetfdFlags::empty())
                .map_err(|e| failed("take over a network interface")(e.into()))
        })
        .collect()
}

/// Gives up what is left, once everything is open: from here on there is no file to be opened outside
/// of the snapshots' directory, and nothing that this process may do to others. Programs of the host
/// whose sockets are in `sockets` can be connected to.
pub(crate) fn confine(snapshots: Option<&mut Store>, sockets: Option<&Path>) -> Result<(), Error> {
    let step = |what, result: rustix::io::Result<()>| result.map_err(|e| failed(what)(e.into()));
    if let Some(store) = snapshots {
        store
            .seal()
            .map_err(failed("take the snapshots' directory along"))?;
    }
    let sockets = sockets
        .map(|path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            sealed(&openat(CWD, path, flags, Mode::empty())?)
        })
        .transpose()
        .map_err(failed("take the vsock's directory along"))?;
    // Any directory will do: it is hidden in this mount namespace only.
    let flags = MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::RDONLY;
    step(
        "mount an empty root",
        mount(
            "root",
            "/proc",
            "tmpfs",
            flags,
            c"size=0,nr_inodes=1,mode=555",
        ),
    )?;
    step("enter the empty root", chdir("/proc"))?;
    step("change the root", pivot_root(".", "."))?;
    step("leave the old root", unmount(".", UnmountFlags::DETACH))?;
    step("enter the root", chdir("/"))?;
    if let Some(sockets) = &sockets {
        step("enter the vsock's directory", fchdir(sockets))?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    step("give up capabilities", set_capabilities(None, none))?;
    step("forbid new privileges", set_no_new_privs(true))
}

#[cfg(test)]
mod tests;
