//! Making the entries of a layer below a directory, by file descriptors alone.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fstat, ftruncate, linkat, mkdirat, mknodat, openat, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Error, Result, excerpt};
use crate::limits::Limits;
use crate::ownership::Ownership;
use crate::report::{SkipReason, UnpackReport};
use crate::rootdir::{self, is_whiteout, make_directories, open_directory, parts, proc_path};
use crate::tar_reader::{TarEntry, TarKind, TarReader};
use crate::unpack::{Devices, UnpackOptions, Xattrs};
use crate::whiteout::{Meaning, Whiteouts, meaning};

/// Puts entries into a directory, in the order of the archive.
pub(crate) struct Extractor<'a> {
    root: OwnedFd,
    options: &'a UnpackOptions,
    limits: &'a Limits,
    report: UnpackReport,
    /// The directory of the entry before; entries of one directory mostly follow one another.
    parent: Option<Parent>,
    /// Names that this layer made, by the inode of their directory; whiteouts that are carried out spare them.
    made: Option<HashSet<(u64, Box<[u8]>)>>,
    /// Directories get mode and time in the end: until then they must be writable, and writing changes their time.
    directories: Vec<PendingDirectory>,
    /// Ids that a new file has without further ado.
    own_uid: u32,
    own_gid: u32,
}

struct Parent {
    path: Vec<u8>,
    fd: OwnedFd,
    inode: u64,
    setgid: bool,
}

