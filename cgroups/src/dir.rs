//! An open directory of a cgroup file system, and the files in it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::{Error, ParseError, Result};

/// One group in one hierarchy.
#[derive(Debug)]
pub(crate) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Dir {
    /// Opens an absolute path.
    pub(crate) fn open(path: &Path) -> Result<Self, Errno> {
        // The mount point itself may be reached through links, so no NOFOLLOW here.
        let flags = DIRECTORY.difference(OFlags::NOFOLLOW);
        let fd = openat(rustix::fs::CWD, path, flags, Mode::empty())?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    /// Opens a group below this one.
    pub(crate) fn open_below(&self, relative: &Path) -> Result<Self, Errno> {
        let fd = openat(&self.fd, relative, DIRECTORY, Mode::empty())?;
        Ok(Self {
            fd,
            path: self.path.join(relative),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn try_clone(&self) -> Result<Self> {
        let fd = self.fd.try_clone().map_err(|source| Error::Io {
            operation: "duplicate the descriptor of",
            path: self.path.clone(),
            source,
        })?;
        Ok(Self {
            fd,
            path: self.path.clone(),
        })
    }

    /// Whether the group has not been removed meanwhile.
    pub(crate) fn is_alive(&self) -> bool {
        self.has("cgroup.procs")
    }

    /// What tells this group from one that was later made under its name.
    pub(crate) fn inode(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.fd).map_err(|errno| self.error("read", "", errno))?;
        Ok(stat.st_ino)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        rustix::fs::accessat(
            &self.fd,
            name,
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        )
        .is_ok()
    }

    /// Opens a file of the group. The error is as for [`Dir::read`].
    pub(crate) fn open_file(&self, name: &str, flags: OFlags) -> Result<OwnedFd> {
        openat(&self.fd, name, flags | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| self.error("open", name, errno))
    }

    /// Reads a list of the group into `buffer`, which is emptied first.
    pub(crate) fn read_into(&self, name: &str, buffer: &mut Vec<u8>) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.fd, name, flags, Mode::empty())?;
        read_all(file.as_fd(), buffer)
    }

    /// Reads a file of the group.
    pub(crate) fn read(&self, name: &str) -> Result<String> {
        let file = openat(
            &self.fd,
            name,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| self.error("read", name, errno))?;
        self.read_open(name, file.as_fd())
    }

    /// Reads a file of the group that is open.
    pub(crate) fn read_open(&self, name: &str, file: BorrowedFd<'_>) -> Result<String> {
        let mut buffer = Vec::new();
        read_record(file, &mut buffer).map_err(|errno| self.error("read", name, errno))?;
        String::from_utf8(buffer).map_err(|error| {
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            self.unforeseen(name, ParseError::new("text", &text))
        })
    }

    /// Reads a file that not every kernel or every group has.
    pub(crate) fn try_read(&self, name: &str) -> Result<Option<String>> {
        match self.read(name) {
            Err(Error::Io { source, .. })
                if matches!(
                    Errno::from_io_error(&source),
                    Some(Errno::NOENT | Errno::OPNOTSUPP)
                ) =>
            {
                Ok(None)
            }
            other => other.map(Some),
        }
    }

    /// Writes a file of the group.
    pub(crate) fn write_raw(&self, name: &str, value: &str) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.fd, name, flags, Mode::empty())?;
        write_value(file.as_fd(), value)
    }

    pub(crate) fn write(&self, name: &str, value: &str) -> Result<()> {
        self.write_raw(name, value)
            .map_err(|errno| self.error("write", name, errno))
    }

    /// The error for a file of this group, where nothing more particular is known.
    pub(crate) fn error(&self, operation: &'static str, name: &str, errno: Errno) -> Error {
        let path = if name.is_empty() {
            self.path.clone()
        } else {
            self.file(name)
        };
        let source = errno.into();
        match errno {
            Errno::NODEV => Error::Vanished {
                group: self.path.clone(),
                source,
            },
            Errno::NOENT if !self.is_alive() => Error::Vanished {
                group: self.path.clone(),
                source,
            },
            Errno::ACCESS | Errno::PERM => Error::NotDelegated { path, source },
            Errno::ROFS => Error::ReadOnly { path, source },
            _ => Error::Io {
                operation,
                path,
                source,
            },
        }
    }

    pub(crate) fn unforeseen(&self, name: &str, source: ParseError) -> Error {
        Error::Parse {
            path: self.file(name),
            source,
        }
    }
}

/// Writes an open file with the one call that the kernel's parsers want.
pub(crate) fn write_value(file: BorrowedFd<'_>, value: &str) -> Result<(), Errno> {
    #[cfg(test)]
    crate::fault::check()?;
    // An empty write would never reach the kernel's handler; a line break does, and means the
    // same.
    let value = if value.is_empty() { "\n" } else { value };
    rustix::io::pwrite(file, value.as_bytes(), 0).map(drop)
}

/// Reads a list from the beginning to the end, whatever the position of `file`.
pub(crate) fn read_all(file: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    buffer.clear();
    while read_more(file, buffer)? > 0 {}
    Ok(())
}

/// Reads a file that the kernel prints as one record, as every file of a group is but the lists
/// of processes. Such a record never comes in parts, so a read that leaves room was the last.
fn read_record(file: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<(), Errno> {
    buffer.clear();
    while read_more(file, buffer)? > 0 && buffer.len() == buffer.capacity() {}
    Ok(())
}

fn read_more(file: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<usize, Errno> {
    if buffer.capacity() - buffer.len() < 1024 {
        // Almost every file fits the first time.
        buffer.reserve(4096.max(buffer.len()));
    }
    loop {
        let at = buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), at) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}
