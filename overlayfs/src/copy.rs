//! Writing a merged tree out: as a plain directory, or as one layer in place of several.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, chmodat,
    chownat, copy_file_range, fchmod, fchown, ftruncate, futimens, ioctl_ficlone, linkat, mkdirat,
    mknodat, openat, readlinkat, seek, statat, symlinkat, utimensat,
};
use rustix::io::Errno;

use crate::error::{Error, Result, Role};
use crate::layer::Layer;
use crate::lookup::{Contents, INDEX, Layers, Listing, Node, OpenNode};
use crate::marks::{Opaque, Reader};
use crate::options::Marks;
use crate::root::Root;
use crate::xattr;

/// When an operation that writes a tree counts as done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Everything is on the disk before the new tree takes its place, so a power failure
    /// leaves the old state or the new one.
    #[default]
    PowerLoss,
    /// The new tree takes its place in one step, so a process that is killed leaves the old
    /// state or the new one; after a power failure the new one may be torn.
    ProcessDeath,
}

/// How trees are written.
#[derive(Clone, Copy, Debug)]
pub struct CopyOptions {
    pub(crate) durability: Durability,
    pub(crate) ownership: bool,
    pub(crate) replace: bool,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl CopyOptions {
    /// Survives power loss, keeps owners, and replaces nothing.
    pub const fn new() -> Self {
        CopyOptions {
            durability: Durability::PowerLoss,
            ownership: true,
            replace: false,
        }
    }

    /// Sets when the operation counts as done.
    pub const fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets whether owners are kept, which needs `CAP_CHOWN` for those of others.
    pub const fn ownership(mut self, keep: bool) -> Self {
        self.ownership = keep;
        self
    }

    /// Lets the new tree take the place of an existing directory, in one step.
    pub const fn replace(mut self, replace: bool) -> Self {
        self.replace = replace;
        self
    }
}

/// What becomes of the marks of the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// None are left: the result is an ordinary tree, with the attributes that a mount shows.
    Plain,
    /// The result is a layer, with nothing below it.
    Bottom,
    /// The result is a layer that may stand on others, and says of them what its parts said.
    Layer,
}

/// Writes trees into one directory.
pub(crate) struct Writer<'a> {
    layers: &'a Layers,
    form: Form,
    options: CopyOptions,
    /// Files of layers from this one downwards are linked instead of copied where that is
    /// possible.
    share_from: Option<usize>,
    /// Where the first of several names of a file was written, and as what: by then another file
    /// may have that name.
    links: HashMap<(u64, u64), (PathBuf, (u64, u64))>,
    target: Root,
    /// Cloning extents was possible so far.
    clones: bool,
}

/// An entry by the directory that it is in; an empty name means the directory itself.
#[derive(Clone, Copy)]
pub(crate) struct Spot<'a> {
    pub(crate) directory: BorrowedFd<'a>,
    pub(crate) name: &'a OsStr,
}

struct Frame {
    node: Node,
    names: Listing,
    /// How many of the names are done.
    done: usize,
    /// Relative to the target.
    path: PathBuf,
    has_whiteouts: bool,
    /// Only the innermost directory is open, so that depth costs no descriptors.
    open: Option<OpenFrame>,
}

struct OpenFrame {
    parts: Vec<OwnedFd>,
    target: OwnedFd,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(
        layers: &'a Layers,
        target: OwnedFd,
        form: Form,
        options: CopyOptions,
    ) -> Result<Self> {
        Ok(Writer {
            layers,
            form,
            options,
            share_from: None,
            links: HashMap::new(),
            target: Root::open(&Layer::from(target), Role::Target)?,
            clones: true,
        })
    }

    pub(crate) fn sharing_from(mut self, layer: usize) -> Self {
        self.share_from = Some(layer);
        self
    }