struct PendingDirectory {
    path: Box<[u8]>,
    device: u64,
    inode: u64,
    mode: u32,
    mtime: (i64, u32),
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
            root,
            options,
            limits,
            report: UnpackReport::default(),
            parent: None,
            made: (options.whiteouts == Whiteouts::Apply).then(HashSet::new),
            directories: Vec::new(),
            own_uid: rustix::process::geteuid().as_raw(),
            own_gid: rustix::process::getegid().as_raw(),
        })
    }

    /// Makes one entry; its contents are read from `archive`.
    pub(crate) fn entry<R: BufRead>(
        &mut self,
        entry: &TarEntry,
        archive: &mut TarReader<R>,
    ) -> Result<()> {
        self.report.entries += 1;
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
                self.enter(parent)?;
                self.make(entry, &path, name, archive)
            }
            Meaning::Hides(hidden) => {
                self.report.whiteouts += 1;
                self.enter(parent)?;
                self.hide(hidden)
            }
            Meaning::Opaque => {
                self.report.whiteouts += 1;
                if parent.is_empty() {
                    self.report.opaque_root = true;
                }
                self.enter(parent)?;
                self.hide_all()
            }
            Meaning::Aufs => {
                self.report.skip(&entry.path, SkipReason::Aufs);
                Ok(())
            }
        }
    }

    /// Sets what had to wait, and says what was done.
    pub(crate) fn finish(mut self) -> Result<UnpackReport> {
        self.parent = None;
        let mut done = HashSet::new();
        // From the last to the first: what is deeper comes first, and of two entries for one directory the later.
        for pending in std::mem::take(&mut self.directories).into_iter().rev() {
            if !done.insert((pending.device, pending.inode)) {
                continue;
            }
            let context = |error: Error| error.in_entry(&pending.path, 0);
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
            set_times(fd.as_fd(), pending.mtime).map_err(context)?;
        }
        Ok(self.report)
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
    fn enter(&mut self, path: &[u8]) -> Result<()> {
        if self
            .parent
            .as_ref()
            .is_some_and(|parent| parent.path == path)
        {
            return Ok(());
        }
        let fd = match open_directory(self.root.as_fd(), path) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => self.make_missing(path)?,
            Err(errno) => return Err(failed("open the directory of the entry")(errno)),
        };
        let stat = fstat(&fd).map_err(failed("look at the directory of the entry"))?;
        self.parent = Some(Parent {
            path: path.to_vec(),
            fd,
            inode: stat.st_ino,
            setgid: stat.st_mode & 0o2000 != 0,
        });
        Ok(())
    }

    /// A directory that the layer uses without listing it looks like the one below, or belongs to root.
    fn make_missing(&mut self, path: &[u8]) -> Result<OwnedFd> {
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
            let below = crate::below::directory(&self.options.below, &path)
                .map_err(failed("look at a directory of the layers below"))?;
            let stat = fstat(&fd).map_err(failed("look at the directory of the entry"))?;
            if let Some(set) = &mut self.made {
                let (parent, name) = split(&path);
                let parent = open_directory(self.root.as_fd(), parent)
                    .and_then(|fd| rootdir::inode(fd.as_fd()));
                set.insert((
                    parent.map_err(failed("look at the directory of the entry"))?,
                    name.into(),
                ));
            }
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
                }
            };
            self.directories.push(pending);
        }
        Ok(root)
    }

    fn parent(&self) -> Result<&Parent> {
        // `enter` comes before everything that asks for it.
        self.parent.as_ref().ok_or(Error::UnsafePath {
            reason: "has no directory",
        })
    }

    fn root_entry(&mut self, entry: &TarEntry) -> Result<()> {
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
        if let Some(made) = &mut self.made {
            made.insert((inode, name.into()));
        }
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

    fn directory(&mut self, entry: &TarEntry, path: &[u8], name: &[u8]) -> Result<()> {
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
        let fd = openat(&parent.fd, os_name, OPEN, Mode::empty())
            .map_err(failed("open the directory"))?;
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
        self.set_xattrs(entry, fd.as_fd())?;
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
        });
        Ok(())
    }

    fn regular<R: BufRead>(
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
        let mut file = File::from(self.create(name, "make the file", |parent, name| {
            openat(parent, name, NEW, Mode::RUSR | Mode::WUSR)
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
            if entry.size > self.limits.layer_bytes {
                return Err(Error::Limit {
                    what: "the sparse file",
                    found: entry.size,
                    unit: "bytes",
                    limit: self.limits.layer_bytes,
                    setting: "layer_bytes",
                });
            }
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
        rustix::fs::fchmod(&file, Mode::from_raw_mode(entry.mode))
            .map_err(failed("set the mode of the file"))?;
        self.set_xattrs(entry, file.as_fd())?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime))
            .map_err(failed("set the time of the file"))
    }

    fn symlink(&mut self, entry: &TarEntry, name: &[u8]) -> Result<()> {
        let target = OsStr::from_bytes(&entry.link);
        self.create(name, "make the symbolic link", |parent, name| {
            symlinkat(target, parent, name)
        })?;
        let fd = self.reopen(name, FileType::Symlink)?;
        self.own(entry, fd.as_fd(), false)?;
        self.set_xattrs(entry, fd.as_fd())?;
        set_times(fd.as_fd(), entry.mtime)
    }

    fn node(&mut self, entry: &TarEntry, name: &[u8], kind: FileType) -> Result<()> {
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
        rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(entry.mode))
            .map_err(failed("set the mode"))?;
        self.set_xattrs(entry, fd.as_fd())?;
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
    fn hardlink(&mut self, entry: &TarEntry, name: &[u8]) -> Result<()> {
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
            _ => self.copy_up(&target)?.ok_or_else(missing)?,
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
    fn copy_up(&mut self, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>> {
        let Some((file, stat)) = crate::below::file(&self.options.below, path)
            .map_err(failed("look for the link's target below"))?
        else {
            return Ok(None);
        };
        let (parent, name) = split(path);
        let directory = match open_directory(self.root.as_fd(), parent) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => self.make_missing(parent)?,
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

    /// Hides a name of the layers below, in the current directory.
    fn hide(&mut self, name: &[u8]) -> Result<()> {
        let parent = self.parent()?;
        let os_name = OsStr::from_bytes(name);
        if let Some(made) = &self.made {
            let keep = |inode: u64, name: &[u8]| made.contains(&(inode, name.into()));
            rootdir::remove(parent.fd.as_fd(), name, &keep)
                .map_err(failed("remove what the whiteout names"))?;
            return Ok(());
        }
        let device = rustix::fs::makedev(0, 0);
        match mknodat(
            &parent.fd,
            os_name,
            FileType::CharacterDevice,
            Mode::empty(),
            device,
        ) {
            Ok(()) => Ok(()),
            // The layer has something of that name itself, which hides what is below; a directory must be told to.
            Err(Errno::EXIST) => {
                let fd = openat(
                    &parent.fd,
                    os_name,
                    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                    Mode::empty(),
                )
                .map_err(failed("open what the whiteout names"))?;
                let stat = fstat(&fd).map_err(failed("look at what the whiteout names"))?;
                if rootdir::file_type(&stat) == FileType::Directory {
                    self.set_opaque(&fd)?;
                }
                Ok(())
            }
            Err(errno) => Err(failed("make a whiteout (a character device 0/0)")(errno)),
        }
    }

    /// Hides everything of the layers below in the current directory.
    fn hide_all(&mut self) -> Result<()> {
        let parent = self.parent()?;
        if let Some(made) = &self.made {
            let keep = |inode: u64, name: &[u8]| made.contains(&(inode, name.into()));
            let dir = openat(
                &parent.fd,
                ".",
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(failed("open the opaque directory"))?;
            rootdir::remove_contents(&dir, &keep).map_err(failed("empty the opaque directory"))?;
            return Ok(());
        }
        // On the root overlayfs does not look at it; who stacks the directories does.
        self.set_opaque(&parent.fd)
    }

    fn set_opaque(&self, fd: &OwnedFd) -> Result<()> {
        let Some(name) = self.options.whiteouts.opaque_attribute() else {
            return Ok(());
        };
        rustix::fs::setxattr(proc_path(fd), name, b"y", XattrFlags::empty())
            .map_err(failed("set the attribute of an opaque directory"))
    }

    /// Gives a file the owner that the options make of the entry's.
    fn own(&mut self, entry: &TarEntry, fd: BorrowedFd<'_>, existed: bool) -> Result<()> {
        let (uid, gid) = self.options.ownership.apply(entry.uid, entry.gid)?;
        if matches!(self.options.ownership, Ownership::Squash { .. })
            && (entry.uid, entry.gid) != (0, 0)
        {
            self.report.squashed += 1;
        }
        let inherits = self.parent.as_ref().is_some_and(|parent| parent.setgid);
        self.set_owner(fd, uid, gid, existed || inherits)
    }

    fn set_owner(&self, fd: BorrowedFd<'_>, uid: u32, gid: u32, always: bool) -> Result<()> {
        if !always && (uid, gid) == (self.own_uid, self.own_gid) {
            return Ok(());
        }
        chownat(
            fd,
            "",
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::EMPTY_PATH,
        )
        .map_err(failed("set the owner"))
    }

    fn set_xattrs(&mut self, entry: &TarEntry, fd: BorrowedFd<'_>) -> Result<()> {
        for (name, value) in &entry.xattrs {
            let text = || excerpt(&String::from_utf8_lossy(name));
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                self.report
                    .skip(&entry.path, SkipReason::OverlayXattr(text()));
                continue;
            }
            match rustix::fs::setxattr(proc_path(fd), name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL)
                    if self.options.xattrs == Xattrs::Lenient =>
                {
                    self.report.skip(&entry.path, SkipReason::Xattr(text()));
                }
                Err(errno) => return Err(failed("set an extended attribute")(errno)),
            }
        }
        Ok(())
    }
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// Reading sets no time that an image knows, so both are that of the last modification.
fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn set_times(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> Result<()> {
    // futimens does not take O_PATH fds; an empty path does.
    utimensat(fd, "", &timestamps(mtime), AtFlags::EMPTY_PATH).map_err(failed("set the time"))
}

fn mtime_of(stat: &Stat) -> (i64, u32) {
    (
        stat.st_mtime,
        u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
}
