//! Running criu(8), the program that writes processes to disk and makes them again.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context as _, Result, bail};
use namespaces::Namespace;

use crate::cli::Images;
use crate::config::Config;
use crate::container;

/// Where the streams of the first process led to when it was saved: a list of three links.
pub(crate) const STREAMS: &str = "descriptors.json";

/// How control groups can be handled.
const MODES: [&str; 4] = ["soft", "full", "strict", "ignore"];

/// A command line of criu.
pub(crate) struct Criu {
    action: &'static str,
    pub(crate) images: PathBuf,
    log: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

impl Criu {
    /// What every action shares. The directory of the images is made where it is missing.
    pub(crate) fn new(action: &'static str, options: &Images) -> Result<Self> {
        let mode = options.manage_cgroups_mode.as_deref().unwrap_or("soft");
        if !MODES.contains(&mode) {
            bail!(
                "--manage-cgroups-mode: `{mode}` is none; choose among {}",
                MODES.join(", ")
            );
        }
        let images = directory(&options.image_path).context("--image-path")?;
        let work = match &options.work_path {
            Some(work) => directory(work).context("--work-path")?,
            None => images.clone(),
        };
        let name = format!("{action}.log");
        let mut criu = Self {
            action,
            log: work.join(&name),
            arguments: vec![action.into()],
            images: images.clone(),
        };
        criu.option("--images-dir", images)
            .option("--work-dir", work)
            .option("--log-file", name)
            .flag(&format!("--manage-cgroups={mode}"))
            .flag("-v4")
            .flag("--evasive-devices");
        for (asked, flag) in [
            (options.tcp_established, "--tcp-established"),
            (options.ext_unix_sk, "--ext-unix-sk"),
            (options.shell_job, "--shell-job"),
            (options.file_locks, "--file-locks"),
            (options.auto_dedup, "--auto-dedup"),
            (options.lazy_pages, "--lazy-pages"),
        ] {
            if asked {
                criu.flag(flag);
            }
        }
        for kind in &options.empty_ns {
            if kind != "network" {
                bail!("--empty-ns: `{kind}` cannot be left out; only network can");
            }
            criu.option("--empty-ns", "net");
        }
        Ok(criu)
    }

    pub(crate) fn flag(&mut self, flag: &str) -> &mut Self {
        self.arguments.push(flag.into());
        self
    }

    pub(crate) fn option(&mut self, name: &str, value: impl Into<OsString>) -> &mut Self {
        self.arguments.extend([name.into(), value.into()]);
        self
    }

    /// Something that is not part of what is saved.
    pub(crate) fn external(&mut self, what: &str, there: &Path) -> &mut Self {
        let mut value = OsString::from(what);
        value.push(":");
        value.push(there);
        self.option("--external", value)
    }

    /// An error with what criu says of its reason.
    pub(crate) fn check(&self, status: ExitStatus) -> Result<()> {
        if status.success() {
            return Ok(());
        }
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let reason = log.lines().find(|line| line.contains("Error ("));
        bail!(
            "criu {} failed ({status}): {}; see {}",
            self.action,
            reason.unwrap_or("it does not say why").trim(),
            self.log.display()
        )
    }
}

fn directory(path: &Path) -> Result<PathBuf> {
    let cannot = || format!("cannot make {}", path.display());
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(cannot)?;
    fs::canonicalize(path).with_context(cannot)
}

/// What cannot be saved, or would not be the same afterwards.
pub(crate) fn check(config: &Config) -> Result<()> {
    if config.process.as_ref().is_some_and(|one| one.terminal) {
        bail!("process.terminal: a container with a terminal cannot be saved by this runtime");
    }
    if !container::has_mounts_of_its_own(config) {
        bail!("linux.namespaces: a container is saved with its mounts; it needs a mount namespace");
    }
    for (property, is_used) in [
        ("intelRdt", config.linux.intel_rdt.is_some()),
        ("netDevices", !config.linux.net_devices.is_empty()),
    ] {
        if is_used {
            bail!("linux.{property}: a container with it cannot be saved by this runtime");
        }
    }
    for (index, namespace) in config.linux.namespaces.iter().enumerate() {
        let kind = container::kind(&namespace.kind);
        if namespace.path.is_some() && kind != Some(Namespace::Net) {
            bail!(
                "linux.namespaces[{index}].path: a container that shares this namespace with others cannot be saved by this runtime"
            );
        }
    }
    Ok(())
}

/// The path of the network namespace that the container does not own.
pub(crate) fn outer_network(config: &Config) -> Option<&Path> {
    let mut namespaces = config.linux.namespaces.iter();
    namespaces
        .find(|one| container::kind(&one.kind) == Some(Namespace::Net))
        .and_then(|one| one.path.as_deref())
}

/// The mounts of a container that lead out of it: where they are, and what is mounted there.
/// `root` is the root filesystem as it can be looked at now.
pub(crate) fn mounts_from_outside(
    config: &Config,
    bundle: &Path,
    root: &Path,
) -> Vec<(PathBuf, PathBuf)> {
    let binds = config.mounts.iter().filter_map(|mount| {
        let is_bind = mount.kind.as_deref() == Some("bind")
            || mount
                .options
                .iter()
                .any(|one| one == "bind" || one == "rbind");
        let target = Path::new("/").join(mount.destination.as_ref()?);
        is_bind.then(|| {
            (
                target,
                bundle.join(mount.source.clone().unwrap_or_default()),
            )
        })
    });
    // Files are masked by this machine's /dev/null; directories by a file system of their own.
    let masks = config.linux.masked_paths.iter().filter_map(|path| {
        let inside = root.join(path.strip_prefix("/").unwrap_or(path));
        let is_directory = fs::metadata(inside).is_ok_and(|metadata| metadata.is_dir());
        (!is_directory).then(|| (path.clone(), PathBuf::from("/dev/null")))
    });
    binds.chain(masks).collect()
}
