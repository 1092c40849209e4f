//! Existing namespaces: telling them apart, holding them, and making a user namespace for its map.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use crate::{Command, Error, Namespace, UserMapping, sys};

/// Which namespace it is: two processes are in the same one when these are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespaceId {
    kind: Namespace,
    device: u64,
    inode: u64,
}

impl NamespaceId {
    /// The namespace of a kind that the process `pid` is in.
    ///
    /// # Errors
    ///
    /// When there is no such process or the caller may not look into it.
    pub fn of_process(pid: u32, kind: Namespace) -> Result<Self, Error> {
        Self::of_path(format!("/proc/{pid}/ns/{}", kind.proc_name()), kind)
    }

    /// The namespace of a kind that the calling thread is in.
    ///
    /// # Errors
    ///
    /// When `/proc` is not mounted.
    pub fn of_this_thread(kind: Namespace) -> Result<Self, Error> {
        Self::of_path(format!("/proc/thread-self/ns/{}", kind.proc_name()), kind)
    }

    /// `None` for a kind that the kernel was built without.
    pub(crate) fn of_this_thread_if_known(kind: Namespace) -> Result<Option<Self>, Error> {
        match Self::of_this_thread(kind) {
            Ok(id) => Ok(Some(id)),
            Err(Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound
                    && Path::new("/proc/thread-self/ns/mnt").exists() =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// All namespaces of the process `pid`.
    ///
    /// # Errors
    ///
    /// As [`of_process`](Self::of_process).
    pub fn all_of_process(pid: u32) -> Result<[Self; 8], Error> {
        let mut ids = [Self {
            kind: Namespace::User,
            device: 0,
            inode: 0,
        }; 8];
        for (id, kind) in ids.iter_mut().zip(Namespace::ALL) {
            *id = Self::of_process(pid, kind)?;
        }
        Ok(ids)
    }

    fn of_path(path: String, kind: Namespace) -> Result<Self, Error> {
        let stat = fs::metadata(&path).map_err(Error::io_path("look at the namespace", path))?;
        Ok(Self {
            kind,
            device: stat.dev(),
            inode: stat.ino(),
        })
    }

    /// The kind.
    pub fn kind(self) -> Namespace {
        self.kind
    }

    /// The number that `ls -l /proc/PID/ns` and `lsns` show.
    pub fn inode(self) -> u64 {
        self.inode
    }
}

/// As the links under `/proc/PID/ns`: `net:[4026531840]`.
impl fmt::Display for NamespaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:[{}]", self.kind.proc_name(), self.inode)
    }
}

/// A new user namespace with these ids and no process in it, as idmapped mounts need one.
///
/// # Errors
///
/// As [`Command::start`].
pub fn user_namespace(mapping: UserMapping) -> Result<OwnedFd, Error> {
    let mut command = Command::new("/");
    let starting = command.user_namespace(mapping).start()?;
    let path = format!("/proc/{}/ns/user", starting.pid());
    let file = File::open(&path).map_err(Error::io_path("open the namespace", path))?;
    Ok(file.into())
}

/// Keeps a namespace alive without a process: binds it on `path`, which is made as an empty file
/// if it is missing. [`Command::join_path`] takes such a path; `umount(2)` lets the namespace go.
///
/// A mount namespace can only be bound in one that is older than it, see `mount_namespaces(7)`.
///
/// # Errors
///
/// When `namespace` is none, or the caller may not mount.
#[doc(alias = "nsfs")]
pub fn persist(namespace: impl AsFd, path: impl AsRef<Path>) -> Result<(), Error> {
    let (namespace, path) = (namespace.as_fd(), path.as_ref());
    sys::namespace_type(namespace)
        .map_err(|errno| Error::io("look at the namespace")(errno.into()))?;
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(Error::io_path("make", path))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(namespace, c"", flags)
        .and_then(|tree| {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(&tree, c"", CWD, path, flags)
        })
        .map_err(|errno| Error::io_path("bind the namespace on", path)(errno.into()))
}
