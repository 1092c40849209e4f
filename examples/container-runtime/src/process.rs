//! `process`: who runs what, with which rights.

use std::fs;
use std::io::Read as _;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context as _, Result, bail};
use namespaces::{Capabilities, Capability, CapabilitySet, Command, Limit, Resource};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::config::{CapabilityNames, Process, Rlimit};
use crate::warn;

/// The file mode mask where the configuration gives none, as under runc.
const UMASK: u32 = 0o022;

/// The largest /etc/passwd that is read.
const PASSWD: u64 = 1 << 20;

/// A command for the process, without namespaces or mounts yet. `all_capabilities` holds for root
/// of a new user namespace; otherwise only this process's own can be given.
pub(crate) fn command(
    process: &Process,
    root: impl AsFd,
    all_capabilities: bool,
) -> Result<Command> {
    let Some((program, arguments)) = process.args.split_first() else {
        bail!("process.args: missing; write what to run");
    };
    if program.is_empty() {
        bail!("process.args[0]: empty; write what to run");
    }
    let Some(cwd) = process.cwd.as_deref().filter(|cwd| cwd.is_absolute()) else {
        bail!("process.cwd: must be a path that begins with /");
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .current_dir(cwd)
        .create_current_dir(true)
        .uid(process.user.uid)
        .gid(process.user.gid)
        .umask(process.user.umask.unwrap_or(UMASK))
        .capabilities(capabilities(&process.capabilities, all_capabilities)?)
        .no_new_privs(process.no_new_privileges);
    // Without any they are all dropped where that is allowed, which it is not to an ordinary user.
    if !process.user.additional_gids.is_empty() {
        command.groups(process.user.additional_gids.iter().copied());
    }
    if let Some(score) = process.oom_score_adj {
        if !(-1000..=1000).contains(&score) {
            bail!("process.oomScoreAdj: {score} is not from -1000 to 1000");
        }
        command.oom_score_adj(score);
    }
    command.env("HOME", home(root, process.user.uid)?);
    for (index, variable) in process.env.iter().enumerate() {
        match variable.split_once('=') {
            Some((name, value)) if !name.is_empty() => command.env(name, value),
            _ => bail!("process.env[{index}]: `{variable}` is not NAME=VALUE"),
        };
    }
    for (index, rlimit) in process.rlimits.iter().enumerate() {
        let earlier = process.rlimits.iter().take(index);
        let (resource, limit) = limit(rlimit, earlier, index)?;
        command.rlimit(resource, limit);
    }
    Ok(command)
}

fn limit<'a>(
    rlimit: &Rlimit,
    mut earlier: impl Iterator<Item = &'a Rlimit>,
    index: usize,
) -> Result<(Resource, Limit)> {
    let place = format!("process.rlimits[{index}]");
    let Some(resource) = Resource::from_name(&rlimit.kind) else {
        bail!(
            "{place}.type: `{}` is no limit; see getrlimit(2)",
            rlimit.kind
        );
    };
    if earlier.any(|other| other.kind == rlimit.kind) {
        bail!("{place}.type: {} is limited twice; keep one", rlimit.kind);
    }
    let (soft, hard) = (rlimit.soft, rlimit.hard);
    if soft > hard {
        bail!("{place}.soft: {soft} is more than hard, {hard}; lower it");
    }
    // RLIM_INFINITY is the largest number there is.
    let value = |value| (value != u64::MAX).then_some(value);
    Ok((
        resource,
        Limit {
            soft: value(soft),
            hard: value(hard),
        },
    ))
}

