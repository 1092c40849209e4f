//! The lab's first file system: busybox, the modules that reach the real one, and a script.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernel::Kernel;
use crate::places;
use crate::tools::{self, Tool};

pub(super) const BUSYBOX: Tool = Tool {
    name: "a static busybox",
    package: "busybox-static",
    why: "start the lab's user space",
    present: Some(|| static_busybox().is_some()),
};

/// The archive for a lab with this kernel.
pub(super) fn build(kernel: &Kernel, systemd: bool) -> Result<Archive> {
    let agent = agent_file(&super::directory())?;
    let busybox = static_busybox().context("there is no static busybox")?;
    let mut archive = Archive::default();
    for dir in ["bin", "modules", "units", "dev", "proc", "sys"] {
        archive.directory(dir);
    }
    archive.program("init", include_bytes!("init.sh").to_vec());
    let read = fs::read(&busybox);
    archive.program(
        "bin/busybox",
        read.with_context(|| format!("cannot read {}", busybox.display()))?,
    );
    let mut order = String::new();
    for (name, module) in kernel.modules()? {
        order = order + &name + "\n";
        archive.file(&format!("modules/{name}.ko"), module);
    }
    archive.file("modules/order", order.into_bytes());
    let mut keep: Vec<String> = Vec::new();
    let cwd = env::current_dir().context("the current directory is gone")?;
    for path in [&agent, &cwd, &places::workspace(), &places::target()] {
        if let Some(name) = below_tmp(path).filter(|name| !keep.contains(name)) {
            keep.push(name);
        }
    }
    let mut conf = b"agent=".to_vec();
    conf.extend(quoted(agent.as_os_str()));
    let with_systemd = if systemd { "yes" } else { "no" };
    let rest = format!(
        "\nkeep_tmp='{}'\nsystemd={with_systemd}\nmasked='{}'\n",
        keep.join(" "),
        MASKED.join(" ")
    );
    conf.extend(rest.into_bytes());
    archive.file("lab.conf", conf);
    if systemd {
        archive.file("units/lab.target", include_bytes!("lab.target").to_vec());
        archive.file("units/lab.service", include_bytes!("lab.service").to_vec());
    }
    Ok(archive)
}

/// Units that a lab under systemd does without: they wait for hardware or networks that are not
/// there, or change what the next boot finds.
const MASKED: [&str; 18] = [
    "apparmor.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "modprobe@dm_mod.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@loop.service",
    "networking.service",
    "systemd-machine-id-commit.service",
    "systemd-random-seed.service",
    "systemd-timesyncd.service",
    "systemd-udev-settle.service",
    "systemd-udev-trigger.service",
];

/// A copy of this program that stays while the lab runs: cargo may replace the program itself
/// meanwhile.
fn agent_file(cache: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    const SELF: &str = "/proc/self/exe";
    const KEPT: usize = 6;
    let meta = fs::metadata(SELF).context("cannot see this program's file")?;
    let name = format!("agent-{}-{}-{}", meta.ino(), meta.mtime_nsec(), meta.len());
    let path = cache.join(name);
    if fs::metadata(&path).is_ok_and(|m| m.len() == meta.len()) {
        return Ok(path);
    }
    let copy = || -> io::Result<()> {
        let file = tempfile::NamedTempFile::new_in(cache)?;
        fs::copy(SELF, file.path())?;
        file.persist(&path)?;
        Ok(())
    };
    copy().with_context(|| format!("cannot copy this program to {}", path.display()))?;
    super::prune(cache, "agent-", KEPT);
    Ok(path)
}

/// A busybox that needs no libraries; Debian's packages `busybox` and `busybox-static` have the
/// program in the same place.
fn static_busybox() -> Option<PathBuf> {
    let path = tools::find("busybox")?;
    // A dynamic executable names its loader.
    let bytes = fs::read(&path).ok()?;
    let is_static = !bytes.windows(9).any(|w| w == b"/ld-linux");
    is_static.then_some(path)
}

/// The name under /tmp that a path goes through, escaped for printf's %b.
fn below_tmp(path: &Path) -> Option<String> {
    match path.strip_prefix("/tmp").ok()?.components().next()? {
        Component::Normal(name) => Some(
            name.as_bytes()
                .iter()
                .map(|&byte| match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                        char::from(byte).to_string()
                    }
                    _ => format!("\\0{byte:03o}"),
                })
                .collect(),
        ),
        _ => None,
    }
}

/// A word for the shell.
fn quoted(word: &OsStr) -> Vec<u8> {
    let mut out = vec![b'\''];
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => out.extend(b"'\\''"),
            _ => out.push(byte),
        }
    }
    out.push(b'\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_paths_are_quoted() {
        assert_eq!(quoted(OsStr::new("/a b'c")), b"'/a b'\\''c'");
        assert_eq!(
            below_tmp(Path::new("/tmp/a b/c")).as_deref(),
            Some("a\\0040b")
        );
        assert_eq!(below_tmp(Path::new("/tmp")), None);
        assert_eq!(below_tmp(Path::new("/var/tmp/x")), None);
    }
}
