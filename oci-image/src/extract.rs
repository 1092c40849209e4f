//! Making the entries of a layer below a directory, by file descriptors alone.

mod directory;
mod file;
mod hide;
mod metadata;

use std::ffi::OsStr;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use crate::acl;
use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::report::{SkipReason, UnpackReport};
use crate::rootdir::{self, open_directory_within, parts, proc_path};
use crate::tar_reader::{TarEntry, TarKind, TarReader};
use crate::unpack::{Devices, UnpackOptions};
use crate::whiteout::{Meaning, meaning};
use directory::Pending;
use hide::Hiding;

/// Puts entries into a directory, in the order of the archive.
pub(crate) struct Extractor<'a> {
    root: OwnedFd,
    options: &'a UnpackOptions,
    limits: &'a Limits,
    report: UnpackReport,
    /// The directory of the entry before; entries of one directory mostly follow one another.
    parent: Option<Parent>,
    hiding: Hiding,
    pending: Pending,
    /// Bytes copied from the layers below.
    copied: u64,
    /// Ids that a new file has without further ado.
    own_uid: u32,
    own_gid: u32,
    /// The bits of a mode that a new file does not get.
    umask: u32,
}

struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
    inode: u64,
    setgid: bool,
    /// New files get an access control list that their entries do not have.
    default_acl: bool,
}

/// A failed call, with what it was for.
fn failed(operation: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Unpack {
        operation,
        source: errno.into(),
    }
}

impl<'a> Extractor<'a> {
    pub(crate) fn new(
        root: BorrowedFd<'_>,
        options: &'a UnpackOptions,
        limits: &'a Limits,
    ) -> Result<Extractor<'a>> {
        let root = openat(
            root,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed("open the directory to unpack into"))?;
        Ok(Extractor {
            options,
            limits,
            report: UnpackReport::default(),
            parent: None,
            hiding: Hiding::new(options.whiteouts, &root)
                .map_err(failed("list the directory to unpack into"))?,
            pending: Pending::default(),
            copied: 0,
            own_uid: rustix::process::geteuid().as_raw(),
            own_gid: rustix::process::getegid().as_raw(),
            umask: rootdir::umask(),
            root,
        })
    }

    /// Makes one entry; its contents are read from `archive`.
    pub(crate) fn entry<R: BufRead>(
        &mut self,
        entry: &TarEntry,
        archive: &mut TarReader<R>,
    ) -> Result<()> {
        self.report.entries += 1;
        self.finish_some()?;
        let path = self.path(&entry.path)?;
        let Some(split) = path
            .iter()
            .rposition(|&b| b == b'/')
            .map(|at| at + 1)
            .or(Some(0))
        else {
            return Ok(());
        };
        let (parent, name) = (&path[..split.saturating_sub(1)], &path[split..]);
        if name.is_empty() {
            return self.root_entry(entry);
        }
        match meaning(name)? {
            Meaning::File => {
                self.enter(parent, entry.offset)?;
                self.make(entry, &path, name, archive)
            }
            Meaning::Hides(hidden) => {
                self.report.whiteouts += 1;
                self.enter(parent, entry.offset)?;
                self.hide(hidden)
            }
            Meaning::Opaque => {
                self.report.whiteouts += 1;
                if parent.is_empty() {
                    self.report.opaque_root = true;
                }
                self.enter(parent, entry.offset)?;
                self.hide_all()
            }
            Meaning::Aufs => {
                self.report.skip(&entry.path, SkipReason::Aufs);
                Ok(())
            }
        }
    }

    /// The entry's name without empty parts and `.`; refused if it would climb.
    fn path(&self, name: &[u8]) -> Result<Vec<u8>> {
        if name.is_empty() {
            return Err(Error::UnsafePath { reason: "is empty" });
        }
        let mut path = Vec::with_capacity(name.len());
        let mut depth = 0;
        for part in parts(name) {
            if part == b".." {
                return Err(Error::UnsafePath {
                    reason: "climbs by `..`",
                });
            }
            if depth > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(part);
            depth += 1;
        }
        if depth > self.limits.depth {
            return Err(Error::Limit {
                what: "the entry's name",
                found: depth,
                unit: "parts",
                limit: self.limits.depth,
                setting: "depth",
            });
        }
        Ok(path)
    }

    /// Makes `path` the current directory, and the directories that lead to it if they are missing.
    fn enter(&mut self, path: &[u8], offset: u64) -> Result<()> {
        if self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.path == path)
        {
            return Ok(());
        }
        let fd = match open_directory_within(self.root.as_fd(), path, self.limits.depth) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => self.make_missing(path, offset)?,
            Err(errno) => return Err(failed("open the directory of the entry")(errno)),
        };
        let stat = fstat(&fd).map_err(failed("look at the directory of the entry"))?;
        self.pending.reopen(&stat, path, offset);
        let default_acl = rustix::fs::getxattr(proc_path(&fd), acl::DEFAULT, &mut [0u8; 1]);
        self.parent = Some(Parent {
            path: path.to_vec(),
            // Whatever it is, it is longer than that.
            default_acl: matches!(default_acl, Ok(1..) | Err(Errno::RANGE)),
            fd,
            inode: stat.st_ino,
            setgid: stat.st_mode & 0o2000 != 0,
        });
        Ok(())
    }

    fn parent(&self) -> Result<&Parent> {
        // `enter` comes before everything that asks for it.
        self.parent.as_ref().ok_or(Error::UnsafePath {
            reason: "has no directory",
        })
    }

    /// Makes a file of any kind in the current directory.
    fn make<R: BufRead>(
        &mut self,
        entry: &TarEntry,
        path: &[u8],
        name: &[u8],
        archive: &mut TarReader<R>,
    ) -> Result<()> {
        match entry.kind {
            TarKind::Directory => self.directory(entry, path, name)?,
            TarKind::Regular => self.regular(entry, name, archive)?,
            TarKind::Symlink => self.symlink(entry, name)?,
            TarKind::Hardlink => self.hardlink(entry, name)?,
            TarKind::Fifo => self.node(entry, name, FileType::Fifo)?,
            TarKind::Char | TarKind::Block => {
                let (major, minor) = entry.device;
                if self.options.devices == Devices::Skip {
                    self.report
                        .skip(&entry.path, SkipReason::Device { major, minor });
                    return Ok(());
                }
                if entry.kind == TarKind::Char && entry.device == (0, 0) {
                    self.report.skip(&entry.path, SkipReason::WhiteoutDevice);
                    return Ok(());
                }
                let kind = if entry.kind == TarKind::Char {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                self.node(entry, name, kind)?;
            }
        }
        let inode = self.parent()?.inode;
        self.hiding.made(inode, name);
        Ok(())
    }

    /// Runs `create`, and again after removing what is in its way.
    fn create<T>(
        &mut self,
        name: &[u8],
        operation: &'static str,
        mut create: impl FnMut(BorrowedFd<'_>, &OsStr) -> Result<T, Errno>,
    ) -> Result<T> {
        let os_name = OsStr::from_bytes(name);
        let parent = self.parent()?;
        match create(parent.fd.as_fd(), os_name) {
            Err(Errno::EXIST) => {}
            result => return result.map_err(failed(operation)),
        }
        let removed = rootdir::remove(parent.fd.as_fd(), name, &|_, _| false)
            .map_err(failed("remove what is in the way"))?;
        if !removed {
            return Err(failed("remove what is in the way")(Errno::NOTEMPTY));
        }
        create(parent.fd.as_fd(), os_name).map_err(failed(operation))
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