    /// Writes what a directory holds, and then its metadata, to an existing directory.
    pub(crate) fn tree(&mut self, node: Node, path: PathBuf) -> Result<()> {
        let mut frames = vec![self.enter(node, path)?];
        while let Some(frame) = frames.last_mut() {
            let open = match frame.open.take() {
                Some(open) => frame.open.insert(open),
                None => frame.open.insert(OpenFrame {
                    parts: self.layers.parts(&frame.node)?,
                    target: self.target.directory(&frame.path)?,
                }),
            };
            let Some((name, parts)) = frame.names.get(frame.done) else {
                if frame.has_whiteouts {
                    // Perhaps nothing below has this directory, and the whiteouts hide nothing.
                    // The kernel lists such whiteouts unless the directory has an origin.
                    let itself = Spot {
                        directory: open.target.as_fd(),
                        name: OsStr::new(""),
                    };
                    self.mark(itself, &frame.path, "origin", b"")?;
                }
                self.finish_directory(&frame.node, &open.parts, &open.target)?;
                frames.pop();
                continue;
            };
            let parent = OpenNode {
                node: &frame.node,
                parts: &open.parts,
            };
            frame.done += 1;
            let path = frame.path.join(name);
            let Some(child) = self.layers.listed(parent, (name, parts))? else {
                let to = Spot {
                    directory: open.target.as_fd(),
                    name,
                };
                frame.has_whiteouts |= self.hidden(parent, to, &path)?;
                continue;
            };
            if child.is_directory() {
                mkdirat(&open.target, name, Mode::RWXU)
                    .map_err(|source| self.fail("make", &path, source))?;
                self.mark_directory(
                    parent,
                    &child,
                    Spot {
                        directory: open.target.as_fd(),
                        name,
                    },
                    &path,
                )?;
                frame.open = None;
                frames.push(self.enter(child, path)?);
            } else {
                // The part that the child's metadata is in, if it is in this directory.
                let source = child.top().and_then(|top| {
                    let part = frame.node.stack.iter().position(|place| {
                        place.layer == top.layer && top.path.parent() == Some(&place.path)
                    })?;
                    Some((open.parts[part].as_fd(), top.path.file_name()?.to_owned()))
                });
                let below = frame.node.below.as_ref().map(|below| below.join(name));
                let elsewhere;
                let (directory, source) = if let Some(source) = source {
                    source
                } else {
                    let (directory, source, _) = self.layers.top_of(&child)?;
                    elsewhere = directory;
                    (elsewhere.as_fd(), source)
                };
                let from = Spot {
                    directory,
                    name: &source,
                };
                let to = Spot {
                    directory: open.target.as_fd(),
                    name,
                };
                self.entry(&child, from, to, &path, below.as_deref())?;
            }
        }
        Ok(())
    }

    fn enter(&self, node: Node, path: PathBuf) -> Result<Frame> {
        let parts = self.layers.parts(&node)?;
        let names = self.layers.names(OpenNode {
            node: &node,
            parts: &parts,
        })?;
        let target = self.target.directory(&path)?;
        Ok(Frame {
            node,
            names,
            path,
            has_whiteouts: false,
            done: 0,
            open: Some(OpenFrame { parts, target }),
        })
    }

    fn fail(&self, operation: &'static str, path: &Path, source: Errno) -> Error {
        Error::io(operation, self.target.name(path), source)
    }

    fn marks(&self) -> Option<Marks> {
        self.layers.marks
    }

    /// A name that the layers hide. What may be below must stay hidden.
    fn hidden(&self, parent: OpenNode<'_>, to: Spot<'_>, path: &Path) -> Result<bool> {
        if self.form != Form::Layer || parent.node.below.is_none() {
            return Ok(false);
        }
        mknodat(
            to.directory,
            to.name,
            FileType::CharacterDevice,
            Mode::empty(),
            0,
        )
        .map_err(|source| self.fail("make the whiteout", path, source))?;
        Ok(true)
    }

    /// Says of a new directory what is below it.
    fn mark_directory(
        &self,
        parent: OpenNode<'_>,
        child: &Node,
        to: Spot<'_>,
        path: &Path,
    ) -> Result<()> {
        if self.form != Form::Layer {
            return Ok(());
        }
        let expected = parent.node.below.as_ref().map(|below| below.join(to.name));
        if child.below.is_none() && expected.is_some() {
            return self.mark(to, path, "opaque", Opaque::Replaces.encode());
        }
        self.mark_redirect(child, expected.as_deref(), to, path)
    }

    fn mark_redirect(
        &self,
        child: &Node,
        expected: Option<&Path>,
        to: Spot<'_>,
        path: &Path,
    ) -> Result<()> {
        match &child.below {
            Some(below) if Some(below.as_path()) != expected => {
                let redirect = Path::new("/").join(below);
                self.mark(to, path, "redirect", redirect.as_os_str().as_bytes())
            }
            _ => Ok(()),
        }
    }

    fn mark(&self, to: Spot<'_>, path: &Path, mark: &str, value: &[u8]) -> Result<()> {
        let marks = self.marks().unwrap_or(Marks::Trusted);
        xattr::set(to.directory, to.name, &marks.name(mark), value)
            .map_err(|source| self.fail("mark", path, source))
    }

    /// Gives a directory its metadata, once nothing is written into it any more.
    fn finish_directory(&self, node: &Node, parts: &[OwnedFd], target: &OwnedFd) -> Result<()> {
        let Some(top) = parts.first() else {
            return Ok(());
        };
        let itself = OsStr::new("");
        let from = Spot {
            directory: top.as_fd(),
            name: itself,
        };
        let to = Spot {
            directory: target.as_fd(),
            name: itself,
        };
        self.attributes(from, to, &node.path, &node.stat, Some(target))
    }

