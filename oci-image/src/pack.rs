//! What goes into a layer: entries, and directories as entries.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, major, minor, openat, readlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::rootdir::{file_type, names, proc_path};

/// Something to be put into a layer.
#[derive(Debug)]
pub struct Entry {
    /// The name, relative to the root of the image.
    pub path: PathBuf,
    /// What it is.
    pub kind: EntryKind,
    /// Owner, mode, time and attributes.
    pub metadata: Metadata,
}

/// What an [`Entry`] is.
#[derive(Debug)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    Regular(Contents),
    /// A symbolic link.
    Symlink(PathBuf),
    /// Another name of an entry that came before.
    Hardlink(PathBuf),
    /// A character device.
    Char {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// Hides what the layers below have at [`Entry::path`].
    Whiteout,
    /// Hides everything that the layers below have in the directory [`Entry::path`].
    Opaque,
}

/// The contents of a regular file.
#[derive(Debug)]
pub enum Contents {
    /// These bytes.
    Bytes(Vec<u8>),
    /// An open file from its current position on, and how many bytes of it.
    File(File, u64),
}

impl Contents {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Contents::Bytes(bytes) => bytes.len() as u64,
            Contents::File(_, size) => *size,
        }
    }
}

/// Owner, mode, time and attributes of an [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Last modification: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    /// Belongs to root, was modified in 1970, has no attributes.
    pub fn new(mode: u32) -> Metadata {
        Metadata {
            mode,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Vec::new(),
        }
    }
}

impl Entry {
    /// A directory that belongs to root.
    pub fn directory(path: impl Into<PathBuf>, mode: u32) -> Entry {
        Entry {
            path: path.into(),
            kind: EntryKind::Directory,
            metadata: Metadata::new(mode),
        }
    }

    /// A file that belongs to root.
    pub fn file(path: impl Into<PathBuf>, mode: u32, contents: impl Into<Vec<u8>>) -> Entry {
        Entry {
            path: path.into(),
            kind: EntryKind::Regular(Contents::Bytes(contents.into())),
            metadata: Metadata::new(mode),
        }
    }

    /// A symbolic link that belongs to root.
    pub fn symlink(path: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Entry {
        Entry {
            path: path.into(),
            kind: EntryKind::Symlink(target.into()),
            metadata: Metadata::new(0o777),
        }
    }

    /// A file like the one at `source` on disk, that belongs to root.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when `source` cannot be opened.
    pub fn copy_of(path: impl Into<PathBuf>, mode: u32, source: impl AsRef<Path>) -> Result<Entry> {
        let source = source.as_ref();
        let section = crate::blob::open_regular(source)?;
        let size = section.len();
        let file = section.file.try_clone().map_err(|error| Error::Io {
            operation: "open",
            path: source.to_owned(),
            source: error,
        })?;
        Ok(Entry {
            path: path.into(),
            kind: EntryKind::Regular(Contents::File(file, size)),
            metadata: Metadata::new(mode),
        })
    }
}

/// The entries of a directory and all below it, sorted by name, the directory itself not included.
///
/// Files that have several names become one file and hard links. Sockets cannot be in a layer and are left out; see
/// [`Walk::sockets`].
///
/// # Errors
///
/// [`Error::Io`] when the directory cannot be opened; the iterator's items fail likewise.
pub fn walk(directory: impl AsRef<Path>) -> Result<Walk> {
    let directory = directory.as_ref();
    let frame = Frame::new(open_root(directory)?, Vec::new()).map_err(|errno| Error::Io {
        operation: "list",
        path: directory.to_owned(),
        source: errno.into(),
    })?;
    Ok(Walk {
        base: directory.to_owned(),
        stack: vec![frame],
        links: HashMap::new(),
        sockets: Vec::new(),
    })
}

pub(crate) fn open_root(directory: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        directory,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| Error::Io {
        operation: "open the directory",
        path: directory.to_owned(),
        source: errno.into(),
    })
}

/// An iterator over the entries of a directory; made by [`walk`].
#[derive(Debug)]
pub struct Walk {
    base: PathBuf,
    stack: Vec<Frame>,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
    sockets: Vec<PathBuf>,
}

