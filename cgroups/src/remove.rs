//! Removing a group.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, fstat, statat, unlinkat};
use rustix::io::Errno;

use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::group::Cgroup;
use crate::wait::{Deadline, wait_dir_empty};
use crate::walk;

/// How long [`Cgroup::remove`] waits for processes that are ending.
const GRACE: Duration = Duration::from_secs(5);

/// Between an event that says "empty" and the kernel's letting go lies next to nothing.
const LETTING_GO: Duration = Duration::from_millis(1);

impl Cgroup {
    /// Removes the group and all groups below it. Waits up to 5 seconds for processes that are
    /// just ending; kills nobody.
    ///
    /// A group that somebody else has removed already is fine.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] when there still are processes: nothing may be assumed about which of the
    /// groups below remain. [`Error::NotDelegated`].
    pub fn remove(&self) -> Result<()> {
        self.remove_within(GRACE)
    }

    /// Removes the group as [`Cgroup::remove`] does, waiting so long.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::remove`].
    pub fn remove_within(&self, patience: Duration) -> Result<()> {
        self.refuse_root()?;
        let deadline = Deadline::after(patience);
        for (tree, dir) in self.members() {
            loop {
                match remove_tree(dir) {
                    Ok(()) => break,
                    Err(Errno::BUSY) if !deadline.has_passed() => {
                        match wait_dir_empty(tree, dir, deadline) {
                            // Someone else has been faster.
                            Err(Error::Vanished { .. }) | Ok(_) => {}
                            Err(error) => return Err(error),
                        }
                        std::thread::sleep(deadline.remaining().min(LETTING_GO));
                    }
                    Err(Errno::BUSY) => {
                        return Err(Error::Busy {
                            group: dir.path().to_owned(),
                        });
                    }
                    Err(errno) => return Err(dir.error("remove", "", errno)),
                }
            }
        }
        Ok(())
    }

    /// Removes the group if it has neither processes nor child groups; the answer is whether it
    /// did. For parents that several programs share.
    ///
    /// # Errors
    ///
    /// [`Error::NotDelegated`].
    pub fn remove_if_unused(&self) -> Result<bool> {
        self.refuse_root()?;
        let mut all = true;
        for (_, dir) in self.members() {
            match remove_self(dir) {
                Ok(()) => {}
                Err(Errno::BUSY) => all = false,
                Err(errno) => return Err(dir.error("remove", "", errno)),
            }
        }
        Ok(all)
    }

    /// In a root group is everybody, this process among them. A handle on the group of a process
    /// may be that of the root in some hierarchies only.
    pub(crate) fn refuse_root(&self) -> Result<()> {
        match self
            .members()
            .find(|(tree, dir)| tree.root.path() == dir.path())
        {
            Some((_, dir)) => Err(Error::Busy {
                group: dir.path().to_owned(),
            }),
            None => Ok(()),
        }
    }
}

fn remove_tree(dir: &Dir) -> Result<(), Errno> {
    // Most groups have none below.
    match remove_self(dir) {
        Err(Errno::BUSY) => {}
        other => return other,
    }
    let below = walk::post_order(dir.as_fd(), |parent, name, _| {
        match unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT | Errno::NODEV) => Ok(()),
            other => other,
        }
    });
    match below {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        Err(errno) => Err(errno),
        Ok(()) => remove_self(dir),
    }
}

/// Removes the directory by its name, but only if it is still the one that was opened.
fn remove_self(dir: &Dir) -> Result<(), Errno> {
    let Some(name) = dir.path().file_name() else {
        return Err(Errno::BUSY);
    };
    // By way of the directory itself, wherever its parent is mounted. The kernel never gives the
    // number of a group to another one, and to compare it is cheaper than to look for a file.
    let path = Path::new("..").join(name);
    let is_same = statat(dir, &path, AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|named| Ok(named.st_ino == fstat(dir)?.st_ino));
    let removed = match is_same {
        Ok(true) => unlinkat(dir, &path, AtFlags::REMOVEDIR),
        Ok(false) => Ok(()),
        Err(errno) => Err(errno),
    };
    match removed {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        other => other,
    }
}
