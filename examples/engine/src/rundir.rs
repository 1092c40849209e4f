//! The directory of one run, and the clearing away of what killed runs left.
//!
//! ```text
//! ROOT/runs/ID/lock     held (flock) by the engine as long as it lives
//!              layers/  the image's layers, unpacked, 0 lowest
//!              upper/   what the container writes
//!              work/    overlayfs's own
//! ```
//!
//! An engine that is killed drops its lock with its life. The next one finds
//! the directory unlocked, and removes it and the control group of that name.
//! The lock of `runs/` itself keeps a sweep from seeing a half-made directory.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use rustix::rand::{GetRandomFlags, getrandom};

/// The directory of one run. Removed when dropped.
#[derive(Debug)]
pub(crate) struct RunDir {
    id: String,
    path: PathBuf,
    runs: PathBuf,
    removed: bool,
    _lock: File,
}

impl RunDir {
    /// Makes a directory for a new run below `root`, after clearing away what
    /// killed runs left there: for each, `reclaim` is called with its id.
    pub(crate) fn create(root: &Path, reclaim: impl Fn(&str) -> Result<()>) -> Result<Self> {
        let runs = root.join("runs");
        let id = new_id()?;
        let path = runs.join(&id);
        let whole = lock_runs(&runs).with_context(|| {
            format!(
                "cannot use {} for containers' files; name another directory with --root",
                root.display()
            )
        })?;
        sweep(&runs, &reclaim)?;
        let lock = (|| {
            private_dir(&path)?;
            let lock = File::create(path.join("lock"))?;
            flock(&lock, FlockOperation::LockExclusive)?;
            for name in ["layers", "upper", "work"] {
                private_dir(&path.join(name))?;
            }
            Ok::<_, io::Error>(lock)
        })()
        .with_context(|| format!("cannot make {}", path.display()))?;
        drop(whole);
        Ok(Self {
            id,
            path,
            runs,
            removed: false,
            _lock: lock,
        })
    }

    /// The run's identifier: 12 hexadecimal digits.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Where layer `index` is unpacked.
    pub(crate) fn layer(&self, index: usize) -> PathBuf {
        self.path.join("layers").join(index.to_string())
    }

    /// What the container writes.
    pub(crate) fn upper(&self) -> PathBuf {
        self.path.join("upper")
    }

    /// overlayfs's work directory.
    pub(crate) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Removes the directory with everything in it.
    pub(crate) fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.remove_files()
            .with_context(|| format!("cannot remove {}; remove it by hand", self.path.display()))
    }

    fn remove_files(&self) -> io::Result<()> {
        // The bulk goes under our own lock alone, so that others can start.
        for name in ["layers", "upper", "work"] {
            fs::remove_dir_all(self.path.join(name))?;
        }
        let _whole = lock_runs(&self.runs)?;
        fs::remove_dir_all(&self.path)?;
        // Last one out. Not empty is no error: another run is there.
        let _ = fs::remove_dir(&self.runs);
        Ok(())
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = self.remove_files()
        {
            eprintln!("cofferdam: cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Opens `runs`, making it where it is missing, and locks it.
fn lock_runs(runs: &Path) -> io::Result<File> {
    loop {
        DirBuilder::new().recursive(true).mode(0o700).create(runs)?;
        let opened = match File::open(runs) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        flock(&opened, FlockOperation::LockExclusive)?;
        // The last run out may have removed it between the two calls; a lock
        // on a directory that is gone keeps nobody out.
        if same_file(&opened, runs)? {
            return Ok(opened);
        }
    }
}

fn same_file(opened: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt as _;
    let held = opened.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((held.dev(), held.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn sweep(runs: &Path, reclaim: &impl Fn(&str) -> Result<()>) -> Result<()> {
    let entries = fs::read_dir(runs).with_context(|| format!("cannot read {}", runs.display()))?;
    for entry in entries {
        let entry = entry?;
        let Ok(id) = entry.file_name().into_string() else {
            continue;
        };
        // Killed before it had made its lock: as dead as one whose lock is free.
        if let Ok(lock) = File::open(entry.path().join("lock"))
            && flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err()
        {
            continue;
        }
        reclaim(&id)?;
        fs::remove_dir_all(entry.path()).with_context(|| {
            format!(
                "cannot clear away {}, left by a killed run",
                entry.path().display()
            )
        })?;
    }
    Ok(())
}

fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

fn new_id() -> Result<String> {
    let mut bytes = [0; 8];
    let got = getrandom(&mut bytes, GetRandomFlags::empty()).context("cannot get random bytes")?;
    debug_assert_eq!(got, bytes.len(), "getrandom never returns less for so few");
    Ok(format!("{:012x}", u64::from_ne_bytes(bytes) >> 16))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_run_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDir::create(root.path(), |_| Ok(())).unwrap();
        assert!(run.upper().is_dir() && run.work().is_dir());
        run.remove().unwrap();
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_living_run_is_left_alone_and_a_killed_one_is_cleared_away() {
        let root = tempfile::tempdir().unwrap();
        let living = RunDir::create(root.path(), |_| Ok(())).unwrap();
        let dead = root.path().join("runs/0123456789ab");
        fs::create_dir(&dead).unwrap();
        File::create(dead.join("lock")).unwrap();
        let reclaimed = RefCell::new(Vec::new());
        let second = RunDir::create(root.path(), |id| {
            reclaimed.borrow_mut().push(id.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(reclaimed.into_inner(), ["0123456789ab"]);
        assert!(!dead.exists());
        assert!(living.upper().exists() && second.upper().exists());
    }

    #[test]
    fn many_runs_start_and_end_at_once() {
        let root = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let run =
                            RunDir::create(root.path(), |id| panic!("{id} was alive")).unwrap();
                        assert!(run.work().is_dir());
                        run.remove().unwrap();
                    }
                });
            }
        });
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
