//! Whether this process may do what root may, and how an ordinary user gets what a container needs.

use std::fs;
use std::process::{ExitCode, ExitStatus};

use anyhow::{Context as _, Result};
use namespaces::{Command, Namespace, UserMapping};

use crate::signals::Signals;
use crate::supervise::{self, exit_code};

/// What the kernel lets this process do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// Root of the machine.
    Root,
    /// Root of a user namespace, or nobody special.
    User,
}

impl Privilege {
    /// Finds out. Root of a user namespace sees other ids mapped than root of the machine, to whom
    /// every id is itself.
    pub(crate) fn detect() -> Result<Self> {
        let map =
            fs::read_to_string("/proc/self/uid_map").context("cannot read /proc/self/uid_map")?;
        let every_id: Vec<&str> = map.split_whitespace().collect();
        let root = rustix::process::geteuid().is_root();
        Ok(if root && every_id == ["0", "0", "4294967295"] {
            Self::Root
        } else {
            Self::User
        })
    }
}

/// Whether this process is neither root nor root of a user namespace, so that it must become one.
pub(crate) fn is_unprivileged() -> bool {
    !rustix::process::geteuid().is_root()
}

/// How many user ids this process can give files to: in a user namespace with one id, all files
/// belong to that one.
pub(crate) fn has_one_id_only() -> Result<bool> {
    let map = fs::read_to_string("/proc/self/uid_map").context("cannot read /proc/self/uid_map")?;
    let mut counts = map
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    Ok(counts.next() == Some("1") && counts.next().is_none())
}

/// Runs this program again as root of a new user and mount namespace, and waits for it.
pub(crate) fn run_again_in_user_namespace() -> Result<ExitCode> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    let mut command = Command::new("/proc/self/exe");
    let mut arguments = std::env::args_os();
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let starting = command
        .args(arguments)
        .user_namespace(UserMapping::Subordinate)
        .unshare([Namespace::Mount])
        // The terminal's signals come to this process alone, which passes them on.
        .new_session(true)
        .die_with_parent(true)
        .kill_on_drop(true)
        .start()
        .context("cannot make a user namespace, which an ordinary user's containers need; as root it works without")?;
    if let Some(degraded) = starting
        .id_mapping()
        .and_then(|mapping| mapping.degraded.as_ref())
    {
        eprintln!("cofferdam: one user only inside, all files belong to it: {degraded}");
    }
    let mut child = starting
        .exec()
        .context("cannot run cofferdam in its user namespace")?;
    let status: ExitStatus =
        supervise::wait(&mut child, &mut signals, supervise::OnSignal::Forward)?;
    Ok(ExitCode::from(exit_code(status)))
}
