//! What differs for an ordinary user.

use std::env;
use std::path::PathBuf;

use anyhow::{Result, bail};

/// Where state is kept when `--root` does not say: a place that is empty after a restart of the
/// machine, as the containers are gone then.
pub(crate) fn state_directory() -> Result<PathBuf> {
    const SYSTEM: &str = "/run/cofferdam-runtime";
    let user = rustix::process::geteuid();
    // An engine that runs as root of a user namespace is an ordinary user's all the same.
    let ordinary = !user.is_root()
        || (in_user_namespace() && env::var_os("USER").is_none_or(|name| name != "root"));
    if !ordinary {
        return Ok(PathBuf::from(SYSTEM));
    }
    match env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()) {
        Some(directory) => Ok(PathBuf::from(directory).join("cofferdam-runtime")),
        None if user.is_root() => Ok(PathBuf::from(SYSTEM)),
        None => bail!(
            "XDG_RUNTIME_DIR is not set: name a directory for the containers' state with --root"
        ),
    }
}

/// Whether this process is in a user namespace that somebody made.
pub(crate) fn in_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        let numbers: Vec<&str> = map.split_whitespace().collect();
        numbers != ["0", "0", "4294967295"]
    })
}

/// Whether control groups may be gone without: an ordinary user often has none that it may change.
pub(crate) fn is_rootless(asked: Option<bool>) -> bool {
    asked.unwrap_or_else(|| !rustix::process::geteuid().is_root() || in_user_namespace())
}
