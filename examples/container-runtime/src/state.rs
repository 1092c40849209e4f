//! What is known of a container: on disk, and as the runtime-spec has it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use namespaces::Process;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::group::{self, Place};
use crate::resctrl;
use crate::spec::OCI_VERSION;
use crate::store::Entry;

/// What is kept of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: PathBuf,
    /// When it was made, by RFC 3339.
    pub(crate) created: String,
    /// Who made it.
    pub(crate) owner: u32,
    pub(crate) annotations: BTreeMap<String, String>,
    /// None until the process is there.
    pub(crate) init: Option<Init>,
    /// The process waits to be started, or runs: everything before has been done.
    pub(crate) ready: bool,
    pub(crate) cgroup: Place,
    /// Its group of resctrl.
    #[serde(default)]
    pub(crate) resctrl: Option<resctrl::Group>,
    /// The mount of the root filesystem, where the container shares the machine's mounts.
    #[serde(default)]
    pub(crate) shared_root: Option<u64>,
}

/// The container's first process.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Init {
    pub(crate) pid: u32,
    /// Tells it from a later process of the same number.
    pub(crate) start_time: u64,
}

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// What hooks and listeners are told.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SpecState<'a> {
    oci_version: &'static str,
    id: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    bundle: &'a PathBuf,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

/// What `state` and `list` print.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Shown {
    oci_version: &'static str,
    pub(crate) id: String,
    pub(crate) pid: u32,
    pub(crate) status: Status,
    pub(crate) bundle: PathBuf,
    rootfs: PathBuf,
    pub(crate) created: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    pub(crate) owner: String,
}

impl State {
    /// As the runtime-spec has it.
    pub(crate) fn told(&self, status: Status) -> SpecState<'_> {
        SpecState {
            oci_version: OCI_VERSION,
            id: &self.id,
            status,
            pid: self
                .init
                .filter(|_| status != Status::Stopped)
                .map(|init| init.pid),
            bundle: &self.bundle,
            annotations: &self.annotations,
        }
    }

    /// The container's first process, as long as it runs.
    pub(crate) fn process(&self) -> Result<Option<Process>> {
        match self.init {
            Some(init) => Ok(Process::find(init.pid, init.start_time)?),
            None => Ok(None),
        }
    }

    /// The same, or an error in the words that engines look for.
    pub(crate) fn running_process(&self) -> Result<Process> {
        match self.process()? {
            Some(process) => Ok(process),
            None => bail!("container not running: {}", self.id),
        }
    }

    /// Where the container is in its life.
    pub(crate) fn status(&self, entry: &Entry) -> Result<Status> {
        if self.process()?.is_none() {
            return Ok(Status::Stopped);
        }
        if !self.ready {
            return Ok(Status::Creating);
        }
        // In this order: a container that waits at the gate can be frozen, too.
        if group::is_frozen(&self.cgroup) {
            return Ok(Status::Paused);
        }
        Ok(if waits(entry)? {
            Status::Created
        } else {
            Status::Running
        })
    }

    /// As `state` and `list` print it.
    pub(crate) fn shown(self, entry: &Entry) -> Result<Shown> {
        let status = self.status(entry)?;
        let running = status != Status::Stopped;
        Ok(Shown {
            oci_version: OCI_VERSION,
            id: self.id,
            pid: self.init.filter(|_| running).map_or(0, |init| init.pid),
            status,
            bundle: self.bundle,
            rootfs: self.rootfs,
            created: self.created,
            annotations: self.annotations,
            owner: user_name(self.owner).unwrap_or_else(|| format!("#{}", self.owner)),
        })
    }
}

/// Whether a process waits at the gate: it has the FIFO open for reading until it executes its
/// program, whatever becomes of the runtime's other notes.
fn waits(entry: &Entry) -> Result<bool> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(entry.fifo(), flags, Mode::empty()) {
        Ok(_) => Ok(true),
        Err(Errno::NXIO | Errno::NOENT) => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot open {}", entry.fifo().display())),
    }
}

/// The name of a user, by the machine's /etc/passwd.
fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}