    /// Copies owner, attributes, mode and times, in the order in which none undoes another.
    pub(crate) fn attributes(
        &self,
        from: Spot<'_>,
        to: Spot<'_>,
        path: &Path,
        stat: &Stat,
        open: Option<&OwnedFd>,
    ) -> Result<()> {
        let fail = |source| self.fail("set the metadata of", path, source);
        let uid = Some(Uid::from_raw(stat.st_uid));
        let gid = Some(Gid::from_raw(stat.st_gid));
        if self.options.ownership {
            match open {
                Some(open) => fchown(open, uid, gid),
                None => chownat(to.directory, to.name, uid, gid, AtFlags::SYMLINK_NOFOLLOW),
            }
            .map_err(fail)?;
        }
        let attributes = xattr::visible(from.directory, from.name, self.marks())
            .map_err(|source| Error::io("read the attributes of", path, source))?;
        for (shown, value) in attributes {
            let stored = match self.form {
                Form::Plain => xattr::plain_name(&shown),
                Form::Bottom | Form::Layer => xattr::stored_name(&shown, self.marks()),
            };
            xattr::set(to.directory, to.name, &stored, &value).map_err(fail)?;
        }
        let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
        let times = times(stat);
        if let Some(open) = open {
            fchmod(open, mode).map_err(fail)?;
            return futimens(open, &times).map_err(fail);
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            chmodat(to.directory, to.name, mode, AtFlags::empty()).map_err(fail)?;
        }
        utimensat(to.directory, to.name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)
    }

    /// As `attributes` for a directory that has some already.
    pub(crate) fn replace_attributes(
        &self,
        from: Spot<'_>,
        to: Spot<'_>,
        path: &Path,
        stat: &Stat,
        open: &OwnedFd,
    ) -> Result<()> {
        let fail = |source| self.fail("set the metadata of", path, source);
        for name in xattr::list(to.directory, to.name).map_err(fail)? {
            xattr::remove(to.directory, to.name, &xattr::plain_name(&name)).map_err(fail)?;
        }
        self.attributes(from, to, path, stat, Some(open))
    }

    /// Writes one entry that is no directory. `below` is where layers below would have it.
    pub(crate) fn entry(
        &mut self,
        node: &Node,
        from: Spot<'_>,
        to: Spot<'_>,
        path: &Path,
        below: Option<&Path>,
    ) -> Result<()> {
        let identity = (node.stat.st_dev, node.stat.st_ino);
        if self.share(node, from, to, path)? {
            return Ok(());
        }
        if node.has_links()
            && let Some((first, written)) = self.links.get(&identity)
            && self.link_to(first, *written, to, path)?
        {
            return Ok(());
        }
        self.write(node, from, to, path)?;
        if self.form == Form::Layer && node.contents == Contents::Missing {
            // The other names of the file find its contents by the redirect alone.
            let expected = below.filter(|_| !node.has_links());
            self.mark_redirect(node, expected, to, path)?;
        }
        if node.has_links() {
            let written = statat(to.directory, to.name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|source| self.fail("read", path, source))?;
            let written = (written.st_dev, written.st_ino);
            self.links.insert(identity, (path.to_owned(), written));
        }
        Ok(())
    }

