//! Programs and packages that a command needs beyond Rust: found, or named with the way to get
//! them, or (as root, where there is apt-get) installed.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::places;

/// Package lists older than this are fetched anew before anything is installed from them.
const LISTS_ARE_OLD: Duration = Duration::from_hours(24);

/// Something that a command needs and that a Debian package brings.
#[derive(Clone, Copy)]
pub(crate) struct Tool {
    /// The program, or a word for the thing where it is none.
    pub(crate) name: &'static str,
    /// The Debian package that has it.
    pub(crate) package: &'static str,
    /// What it is needed for, to complete the sentence "it is needed to …".
    pub(crate) why: &'static str,
    /// How to see that it is there, where looking for a program of that name is not enough.
    pub(crate) present: Option<fn() -> bool>,
}

impl Tool {
    pub(crate) const fn program(
        name: &'static str,
        package: &'static str,
        why: &'static str,
    ) -> Self {
        Tool {
            name,
            package,
            why,
            present: None,
        }
    }

    fn is_present(self) -> bool {
        self.present
            .map_or_else(|| find(self.name).is_some(), |present| present())
    }
}

/// A kernel for clouds, which is the smaller one to boot.
pub(crate) const CLOUD_KERNEL: Tool = Tool {
    name: "a kernel for clouds under /boot",
    package: "linux-image-cloud-amd64",
    why: "boot it as a guest",
    present: Some(|| cloud_kernel().is_some()),
};

/// The newest kernel for clouds.
pub(crate) fn cloud_kernel() -> Option<PathBuf> {
    let entries = fs::read_dir("/boot").ok()?.flatten();
    let kernels = entries.filter(|entry| {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        name.starts_with(b"vmlinuz-") && name.ends_with(b"-cloud-amd64")
    });
    kernels.map(|entry| entry.path()).max()
}

/// The path of a program, looked for in `PATH` and in the directories of system programs, which
/// an ordinary user's `PATH` lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| is_executable(file))
}

/// Whether this is a file that somebody may execute.
pub(crate) fn is_executable(file: &Path) -> bool {
    fs::metadata(file).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Sees to it that all of `tools` are there, installing what is missing where that can be done.
///
/// # Errors
/// Says of each missing one what it is for and which command installs it.
pub(crate) fn require(tools: &[Tool]) -> Result<()> {
    let missing: Vec<Tool> = tools.iter().copied().filter(|t| !t.is_present()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: BTreeSet<&str> = missing.iter().map(|t| t.package).collect();
    let command = format!(
        "apt-get install {}",
        packages.iter().copied().collect::<Vec<_>>().join(" ")
    );
    let list = missing
        .iter()
        .map(|t| {
            format!(
                "  {} (package {}) is needed to {}",
                t.name, t.package, t.why
            )
        })
        .collect::<Vec<_>>()
        .join("\n");
    let Some(apt) = find("apt-get") else {
        bail!("missing on this machine:\n{list}\ninstall them; on Debian: {command}");
    };
    if !rustix::process::geteuid().is_root() {
        bail!("missing on this machine:\n{list}\ninstall with: sudo {command}");
    }
    eprintln!("missing on this machine:\n{list}\ninstalling: {command}");
    install(&apt, &packages)
        .with_context(|| format!("could not install what is missing; by hand: {command}"))?;
    match missing.iter().find(|t| !t.is_present()) {
        None => Ok(()),
        Some(t) => bail!(
            "package {} is installed now, but {} is still not there; see what the package holds \
             with: dpkg -L {}",
            t.package,
            t.name,
            t.package
        ),
    }
}

fn install(apt: &Path, packages: &BTreeSet<&str>) -> Result<()> {
    if lists_are_old() {
        apt_get(apt, &["update"])?;
    }
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(packages);
    if apt_get(apt, &args).is_err() {
        // A mirror drops a version when it gets a newer one: lists that look young may be stale.
        apt_get(apt, &["update"])?;
        apt_get(apt, &args)?;
    }
    Ok(())
}

fn lists_are_old() -> bool {
    let newest = fs::read_dir("/var/lib/apt/lists")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().contains("_Packages"))
        .filter_map(|e| e.metadata().ok()?.modified().ok())
        .max();
    newest.is_none_or(|at| {
        SystemTime::now()
            .duration_since(at)
            .is_ok_and(|age| age > LISTS_ARE_OLD)
    })
}

fn apt_get(apt: &Path, args: &[&str]) -> Result<()> {
    let path = places::target().join("xtask").join("apt-get.log");
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let log = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    let status = Command::new(apt)
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("cannot start {}", apt.display()))?;
    if !status.success() {
        bail!(
            "apt-get {} failed ({status}); it said:\n{}",
            args.join(" "),
            tail(&path, 15)
        );
    }
    Ok(())
}

/// The last `lines` lines of a text file, or a word on why they cannot be shown.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("({} cannot be read: {error})", path.display()),
    }
}