fn capabilities(names: &CapabilityNames, all: bool) -> Result<Capabilities> {
    let available = if all {
        CapabilitySet::all()
    } else {
        own_capabilities()?
    };
    let set = |list: &[String], which: &str| {
        let mut set = CapabilitySet::EMPTY;
        let (mut unknown, mut missing) = (Vec::new(), Vec::new());
        for name in list {
            match name.parse::<Capability>() {
                Err(_) => unknown.push(name.as_str()),
                Ok(capability) if !available.contains(capability) => missing.push(name.as_str()),
                Ok(capability) => set.insert(capability),
            }
        }
        // The specification wants both told and gone without.
        for (names, why) in [
            (unknown, "not known; see capabilities(7)"),
            (
                missing,
                "this process does not have them to give; run as root",
            ),
        ] {
            if !names.is_empty() {
                let names = names.join(", ");
                warn(&format!(
                    "process.capabilities.{which}: {names} left out: {why}"
                ));
            }
        }
        set
    };
    let mut capabilities = Capabilities::none();
    capabilities.bounding = set(&names.bounding, "bounding");
    capabilities.effective = set(&names.effective, "effective");
    capabilities.permitted = set(&names.permitted, "permitted");
    capabilities.inheritable = set(&names.inheritable, "inheritable");
    capabilities.ambient = set(&names.ambient, "ambient");
    if !capabilities.permitted.is_superset(capabilities.effective) {
        bail!("process.capabilities.effective: has some that `permitted` has not; add them there");
    }
    // The kernel has no ambient capability that is not in both other sets. Configurations that runc
    // writes ask for some.
    let possible = capabilities
        .permitted
        .intersection(capabilities.inheritable);
    if !possible.is_superset(capabilities.ambient) {
        let names: Vec<&str> = capabilities
            .ambient
            .iter()
            .filter(|capability| !possible.contains(*capability))
            .map(Capability::name)
            .collect();
        warn(&format!(
            "process.capabilities.ambient: {} left out: what is ambient must be permitted and inheritable, too",
            names.join(", ")
        ));
    }
    capabilities.ambient = capabilities.ambient.intersection(possible);
    Ok(capabilities)
}

/// The capabilities that this process may pass on.
fn own_capabilities() -> Result<CapabilitySet> {
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let of = |key: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(key));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
    };
    match (of("CapPrm:"), of("CapBnd:")) {
        (Some(permitted), Some(bounding)) => Ok(CapabilitySet::from_bits(permitted & bounding)),
        _ => bail!("/proc/self/status does not tell capabilities; is /proc mounted?"),
    }
}

/// The home of the user by the root filesystem's own /etc/passwd; `/` for one who is not in it.
fn home(root: impl AsFd, uid: u32) -> Result<String> {
    let opened: Result<OwnedFd, _> = rustix::fs::openat2(
        root,
        "etc/passwd",
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    );
    let mut text = Vec::new();
    if let Ok(passwd) = opened {
        let passwd = fs::File::from(passwd);
        let regular = passwd.metadata().is_ok_and(|metadata| metadata.is_file());
        if regular {
            passwd
                .take(PASSWD)
                .read_to_end(&mut text)
                .context("cannot read /etc/passwd of the root filesystem")?;
        }
    }
    let text = String::from_utf8_lossy(&text);
    Ok(home_in(&text, uid).unwrap_or("/").to_owned())
}

fn home_in(passwd: &str, uid: u32) -> Option<&str> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        (fields.next()?.parse() == Ok(uid)).then_some(())?;
        fields.nth(2).filter(|home| !home.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_are_found_by_number() {
        let passwd = "broken\nroot:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/srv/www:\nno:x:5:5:::\n";
        assert_eq!(home_in(passwd, 0), Some("/root"));
        assert_eq!(home_in(passwd, 33), Some("/srv/www"));
        assert_eq!(home_in(passwd, 5), None);
        assert_eq!(home_in(passwd, 7), None);
    }

    #[test]
    fn limits_are_checked() {
        let rlimit = |kind: &str, soft, hard| Rlimit {
            kind: kind.to_owned(),
            soft,
            hard,
        };
        let error = |rlimit: &Rlimit| limit(rlimit, [].iter(), 3).unwrap_err().to_string();
        let message = error(&rlimit("RLIMIT_X", 1, 1));
        assert!(
            message.starts_with("process.rlimits[3].type: "),
            "{message}"
        );
        let message = error(&rlimit("RLIMIT_CPU", 2, 1));
        assert!(
            message.starts_with("process.rlimits[3].soft: "),
            "{message}"
        );
        let twice = rlimit("RLIMIT_CPU", 1, u64::MAX);
        assert!(limit(&twice, [twice.clone()].iter(), 1).is_err());
        let (_, value) = limit(&twice, [].iter(), 0).unwrap();
        assert_eq!(
            value,
            Limit {
                soft: Some(1),
                hard: None
            }
        );
    }
}
