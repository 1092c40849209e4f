//! Directories: made at once, and finished when nothing is put into them any more.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, chownat, fstat, mkdirat, openat, statat,
};
use rustix::io::Errno;

use super::metadata::{Acls, drop_xattrs, mtime_of, remove_xattr, set_times};
use super::{Extractor, failed, split};
use crate::acl;
use crate::error::{Error, Result};
use crate::limits::check_bytes;
use crate::report::UnpackReport;
use crate::rootdir::{self, is_whiteout, make_directories, open_directory, proc_path};
use crate::tar_reader::{TarEntry, TarKind};
use crate::whiteout::Whiteouts;

/// What is set on a directory in the end.
pub(super) struct PendingDirectory {
    path: Box<[u8]>,
    mode: u32,
    mtime: (i64, u32),
    /// Attributes that would be handed on to what is made in the directory.
    acls: Acls,
    /// Where the entry is in the archive.
    offset: u64,
}

/// Bytes that directories of ordinary images take until the end. Beyond that some are finished before, and once more if
/// something else is put into them.
const HELD: u64 = 4 << 20;

/// Directories get mode and time in the end: until then they must be writable, and writing changes their time.
#[derive(Default)]
pub(super) struct Pending {
    /// By device and inode; of two entries for one directory the later counts.
    directories: HashMap<(u64, u64), PendingDirectory>,
    /// Bytes of those that can be finished before the end, and of the others.
    open: u64,
    shut: u64,
    /// Some are finished already.
    early: bool,
}

impl PendingDirectory {
    fn bytes(&self) -> u64 {
        let acls: usize = self.acls.iter().map(|(_, value)| 32 + value.len()).sum();
        (size_of::<((u64, u64), PendingDirectory)>() + self.path.len() + acls) as u64
    }

    /// Whether something can be put into it afterwards as before.
    fn stays_open(&self) -> bool {
        self.mode & 0o700 == 0o700 && self.acls.is_empty()
    }
}

impl Pending {
    fn insert(&mut self, stat: &Stat, directory: PendingDirectory) {
        *self.counted(&directory) += directory.bytes();
        let id = (stat.st_dev, stat.st_ino);
        if let Some(before) = self.directories.insert(id, directory) {
            *self.counted(&before) -= before.bytes();
        }
    }

    fn counted(&mut self, directory: &PendingDirectory) -> &mut u64 {
        if directory.stays_open() {
            &mut self.open
        } else {
            &mut self.shut
        }
    }

    /// A directory is going to be changed, that may be finished already: it is finished again, as it is.
    pub(super) fn reopen(&mut self, stat: &Stat, path: &[u8], offset: u64) {
        if self.early && !self.directories.contains_key(&(stat.st_dev, stat.st_ino)) {
            let directory = PendingDirectory {
                path: path.into(),
                mode: stat.st_mode & 0o7777,
                mtime: mtime_of(stat),
                acls: Box::default(),
                offset,
            };
            self.insert(stat, directory);
        }
    }
}

impl Extractor<'_> {
    /// Sets what had to wait, and says what was done.
    pub(crate) fn finish(mut self) -> Result<UnpackReport> {
        let pending = std::mem::take(&mut self.pending);
        self.finish_directories(pending.directories)?;
        Ok(self.report)
    }

    /// Finishes directories before the end when there are very many.
    pub(super) fn finish_some(&mut self) -> Result<()> {
        let most = self.limits.deferred_bytes;
        check_bytes(
            "what is kept of directories to be closed in the end",
            self.pending.shut,
            most,
            "deferred_bytes",
        )?;
        if self.pending.open <= HELD.min(most) {
            return Ok(());
        }
        let (open, shut): (HashMap<_, _>, HashMap<_, _>) =
            std::mem::take(&mut self.pending.directories)
                .into_iter()
                .partition(|(_, directory)| directory.stays_open());
        self.pending.directories = shut;
        self.pending.open = 0;
        self.pending.early = true;
        self.finish_directories(open)
    }

    fn finish_directories(
        &mut self,
        directories: HashMap<(u64, u64), PendingDirectory>,
    ) -> Result<()> {
        // Its time would be changed, and what is known of it is not so any more.
        self.parent = None;
        let mut directories: Vec<_> = directories.into_iter().collect();
        // What is deeper comes first, as its directory may not be searchable afterwards.
        directories
            .sort_by_key(|(_, pending)| std::cmp::Reverse(rootdir::parts(&pending.path).count()));
        for (id, pending) in directories {
            let context = |error: Error| error.in_entry(&pending.path, pending.offset);
            let fd = match open_directory(self.root.as_fd(), &pending.path) {
                Ok(fd) => fd,
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(context(failed("open a directory again")(errno))),
            };
            let stat = fstat(&fd).map_err(|errno| context(failed("look at a directory")(errno)))?;
            if (stat.st_dev, stat.st_ino) != id {
                continue;
            }
            rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(pending.mode))
                .map_err(|errno| context(failed("set the mode of a directory")(errno)))?;
            self.set_acls(&pending.path, fd.as_fd(), &pending.acls)
                .map_err(context)?;
            set_times(fd.as_fd(), pending.mtime).map_err(context)?;
        }
        Ok(())
    }

    /// The directory nearest to `path` that is there is going to be changed.
    fn reopen_nearest(&mut self, path: &[u8], offset: u64) -> Result<()> {
        if !self.pending.early {
            return Ok(());
        }
        let mut path = path;
        loop {
            match open_directory(self.root.as_fd(), path) {
                Ok(fd) => {
                    let stat = fstat(&fd).map_err(failed("look at a directory"))?;
                    self.pending.reopen(&stat, path, offset);
                    return Ok(());
                }
                Err(_) if !path.is_empty() => path = split(path).0,
                Err(errno) => return Err(failed("open a directory again")(errno)),
            }
        }
    }

    /// A directory that the layer uses without listing it looks like the one below, or belongs to root.
    pub(super) fn make_missing(&mut self, path: &[u8], offset: u64) -> Result<OwnedFd> {
        self.reopen_nearest(path, offset)?;
        let mut made = Vec::new();
        let root = make_directories(self.root.as_fd(), path, |fd, path| {
            if rootdir::parts(path).count() as u64 > self.limits.depth {
                return Err(Errno::NAMETOOLONG);
            }
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
                    mode: 0o755,
                    mtime: mtime_of(&stat),
                    acls: Box::default(),
                    offset,
                }
            };
            self.pending.insert(&stat, pending);
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
        let pending = PendingDirectory {
            path: path.into(),
            mode: entry.mode,
            mtime: entry.mtime,
            acls,
            offset: entry.offset,
        };
        self.pending.insert(&stat, pending);
        Ok(())
    }
}
