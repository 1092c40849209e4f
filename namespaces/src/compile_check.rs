//! What no plan can be made of: settings that contradict each other.

use std::path::{Component, Path, PathBuf};

use crate::{Command, Error, Mount, Namespace, Root};

/// Refuses settings that contradict each other.
pub(crate) fn check(command: &Command) -> Result<(), Error> {
    let new = |kind| command.new.contains(&kind);
    let invalid = |setting, problem| Err(Error::Invalid { setting, problem });
    for kind in command.joined.keys() {
        if new(*kind) {
            return invalid(
                "namespaces",
                "one kind is both joined and new; choose one of the two",
            );
        }
    }
    let own = |kind| new(kind) || command.joined.contains_key(&kind) || command.entered.is_some();
    let joins_mount = command.joined.contains_key(&Namespace::Mount);
    let shares_root = command.root.as_ref().is_some_and(Root::is_shared);
    if shares_root && (new(Namespace::Mount) || joins_mount) {
        return invalid(
            "root",
            "it is a shared one and there is a mount namespace; give one with Root::path",
        );
    }
    if !new(Namespace::Mount) && !joins_mount && !shares_root && command.root.is_some() {
        return invalid(
            "root",
            "it needs a mount namespace; unshare Namespace::Mount, join one, or see Root::shared",
        );
    }
    if !new(Namespace::Mount) && command.root.is_none() {
        if !command.mounts.is_empty() {
            return invalid(
                "mounts",
                "they need a new mount namespace; unshare Namespace::Mount",
            );
        }
        if !command.devices.is_empty() || !command.links.is_empty() {
            return invalid(
                "devices and links",
                "they need a new mount namespace; unshare Namespace::Mount",
            );
        }
        if !command.masked.is_empty() || !command.read_only.is_empty() || command.root_read_only {
            return invalid(
                "masked and read-only paths",
                "they need a new mount namespace; unshare Namespace::Mount",
            );
        }
    }
    let covers_root = |path: &Path| {
        !path
            .components()
            .any(|part| matches!(part, Component::Normal(_)))
    };
    if command
        .mounts
        .iter()
        .map(Mount::target)
        .chain(command.masked.iter().map(PathBuf::as_path))
        .chain(command.read_only.iter().map(PathBuf::as_path))
        .any(covers_root)
    {
        return invalid(
            "mounts",
            "a target is / itself; give what is to be there with Command::root",
        );
    }
    if (command.root_read_only || command.root_tree_read_only) && command.root.is_none() {
        return invalid(
            "read-only root",
            "it needs a new root; give one with Command::root",
        );
    }
    if (command.hostname.is_some() || command.domainname.is_some()) && !own(Namespace::Uts) {
        return invalid(
            "hostname",
            "it would change the caller's; unshare Namespace::Uts",
        );
    }
    if [&command.hostname, &command.domainname]
        .into_iter()
        .flatten()
        .any(|name| name.len() > 64)
    {
        return invalid("hostname", "it is longer than 64 bytes; shorten it");
    }
    if command.time_offsets.iter().any(Option::is_some) && !new(Namespace::Time) {
        return invalid(
            "time offsets",
            "they need a new time namespace; unshare Namespace::Time",
        );
    }
    if command.terminal.is_some()
        && (command.stdin.is_some() || command.stdout.is_some() || command.stderr.is_some())
    {
        return invalid(
            "terminal",
            "it takes the place of the three streams; do not set them too",
        );
    }
    if command.seccomp.is_none() && (command.seccomp_listener || command.seccomp_flags != 0) {
        return invalid(
            "seccomp",
            "flags and listener need a filter; give one with Command::seccomp",
        );
    }
    if command.loopback_up && !own(Namespace::Net) {
        return invalid(
            "loopback",
            "it needs a network namespace; unshare Namespace::Net",
        );
    }
    if command
        .kept
        .iter()
        .any(|number| command.fds.contains_key(number))
    {
        return invalid(
            "file descriptors",
            "one number is both kept and given; choose one of the two",
        );
    }
    if command
        .fds
        .keys()
        .chain(&command.kept)
        .any(|number| *number < 3)
    {
        return invalid(
            "file descriptors",
            "numbers 0, 1 and 2 are set with stdin, stdout and stderr",
        );
    }
    if command.umask.is_some_and(|mask| mask > 0o777) {
        return invalid(
            "umask",
            "it is larger than 0o777; give permission bits only",
        );
    }
    Ok(())
}
