//! Handing a part of the tree to an unprivileged user, and distributing threads.

use std::fmt;
use std::str::FromStr;

use rustix::fs::{AtFlags, Gid, Uid, chownat};
use rustix::io::Errno;

use crate::error::{Error, ParseError, Result};
use crate::group::Cgroup;
use crate::knob::Knob;
use crate::procfs::Version;

/// What a group of v2 can hold.
#[doc(alias = "cgroup.type")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GroupType {
    /// Whole processes; the usual kind.
    Domain,
    /// Whole processes, whose threads are distributed among threaded groups below.
    DomainThreaded,
    /// Nothing yet: it is below a threaded group and must be made threaded itself.
    DomainInvalid,
    /// Single threads.
    Threaded,
}

impl fmt::Display for GroupType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Domain => "domain",
            Self::DomainThreaded => "domain threaded",
            Self::DomainInvalid => "domain invalid",
            Self::Threaded => "threaded",
        })
    }
}

impl FromStr for GroupType {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "domain" => Ok(Self::Domain),
            "domain threaded" => Ok(Self::DomainThreaded),
            "domain invalid" => Ok(Self::DomainInvalid),
            "threaded" => Ok(Self::Threaded),
            _ => Err(ParseError::new("a type of group", text)),
        }
    }
}

impl Cgroup {
    /// Hands the subtree to a user: they may create groups in it, enable its controllers for
    /// those and move their processes about inside, but neither change this group's own limits
    /// nor move anything in or out.
    ///
    /// Gives away the directory and, on v2, exactly the files that `/sys/kernel/cgroup/delegate`
    /// names; on v1 `cgroup.procs` and `tasks`. When one cannot be given away, the others are
    /// taken back.
    ///
    /// # Errors
    ///
    /// [`Error::NotDelegated`], [`Error::Vanished`], [`Error::Io`].
    #[doc(alias = "chown")]
    pub fn delegate(&self, uid: u32, gid: u32) -> Result<()> {
        let unified_files = match std::fs::read_to_string("/sys/kernel/cgroup/delegate") {
            Ok(names) => names,
            // What it held in Linux 4.15, when it came.
            Err(_) => "cgroup.procs\ncgroup.threads\ncgroup.subtree_control\n".to_owned(),
        };
        let mut given = Vec::new();
        let result = self.members().try_for_each(|(tree, dir)| {
            let names = match tree.version {
                Version::V2 => unified_files.as_str(),
                Version::V1 => "cgroup.procs\ntasks\n",
            };
            // The directory last: with it everything becomes usable.
            for name in names.lines().chain([""]) {
                let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
                let before = match rustix::fs::statat(dir, name, flags) {
                    // Not every controller is enabled in every group.
                    Err(Errno::NOENT) if dir.is_alive() => continue,
                    other => other.map_err(|errno| dir.error("examine", name, errno))?,
                };
                chown(dir, name, uid, gid)?;
                given.push((dir, name, before.st_uid, before.st_gid));
            }
            Ok(())
        });
        let Err(cause) = result else { return Ok(()) };
        let failures: Vec<_> = given
            .into_iter()
            .rev()
            .filter_map(|(dir, name, uid, gid)| chown(dir, name, uid, gid).err())
            .collect();
        if failures.is_empty() {
            return Err(cause);
        }
        Err(Error::Rollback {
            cause: Box::new(cause),
            failures,
        })
    }

    /// What the group can hold; nothing on v1 and for the root.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`], [`Error::Parse`].
    pub fn group_type(&self) -> Result<Option<GroupType>> {
        match self.unified() {
            Some(dir) => crate::current::value(dir, "cgroup.type"),
            None => Ok(None),
        }
    }

    /// Lets the group hold single threads of the processes in its parent, which becomes the root
    /// of a threaded domain. Cannot be undone. Linux 4.14.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] on v1; [`Error::Refused`] when the parent distributes resources
    /// that cannot be divided among threads, such as memory.
    #[doc(alias = "cgroup.type")]
    pub fn make_threaded(&self) -> Result<()> {
        const FILE: &str = "cgroup.type";
        let Some(dir) = self
            .unified()
            .filter(|dir| dir.has(FILE) || !dir.is_alive())
        else {
            return Err(self.unsupported(Knob::Type));
        };
        dir.write_raw(FILE, "threaded")
            .map_err(|errno| match errno {
                Errno::OPNOTSUPP | Errno::BUSY | Errno::INVAL => Error::Refused {
                    knob: Knob::Type,
                    path: dir.file(FILE),
                    value: "threaded".to_owned(),
                    source: errno.into(),
                },
                _ => dir.error("write", FILE, errno),
            })
    }

    /// Moves a single thread into the group, which on v2 must be threaded and in the same domain.
    /// On a hybrid layout only v2 is told.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcess`], [`Error::CannotAttach`].
    #[doc(alias = "cgroup.threads")]
    pub fn attach_thread(&self, tid: u32) -> Result<()> {
        if tid == 0 || i32::try_from(tid).is_err() {
            return Err(Error::NoSuchProcess { pid: tid });
        }
        let (dir, file) = match self.unified() {
            Some(dir) => (dir, "cgroup.threads"),
            None => match self.members().next() {
                Some((_, dir)) => (dir, "tasks"),
                None => return Err(self.unsupported(Knob::Type)),
            },
        };
        dir.write_raw(file, &tid.to_string())
            .map_err(|errno| match errno {
                Errno::SRCH => Error::NoSuchProcess { pid: tid },
                Errno::BUSY | Errno::NOSPC | Errno::OPNOTSUPP | Errno::INVAL => {
                    Error::CannotAttach {
                        pid: tid,
                        group: dir.path().to_owned(),
                        source: errno.into(),
                    }
                }
                _ => dir.error("write", file, errno),
            })
    }
}

fn chown(dir: &crate::dir::Dir, name: &str, uid: u32, gid: u32) -> Result<()> {
    chownat(
        dir,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(|errno| dir.error("change the owner of", name, errno))
}