    /// Gives a file that was written already another name.
    fn link_to(
        &self,
        first: &Path,
        written: (u64, u64),
        to: Spot<'_>,
        path: &Path,
    ) -> Result<bool> {
        let parent = first.parent().unwrap_or(Path::new(""));
        let directory = match self.target.directory(parent) {
            Ok(directory) => directory,
            Err(Error::Io { source, .. })
                if matches!(
                    source.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let from = Spot {
            directory: directory.as_fd(),
            name: first.file_name().unwrap_or_default(),
        };
        match statat(from.directory, from.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if (stat.st_dev, stat.st_ino) == written => self.link(from, to, path),
            _ => Ok(false),
        }
    }

    /// Gives an unchanged file another name instead of copying it.
    fn share(&self, node: &Node, from: Spot<'_>, to: Spot<'_>, path: &Path) -> Result<bool> {
        match (self.share_from, node.top()) {
            (Some(layer), Some(top))
                if top.layer != INDEX && top.layer >= layer && node.contents == Contents::Here =>
            {
                self.link(from, to, path)
            }
            _ => Ok(false),
        }
    }

    /// Makes a hard link, unless the file has too many names, is on another filesystem or may
    /// not be linked: a copy does then.
    fn link(&self, from: Spot<'_>, to: Spot<'_>, path: &Path) -> Result<bool> {
        match linkat(
            from.directory,
            from.name,
            to.directory,
            to.name,
            AtFlags::empty(),
        ) {
            Ok(()) => Ok(true),
            Err(Errno::MLINK | Errno::XDEV | Errno::PERM | Errno::ACCESS | Errno::OPNOTSUPP) => {
                Ok(false)
            }
            Err(source) => Err(self.fail("link", path, source)),
        }
    }

    fn write(&mut self, node: &Node, from: Spot<'_>, to: Spot<'_>, path: &Path) -> Result<()> {
        let mut open = None;
        match node.kind() {
            FileType::RegularFile => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = openat(to.directory, to.name, flags, Mode::RUSR | Mode::WUSR)
                    .map_err(|source| self.fail("make", path, source))?;
                self.contents(node, from, to, &file, path)?;
                open = Some(file);
            }
            FileType::Symlink => {
                let link = readlinkat(from.directory, from.name, Vec::new())
                    .map_err(|source| Error::io("read the link", path, source))?;
                symlinkat(&link, to.directory, to.name)
                    .map_err(|source| self.fail("make", path, source))?;
            }
            kind => {
                mknodat(
                    to.directory,
                    to.name,
                    kind,
                    Mode::RUSR | Mode::WUSR,
                    node.stat.st_rdev,
                )
                .map_err(|source| self.fail("make", path, source))?;
            }
        }
        self.attributes(from, to, path, &node.stat, open.as_ref())
    }

    fn contents(
        &mut self,
        node: &Node,
        from: Spot<'_>,
        to: Spot<'_>,
        file: &OwnedFd,
        path: &Path,
    ) -> Result<()> {
        let size = u64::try_from(node.stat.st_size).unwrap_or(0);
        let opened: File = match &node.contents {
            Contents::Here => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                openat(from.directory, from.name, flags, Mode::empty())
                    .map(File::from)
                    .map_err(|source| Error::io("open", path, source))?
            }
            Contents::Missing if self.form == Form::Layer && node.below.is_some() => {
                // They are in a layer that is not part of this.
                ftruncate(file, size).map_err(|source| self.fail("write", path, source))?;
                let reader = Reader {
                    directory: from.directory,
                    name: from.name,
                    path,
                    marks: self.marks(),
                };
                let value = reader.get("metacopy")?.unwrap_or_default();
                return self.mark(to, path, "metacopy", &value);
            }
            _ => self.layers.open_file(node)?,
        };
        if size == 0 {
            return Ok(());
        }
        if self.clones {
            match ioctl_ficlone(file, &opened) {
                Ok(()) => return Ok(()),
                Err(_) => self.clones = false,
            }
        }
        let is_sparse = u64::try_from(node.stat.st_blocks).unwrap_or(0) * 512 < size
            || node.contents != Contents::Here;
        let copied = if is_sparse {
            copy_sparse(&opened, file, size)
        } else {
            copy_range(&opened, file, 0, size)
        };
        copied.map_err(|source| self.fail("write", path, source))
    }
}

pub(crate) fn times(stat: &Stat) -> Timestamps {
    #[allow(clippy::cast_possible_wrap, reason = "nanoseconds are below 10^9")]
    let at = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds as i64,
    };
    Timestamps {
        last_access: at(stat.st_atime, stat.st_atime_nsec),
        last_modification: at(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Copies what is data and leaves holes as they are.
fn copy_sparse(source: &File, target: &OwnedFd, size: u64) -> rustix::io::Result<()> {
    ftruncate(target, size)?;
    let mut at = 0;
    while at < size {
        let start = match seek(source, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(()),
            Err(other) => return Err(other),
        };
        let end = seek(source, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            return Ok(());
        }
        copy_range(source, target, start, end)?;
        at = end;
    }
    Ok(())
}

fn copy_range(source: &File, target: &OwnedFd, start: u64, end: u64) -> rustix::io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let length = usize::try_from(end - from).unwrap_or(usize::MAX);
        match copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            // The file became shorter meanwhile.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            // Between filesystems, or on ones that cannot.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => {
                return copy_bytes(source, target, from, end);
            }
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

fn copy_bytes(source: &File, target: &OwnedFd, start: u64, end: u64) -> rustix::io::Result<()> {
    let mut buffer = vec![
        0;
        usize::try_from(end - start)
            .unwrap_or(usize::MAX)
            .min(1 << 18)
    ];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let length = match rustix::io::pread(source, &mut buffer[..want], at) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(other) => return Err(other),
        };
        let mut written = 0;
        while written < length {
            match rustix::io::pwrite(target, &buffer[written..length], at + written as u64) {
                Ok(more) => written += more,
                Err(Errno::INTR) => {}
                Err(other) => return Err(other),
            }
        }
        at += length as u64;
    }
    Ok(())
}
