//! A directory that takes part in an overlay, given by path or by descriptor.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};

use crate::error::{Error, Result, Role};

/// A directory of an overlay.
///
/// A path is followed when the overlay is mounted. A descriptor (`O_PATH` is enough) keeps
/// meaning the same directory whatever happens to its name; it may also be a detached
/// mount, for instance an idmapped one (a detached layer needs Linux 6.15).
#[derive(Debug)]
pub struct Layer(Inner);

#[derive(Debug)]
enum Inner {
    Path(PathBuf),
    Fd(OwnedFd),
}

/// A layer that is open, and its name for messages.
pub(crate) struct Opened<'a> {
    fd: Handle<'a>,
    pub(crate) path: PathBuf,
    /// The path by which the kernel may find it too; none for a layer given by descriptor.
    pub(crate) given: Option<&'a Path>,
}

enum Handle<'a> {
    Own(OwnedFd),
    Lent(BorrowedFd<'a>),
}

impl AsFd for Opened<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.fd {
            Handle::Own(fd) => fd.as_fd(),
            Handle::Lent(fd) => *fd,
        }
    }
}

impl<'a> Opened<'a> {
    pub(crate) fn owned(fd: OwnedFd, path: PathBuf, given: Option<&'a Path>) -> Self {
        Opened {
            fd: Handle::Own(fd),
            path,
            given,
        }
    }
}

impl Layer {
    pub(crate) fn open(&self, role: Role) -> Result<Opened<'_>> {
        match &self.0 {
            Inner::Path(path) => Ok(Opened {
                fd: Handle::Own(open_directory(path, role)?),
                path: path.clone(),
                given: Some(path),
            }),
            Inner::Fd(fd) => Ok(Opened {
                fd: Handle::Lent(fd.as_fd()),
                path: name_of(fd.as_fd()),
                given: None,
            }),
        }
    }
}

/// Opens a directory as a place (`O_PATH`), also when its path is longer than `PATH_MAX`.
pub(crate) fn open_directory(path: &Path, role: Role) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fail = |source: rustix::io::Errno| Error::OpenDirectory {
        role,
        path: path.to_owned(),
        source: source.into(),
    };
    match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NAMETOOLONG) => {
            let mut at: Option<OwnedFd> = None;
            for part in path.components() {
                let next = match &at {
                    None => rustix::fs::openat(CWD, part.as_os_str(), flags, Mode::empty()),
                    Some(at) => rustix::fs::openat(at, part.as_os_str(), flags, Mode::empty()),
                };
                at = Some(next.map_err(fail)?);
            }
            at.ok_or_else(|| fail(rustix::io::Errno::NAMETOOLONG))
        }
        other => other.map_err(fail),
    }
}

/// The name of a descriptor for messages: its path where procfs tells, else its number.
pub(crate) fn name_of(fd: BorrowedFd<'_>) -> PathBuf {
    let link = fd_path(fd);
    std::fs::read_link(&link).unwrap_or(link)
}

/// The path under which this process finds one of its own descriptors.
pub(crate) fn fd_path(fd: BorrowedFd<'_>) -> PathBuf {
    use std::os::fd::AsRawFd;
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

impl From<OwnedFd> for Layer {
    fn from(fd: OwnedFd) -> Self {
        Layer(Inner::Fd(fd))
    }
}

impl From<PathBuf> for Layer {
    fn from(path: PathBuf) -> Self {
        Layer(Inner::Path(path))
    }
}

impl From<&PathBuf> for Layer {
    fn from(path: &PathBuf) -> Self {
        Layer(Inner::Path(path.clone()))
    }
}

impl From<&Path> for Layer {
    fn from(path: &Path) -> Self {
        Layer(Inner::Path(path.to_owned()))
    }
}

impl From<OsString> for Layer {
    fn from(path: OsString) -> Self {
        Layer(Inner::Path(path.into()))
    }
}

impl From<String> for Layer {
    fn from(path: String) -> Self {
        Layer(Inner::Path(path.into()))
    }
}

impl From<&String> for Layer {
    fn from(path: &String) -> Self {
        Layer(Inner::Path(path.into()))
    }
}

impl From<&str> for Layer {
    fn from(path: &str) -> Self {
        Layer(Inner::Path(path.into()))
    }
}