#[derive(Debug)]
struct Frame {
    fd: OwnedFd,
    path: Vec<u8>,
    /// In reverse order, to be popped.
    names: Vec<Vec<u8>>,
}

impl Frame {
    fn new(fd: OwnedFd, path: Vec<u8>) -> Result<Frame, Errno> {
        let mut names = names(&fd)?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Frame { fd, path, names })
    }
}

impl Walk {
    /// The sockets that have been left out so far.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    fn entry(&mut self, path: &[u8], name: &[u8]) -> Result<Option<Entry>, Errno> {
        let Some(frame) = self.stack.last() else {
            return Ok(None);
        };
        let os_name = OsStr::from_bytes(name);
        let fd = openat(
            &frame.fd,
            os_name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let stat = fstat(&fd)?;
        let relative = PathBuf::from(std::ffi::OsString::from_vec(path.to_vec()));
        let kind = file_type(&stat);
        if kind != FileType::Directory && stat.st_nlink > 1 && kind != FileType::Socket {
            match self.links.entry((stat.st_dev, stat.st_ino)) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    return Ok(Some(Entry {
                        path: relative,
                        kind: EntryKind::Hardlink(first.get().clone()),
                        metadata: metadata(&fd, &stat)?,
                    }));
                }
                std::collections::hash_map::Entry::Vacant(slot) => {
                    slot.insert(relative.clone());
                }
            }
        }
        let Some(kind) = kind_of(&fd, &stat)? else {
            self.sockets.push(relative);
            return Ok(None);
        };
        if matches!(kind, EntryKind::Directory) {
            let list = openat(
                &frame.fd,
                os_name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            self.stack.push(Frame::new(list, path.to_vec())?);
        }
        Ok(Some(Entry {
            path: relative,
            kind,
            metadata: metadata(&fd, &stat)?,
        }))
    }
}

/// What `fd` is, unless it cannot be in a layer.
pub(crate) fn kind_of(fd: &OwnedFd, stat: &Stat) -> Result<Option<EntryKind>, Errno> {
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    Ok(Some(match file_type(stat) {
        FileType::Directory => EntryKind::Directory,
        FileType::RegularFile => {
            let file = rustix::fs::open(
                proc_path(fd),
                OFlags::RDONLY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            EntryKind::Regular(Contents::File(File::from(file), size))
        }
        FileType::Symlink => {
            let target = readlinkat(fd, "", Vec::new())?.into_bytes();
            EntryKind::Symlink(PathBuf::from(std::ffi::OsString::from_vec(target)))
        }
        FileType::CharacterDevice => EntryKind::Char { major, minor },
        FileType::BlockDevice => EntryKind::Block { major, minor },
        FileType::Fifo => EntryKind::Fifo,
        FileType::Socket | FileType::Unknown => return Ok(None),
    }))
}

pub(crate) fn metadata(fd: impl AsFd, stat: &Stat) -> Result<Metadata, Errno> {
    let mut xattrs = crate::below::xattrs(&fd)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // The one belongs to the machine, the others to a mount of overlayfs; none to the image.
    xattrs.retain(|(name, _)| {
        name != b"security.selinux"
            && !name.starts_with(b"trusted.overlay.")
            && !name.starts_with(b"user.overlay.")
    });
    Ok(Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (
            stat.st_mtime,
            u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ),
        xattrs,
    })
}

impl Iterator for Walk {
    type Item = Result<Entry>;

    fn next(&mut self) -> Option<Result<Entry>> {
        loop {
            let frame = self.stack.last_mut()?;
            let Some(name) = frame.names.pop() else {
                self.stack.pop();
                continue;
            };
            let mut path = frame.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            match self.entry(&path, &name) {
                Ok(Some(entry)) => return Some(Ok(entry)),
                Ok(None) => {}
                Err(errno) => {
                    return Some(Err(Error::Io {
                        operation: "read",
                        path: self.base.join(OsStr::from_bytes(&path)),
                        source: errno.into(),
                    }));
                }
            }
        }
    }
}
