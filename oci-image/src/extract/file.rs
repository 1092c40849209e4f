//! Files of every kind that is no directory.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Stat, fstat, ftruncate, linkat, mknodat, openat, statat,
    symlinkat,
};
use rustix::io::Errno;

use super::metadata::{set_times, timestamps};
use super::{Extractor, failed, split};
use crate::error::{Error, Result, excerpt};
use crate::limits::check_bytes;
use crate::rootdir::{self, is_whiteout, open_directory, proc_path};
use crate::tar_reader::{TarEntry, TarReader};
use crate::whiteout::Whiteouts;

impl Extractor<'_> {
    pub(super) fn regular<R: BufRead>(
        &mut self,
        entry: &TarEntry,
        name: &[u8],
        archive: &mut TarReader<R>,
    ) -> Result<()> {
        const NEW: OFlags = OFlags::WRONLY
            .union(OFlags::CREATE)
            .union(OFlags::EXCL)
            .union(OFlags::NOFOLLOW)
            .union(OFlags::CLOEXEC);
        // A file that is to have nothing but an ordinary mode has it from the beginning. Who sets attributes must be
        // allowed to write.
        let has_default = self.parent()?.default_acl;
        let plain =
            entry.mode & (self.umask | 0o7000) == 0 && entry.xattrs.is_empty() && !has_default;
        let mode = if plain { entry.mode } else { 0o600 };
        let mut file = File::from(self.create(name, "make the file", |parent, name| {
            openat(parent, name, NEW, Mode::from_raw_mode(mode))
        })?);
        let write = |source: io::Error| Error::Unpack {
            operation: "write the file",
            source,
        };
        if let Some(map) = &entry.sparse {
            for &(offset, length) in map {
                let mut at = offset;
                let end = offset + length;
                while at < end {
                    let data = archive.fill_data()?;
                    let n = data
                        .len()
                        .min(usize::try_from(end - at).unwrap_or(usize::MAX));
                    if n == 0 {
                        break;
                    }
                    file.write_all_at(&data[..n], at).map_err(write)?;
                    archive.consume_data(n);
                    at += n as u64;
                }
                self.report.bytes += length;
            }
            check_bytes(
                "the sparse file",
                entry.size,
                self.limits.layer_bytes,
                "layer_bytes",
            )?;
            ftruncate(&file, entry.size).map_err(failed("set the length of the file"))?;
        } else {
            loop {
                let data = archive.fill_data()?;
                let n = data.len();
                if n == 0 {
                    break;
                }
                file.write_all(data).map_err(write)?;
                archive.consume_data(n);
            }
            self.report.bytes += entry.size;
        }
        self.own(entry, file.as_fd(), false)?;
        self.set_xattrs(entry, file.as_fd())?;
        if !plain {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
                .map_err(failed("set the mode of the file"))?;
        }
        self.finish_acls(entry, file.as_fd())?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime))
            .map_err(failed("set the time of the file"))
    }

    pub(super) fn symlink(&mut self, entry: &TarEntry, name: &[u8]) -> Result<()> {
        let target = OsStr::from_bytes(&entry.link);
        self.create(name, "make the symbolic link", |parent, name| {
            symlinkat(target, parent, name)
        })?;
        let fd = self.reopen(name, FileType::Symlink)?;
        self.own(entry, fd.as_fd(), false)?;
        self.set_xattrs(entry, fd.as_fd())?;
        set_times(fd.as_fd(), entry.mtime)
    }

    pub(super) fn node(&mut self, entry: &TarEntry, name: &[u8], kind: FileType) -> Result<()> {
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let operation = if kind == FileType::Fifo {
            "make the named pipe"
        } else {
            "make the device node"
        };
        self.create(name, operation, |parent, name| {
            mknodat(parent, name, kind, Mode::RUSR | Mode::WUSR, device)
        })?;
        let fd = self.reopen(name, kind)?;
        self.own(entry, fd.as_fd(), false)?;
        self.set_xattrs(entry, fd.as_fd())?;
        rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(entry.mode))
            .map_err(failed("set the mode"))?;
        self.finish_acls(entry, fd.as_fd())?;
        set_times(fd.as_fd(), entry.mtime)
    }

    /// An fd to what was just made, which must be of the right kind still.
    fn reopen(&self, name: &[u8], kind: FileType) -> Result<OwnedFd> {
        let fd = openat(
            &self.parent()?.fd,
            OsStr::from_bytes(name),
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed("open what was made"))?;
        let stat = fstat(&fd).map_err(failed("look at what was made"))?;
        if rootdir::file_type(&stat) != kind {
            return Err(failed("open what was made: somebody replaced it meanwhile")(Errno::BUSY));
        }
        Ok(fd)
    }

    /// The target is a name in the archive: links on the way to it are followed within the root, it itself is not.
    pub(super) fn hardlink(&mut self, entry: &TarEntry, name: &[u8]) -> Result<()> {
        let target = self.path(&entry.link)?;
        let (target_parent, target_name) = split(&target);
        let missing = || Error::HardlinkTarget {
            target: excerpt(&String::from_utf8_lossy(&entry.link)),
        };
        if target_name.is_empty() {
            return Err(missing());
        }
        let same = self.parent()?.path == target_parent;
        let opened = if same {
            None
        } else {
            Some(open_directory(self.root.as_fd(), target_parent))
        };
        let target_os = OsStr::from_bytes(target_name);
        let present = match &opened {
            Some(Err(Errno::NOENT)) => None,
            Some(Err(errno)) => {
                return Err(failed("open the directory of the link's target")(*errno));
            }
            Some(Ok(fd)) => statat(fd, target_os, AtFlags::SYMLINK_NOFOLLOW).ok(),
            None => statat(&self.parent()?.fd, target_os, AtFlags::SYMLINK_NOFOLLOW).ok(),
        };
        let (from, stat) = match (opened, present) {
            (Some(Ok(fd)), Some(stat)) => (fd, stat),
            (None, Some(stat)) => (
                self.parent()?
                    .fd
                    .try_clone()
                    .map_err(|source| Error::Unpack {
                        operation: "open the directory of the link's target",
                        source,
                    })?,
                stat,
            ),
            // The layers below may have it.
            _ => self.copy_up(&target, entry.offset)?.ok_or_else(missing)?,
        };
        if is_whiteout(&stat) && self.options.whiteouts != Whiteouts::Apply {
            return Err(missing());
        }
        // A link to itself would be removed before it is made.
        if let Ok(here) = statat(
            &self.parent()?.fd,
            OsStr::from_bytes(name),
            AtFlags::SYMLINK_NOFOLLOW,
        ) && (here.st_dev, here.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        self.create(name, "make the hard link", |parent, name| {
            linkat(&from, target_os, parent, name, AtFlags::empty())
        })
    }

    /// Copies a file from the layers below to its place here; returns its directory.
    fn copy_up(&mut self, path: &[u8], offset: u64) -> Result<Option<(OwnedFd, Stat)>> {
        let Some((file, stat)) = self
            .options
            .below
            .file(path)
            .map_err(failed("look for the link's target below"))?
        else {
            return Ok(None);
        };
        self.copied = self
            .copied
            .saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        check_bytes(
            "what the layer's links copy from below",
            self.copied,
            self.limits.layer_bytes,
            "layer_bytes",
        )?;
        let (parent, name) = split(path);
        let directory = match open_directory(self.root.as_fd(), parent) {
            Ok(fd) => {
                let there = fstat(&fd).map_err(failed("look at a directory"))?;
                self.pending.reopen(&there, parent, offset);
                fd
            }
            Err(Errno::NOENT) => self.make_missing(parent, offset)?,
            Err(errno) => return Err(failed("open the directory of the link's target")(errno)),
        };
        crate::below::copy(&file, &stat, &directory, name).map_err(|source| Error::Unpack {
            operation: "copy the link's target from the layers below",
            source,
        })?;
        let copied = statat(
            &directory,
            OsStr::from_bytes(name),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed("look at the link's target"))?;
        Ok(Some((directory, copied)))
    }
}
