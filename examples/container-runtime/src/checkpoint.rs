//! `checkpoint`: a running container, written to disk.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::cli::{Checkpoint, Global};
use crate::criu::{self, Criu};
use crate::state::Status;
use crate::store::Store;
use crate::{delete, group};

/// Saves a running container, and unless asked otherwise ends and removes it.
pub(crate) fn checkpoint(global: &Global, store: &Store, options: &Checkpoint) -> Result<()> {
    let locked = store.open(&options.id)?.lock()?;
    let state = locked.state()?;
    match state.status(&locked)? {
        Status::Running | Status::Paused => {}
        other => bail!("cannot checkpoint a container that is {other}"),
    }
    let config = locked.config()?;
    criu::check(&config)?;
    let init = state.running_process()?;
    let action = if options.pre_dump { "pre-dump" } else { "dump" };
    let mut criu = Criu::new(action, &options.images)?;
    criu.option("--tree", init.pid().to_string())
        .option("--root", state.rootfs.as_os_str());
    let root = format!("/proc/{}/root", init.pid());
    for (target, _) in criu::mounts_from_outside(&config, &state.bundle, Path::new(&root)) {
        criu.external(&format!("mnt[{}]", target.display()), &target);
    }
    if criu::outer_network(&config).is_some() {
        let path = format!("/proc/{}/ns/net", init.pid());
        let metadata = fs::metadata(&path).with_context(|| format!("cannot look at {path}"))?;
        criu.external(&format!("net[{}]", metadata.ino()), Path::new("outer-net"));
    }
    if let Some(freezer) = freezer(&state.cgroup)? {
        criu.option("--freeze-cgroup", freezer);
    }
    if let Some(parent) = &options.parent_path {
        if parent.is_absolute() {
            bail!("--parent-path: must be relative to --image-path");
        }
        if !criu.images.join(parent).is_dir() {
            bail!(
                "--parent-path: {} is not a directory",
                criu.images.join(parent).display()
            );
        }
        criu.option("--prev-images-dir", parent.as_os_str());
    }
    if options.pre_dump || options.parent_path.is_some() {
        criu.flag("--track-mem");
    }
    if let Some(server) = &options.page_server {
        let Some((address, port)) = server.rsplit_once(':') else {
            bail!("--page-server: `{server}` is not ADDRESS:PORT");
        };
        // With --lazy-pages criu is the server.
        if !options.images.lazy_pages {
            criu.flag("--page-server");
        }
        criu.option("--address", address).option("--port", port);
    }
    if let Some(number) = options.status_fd.filter(|number| *number >= 0) {
        criu.option("--status-fd", number.to_string());
    }
    let stays = options.leave_running || options.pre_dump;
    if options.leave_running && !options.pre_dump {
        criu.flag("--leave-running");
    }

    if !options.pre_dump {
        let streams = streams(init.pid())?;
        for stream in streams.iter().filter(|stream| stream.starts_with("file[")) {
            criu.option("--external", stream);
        }
        let text = serde_json::to_string(&streams).context("cannot write the streams as JSON")?;
        fs::write(criu.images.join(criu::STREAMS), text)
            .with_context(|| format!("--image-path: cannot write {}", criu.images.display()))?;
    }
    let status = Command::new(&global.criu)
        .args(&criu.arguments)
        .stdin(Stdio::null())
        .status()
        .with_context(|| {
            format!(
                "cannot run {}; install criu, or name it with --criu",
                global.criu.display()
            )
        })?;
    criu.check(status)?;
    if stays {
        return Ok(());
    }
    if !init.wait_timeout(delete::PATIENCE)? {
        bail!("criu is done, but process {} has not ended", init.pid());
    }
    delete::remove(locked, &state, Some(&config))
}

/// What the streams of a process are, as criu names them: a pipe, or a file that is on no mount of
/// the process. Those on its own mounts need no name.
fn streams(pid: u32) -> Result<Vec<String>> {
    let read = |file: &str| {
        let path = format!("/proc/{pid}/{file}");
        fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
    };
    let mounts = read("mountinfo")?;
    let is_own = |mount: &str| {
        mounts
            .lines()
            .any(|line| line.split(' ').next() == Some(mount))
    };
    let stream = |number: u32| -> Result<String> {
        let path = format!("/proc/{pid}/fd/{number}");
        let Ok(link) = fs::read_link(&path) else {
            // It is closed.
            return Ok(String::new());
        };
        if !link.is_absolute() {
            return Ok(link.to_string_lossy().into_owned());
        }
        let info = read(&format!("fdinfo/{number}"))?;
        let mount = info.lines().find_map(|line| line.strip_prefix("mnt_id:"));
        let mount = mount.unwrap_or_default().trim();
        if is_own(mount) {
            return Ok(String::new());
        }
        let id: u32 = mount.parse().with_context(|| format!("{path}: mnt_id"))?;
        let metadata = fs::metadata(&path).with_context(|| format!("cannot look at {path}"))?;
        Ok(format!("file[{id:x}:{:x}]", metadata.ino()))
    };
    (0..3).map(stream).collect()
}

/// The directory of the group whose processes criu stops while it looks at them.
fn freezer(place: &group::Place) -> Result<Option<PathBuf>> {
    let Some(group) = group::find(place)? else {
        return Ok(None);
    };
    let is_freezer = |directory: &&Path| {
        ["freezer.state", "cgroup.freeze"]
            .iter()
            .any(|file| directory.join(file).exists())
    };
    Ok(group.directories().find(is_freezer).map(Path::to_owned))
}
