//! Where the state of containers is kept: below `--root` a directory for each, with
//!
//! - `state.json`, replaced as a whole, so that it can be read at any moment;
//! - `config.json`, the configuration as it was when the container was made;
//! - `start`, a FIFO at which the process of a created container waits, there until it is started;
//! - `lock`, held by the command that changes the container. The kernel lets it go when the command
//!   ends, however it ends.
//!
//! A container is made in a directory whose name no container can have, and renamed when its state
//! is complete: of two that are made with one name, one fails.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::config::Config;
use crate::files::write_whole;
use crate::id::ContainerId;
use crate::state::State;
use crate::{load, rootless};

const STATE: &str = "state.json";
const CONFIG: &str = "config.json";
const FIFO: &str = "start";
const LOCK: &str = "lock";

/// All containers.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
}

/// What is kept of one container.
#[derive(Debug)]
pub(crate) struct Entry {
    directory: PathBuf,
    id: ContainerId,
}

/// The same, while nobody else changes the container.
#[derive(Debug)]
pub(crate) struct Locked {
    entry: Entry,
    _lock: File,
}

impl Store {
    /// The store in `root`, or at the usual place.
    pub(crate) fn new(root: Option<&Path>) -> Result<Self> {
        let root = match root {
            Some(root) => std::path::absolute(root).context("--root")?,
            None => rootless::state_directory()?,
        };
        Ok(Self { root })
    }

    /// A new container; fails if there is one of this name.
    pub(crate) fn create(&self, id: &ContainerId, state: &State, config: &str) -> Result<Locked> {
        let cannot = || {
            format!(
                "cannot make {}; name another with --root",
                self.root.display()
            )
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.root)
            .with_context(cannot)?;
        let exists = || format!("container with given ID already exists: {}", id.as_str());
        let place = self.root.join(id.as_str());
        if place.exists() {
            bail!(exists());
        }
        let part = self.root.join(format!("~{}", id.as_str()));
        match DirBuilder::new().mode(0o711).create(&part) {
            Ok(()) => {}
            // Of a command that was killed, or is at work: the lock tells which.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(cannot),
        }
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(part.join(LOCK))
            .with_context(cannot)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => bail!(exists()),
            Err(error) => return Err(error).with_context(cannot),
        }
        let entry = Entry {
            directory: part.clone(),
            id: id.clone(),
        };
        let mut locked = Locked { entry, _lock: lock };
        locked.save(state)?;
        fs::write(part.join(CONFIG), config).with_context(cannot)?;
        let fifo = part.join(FIFO);
        let mode = rustix::fs::Mode::from_bits_retain(0o600);
        match rustix::fs::mknodat(CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).with_context(cannot),
        }
        match renameat_with(CWD, &part, CWD, &place, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                locked.clear();
                bail!(exists());
            }
            Err(error) => {
                locked.clear();
                return Err(error).with_context(cannot);
            }
        }
        locked.entry.directory = place;
        Ok(locked)
    }

    /// The container of this name.
    pub(crate) fn open(&self, id: &ContainerId) -> Result<Entry> {
        match self.find(id) {
            Some(entry) => Ok(entry),
            // Engines look for these words.
            None => bail!("container does not exist: {}", id.as_str()),
        }
    }

    /// The container of this name, if there is one.
    pub(crate) fn find(&self, id: &ContainerId) -> Option<Entry> {
        let directory = self.root.join(id.as_str());
        let metadata = fs::symlink_metadata(&directory).ok()?;
        metadata.is_dir().then(|| Entry {
            directory,
            id: id.clone(),
        })
    }

    /// The names of all containers, sorted.
    pub(crate) fn list(&self) -> Result<Vec<ContainerId>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot list {}", self.root.display()));
            }
        };
        let mut ids = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("cannot list {}", self.root.display()))?;
            if let Some(id) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                ids.push(id);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

impl Entry {
    /// What is known of the container now.
    pub(crate) fn state(&self) -> Result<State> {
        let path = self.directory.join(STATE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                bail!("container does not exist: {}", self.id.as_str())
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not one of this runtime's", path.display()))
    }

    /// The configuration that the container was made from.
    pub(crate) fn config(&self) -> Result<Config> {
        load::again(&self.directory.join(CONFIG))
    }

    /// Where a created container's process waits.
    pub(crate) fn fifo(&self) -> PathBuf {
        self.directory.join(FIFO)
    }

    /// Waits until no other command changes the container.
    pub(crate) fn lock(self) -> Result<Locked> {
        let gone = || format!("container does not exist: {}", self.id.as_str());
        let lock = match OpenOptions::new()
            .append(true)
            .open(self.directory.join(LOCK))
        {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => bail!(gone()),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot lock {}", self.directory.display()));
            }
        };
        while let Err(error) = flock(&lock, FlockOperation::LockExclusive) {
            if error != Errno::INTR {
                return Err(error)
                    .with_context(|| format!("cannot lock {}", self.directory.display()));
            }
        }
        // It may have been removed meanwhile, and another of its name made.
        let same = fs::metadata(self.directory.join(LOCK))
            .ok()
            .zip(lock.metadata().ok())
            .is_some_and(|(there, held)| (there.dev(), there.ino()) == (held.dev(), held.ino()));
        if !same {
            bail!(gone());
        }
        Ok(Locked {
            entry: self,
            _lock: lock,
        })
    }
}

impl Locked {
    /// Replaces what is known of the container.
    pub(crate) fn save(&self, state: &State) -> Result<()> {
        let path = self.directory.join(STATE);
        let text = serde_json::to_string(state).context("cannot write the state as JSON")?;
        write_whole(&path, &text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Forgets the container: at once for whoever looks, then its files are removed.
    pub(crate) fn remove(mut self) -> Result<()> {
        let mut name = std::ffi::OsString::from("~~");
        name.push(self.id.as_str());
        let gone = self.directory.with_file_name(name);
        // Of a command that was killed while it did this.
        let _ = fs::remove_dir_all(&gone);
        fs::rename(&self.directory, &gone)
            .with_context(|| format!("cannot remove {}", self.directory.display()))?;
        self.entry.directory = gone;
        self.clear();
        Ok(())
    }

    fn clear(&self) {
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != io::ErrorKind::NotFound
        {
            crate::warn(&format!(
                "cannot remove {}: {error}",
                self.directory.display()
            ));
        }
    }
}

impl std::ops::Deref for Locked {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}
