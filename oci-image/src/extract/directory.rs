//! Directories: made at once, and finished when nothing is put into them any more.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, mkdirat, openat, statat,
};
use rustix::io::Errno;

use super::metadata::{Acls, drop_xattrs, mtime_of, remove_xattr, set_times};
use super::{Extractor, failed, split};
use crate::acl;
use crate::error::{Error, Result};
use crate::report::UnpackReport;
use crate::rootdir::{self, is_whiteout, make_directories, open_directory, proc_path};
use crate::tar_reader::{TarEntry, TarKind};
use crate::whiteout::Whiteouts;

/// What is set on a directory in the end.
pub(super) struct PendingDirectory {
    path: Box<[u8]>,
    device: u64,
    inode: u64,
    mode: u32,
    mtime: (i64, u32),
    /// Attributes that would be handed on to what is made in the directory.
    acls: Acls,
    /// Where the entry is in the archive.
    offset: u64,
}

impl Extractor<'_> {
    /// Sets what had to wait, and says what was done.
    pub(crate) fn finish(mut self) -> Result<UnpackReport> {
        self.parent = None;
        let mut done = HashSet::new();
        let mut directories = std::mem::take(&mut self.directories);
        // What is deeper comes first, as its directory may not be searchable afterwards; of two entries for one
        // directory the later.
        directories.reverse();
        directories.sort_by_key(|pending| std::cmp::Reverse(rootdir::parts(&pending.path).count()));
        for pending in directories {
            if !done.insert((pending.device, pending.inode)) {
                continue;
            }
            let context = |error: Error| error.in_entry(&pending.path, pending.offset);
            let fd = match open_directory(self.root.as_fd(), &pending.path) {
                Ok(fd) => fd,
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(context(failed("open a directory again")(errno))),
            };
            let stat = fstat(&fd).map_err(|errno| context(failed("look at a directory")(errno)))?;
            if (stat.st_dev, stat.st_ino) != (pending.device, pending.inode) {
                continue;
            }
            rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(pending.mode))
                .map_err(|errno| context(failed("set the mode of a directory")(errno)))?;
            self.set_acls(&pending.path, fd.as_fd(), &pending.acls)
                .map_err(context)?;
            set_times(fd.as_fd(), pending.mtime).map_err(context)?;
        }
        Ok(self.report)
    }

    /// A directory that the layer uses without listing it looks like the one below, or belongs to root.
    pub(super) fn make_missing(&mut self, path: &[u8], offset: u64) -> Result<OwnedFd> {
        let mut made = Vec::new();
        let root = make_directories(self.root.as_fd(), path, |fd, path| {
            made.push((
                fd.try_clone_to_owned()
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?,
                path.to_vec(),
            ));
            Ok(())
        })
        .map_err(failed("make the directory of the entry"))?;
        for (fd, path) in made {
            let below = self
                .options
                .below
                .directory(&path)
                .map_err(failed("look at a directory of the layers below"))?;
            let stat = fstat(&fd).map_err(failed("look at the directory of the entry"))?;
            let (parent, name) = split(&path);
            let parent =
                open_directory(self.root.as_fd(), parent).and_then(|fd| rootdir::inode(fd.as_fd()));
            self.hiding.made(
                parent.map_err(failed("look at the directory of the entry"))?,
                name,
            );
            let pending = if let Some(below) = below {
                // What is on disk has its owner mapped already.
                chownat(
                    &fd,
                    "",
                    Some(Uid::from_raw(below.st_uid)),
                    Some(Gid::from_raw(below.st_gid)),
                    AtFlags::EMPTY_PATH,
                )
                .map_err(failed("set the owner of a directory"))?;
                PendingDirectory {
                    path: path.into(),
                    device: stat.st_dev,
                    inode: stat.st_ino,
                    mode: below.st_mode & 0o7777,
                    mtime: mtime_of(&below),
                    acls: Box::default(),
                    offset,
                }
            } else {
                let (uid, gid) = self.options.ownership.apply(0, 0)?;
                self.set_owner(fd.as_fd(), uid, gid, stat.st_gid != self.own_gid)?;
                PendingDirectory {
                    path: path.into(),
                    device: stat.st_dev,
                    inode: stat.st_ino,
                    mode: 0o755,
                    mtime: mtime_of(&stat),
                    acls: Box::default(),
                    offset,
                }
            };
            self.directories.push(pending);
        }
        Ok(root)
    }

    pub(super) fn root_entry(&mut self, entry: &TarEntry) -> Result<()> {
        if entry.kind != TarKind::Directory {
            return Err(Error::RootNotDirectory {
                kind: entry.kind.name(),
            });
        }
        let root = self.root.try_clone().map_err(|source| Error::Unpack {
            operation: "open the root again",
            source,
        })?;
        self.finish_directory(entry, b"", &root, true)
    }

    pub(super) fn directory(&mut self, entry: &TarEntry, path: &[u8], name: &[u8]) -> Result<()> {
        const OPEN: OFlags = OFlags::PATH
            .union(OFlags::DIRECTORY)
            .union(OFlags::NOFOLLOW)
            .union(OFlags::CLOEXEC);
        let os_name = OsStr::from_bytes(name);
        let parent = self.parent()?;
        let existing = match mkdirat(&parent.fd, os_name, Mode::RWXU) {
            Ok(()) => None,
            Err(Errno::EXIST) => Some(
                statat(&parent.fd, os_name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("look at what is in the way"))?,
            ),
            Err(errno) => return Err(failed("make the directory")(errno)),
        };
        let mut hides_below = false;
        if let Some(existing) =
            existing.filter(|stat| rootdir::file_type(stat) != FileType::Directory)
        {
            hides_below = self.options.whiteouts != Whiteouts::Apply && is_whiteout(&existing);
            self.create(name, "make the directory", |parent, name| {
                mkdirat(parent, name, Mode::RWXU)
            })?;
        }
        let parent = self.parent()?;
        let inherits = parent.default_acl;
        let fd = openat(&parent.fd, os_name, OPEN, Mode::empty())
            .map_err(failed("open the directory"))?;
        if inherits {
            remove_xattr(fd.as_fd(), acl::ACCESS)?;
            remove_xattr(fd.as_fd(), acl::DEFAULT)?;
        }
        if hides_below {
            self.set_opaque(&fd)?;
        }
        self.finish_directory(entry, path, &fd, existing.is_some())
    }

    fn finish_directory(
        &mut self,
        entry: &TarEntry,
        path: &[u8],
        fd: &OwnedFd,
        existed: bool,
    ) -> Result<()> {
        let stat = fstat(fd).map_err(failed("look at the directory"))?;
        self.own(entry, fd.as_fd(), existed)?;
        if existed && self.options.whiteouts == Whiteouts::Apply {
            drop_xattrs(fd.as_fd(), entry)?;
        }
        self.set_xattrs(entry, fd.as_fd())?;
        let acls = self.acls(entry)?;
        if existed && stat.st_mode & 0o700 != 0o700 {
            // Until the end we must be able to put something into it.
            rustix::fs::chmod(
                proc_path(fd),
                Mode::from_raw_mode(stat.st_mode & 0o7777 | 0o700),
            )
            .map_err(failed("set the mode of a directory"))?;
        }
        self.directories.push(PendingDirectory {
            path: path.into(),
            device: stat.st_dev,
            inode: stat.st_ino,
            mode: entry.mode,
            mtime: entry.mtime,
            acls,
            offset: entry.offset,
        });
        Ok(())
    }
}
