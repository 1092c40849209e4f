//! What differs between two directories, as the entries of a layer.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::pack::{Entry, EntryKind, Metadata, kind_of, metadata, open_root};
use crate::rootdir::{file_type, names, proc_path};

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChangeKind {
    /// There was nothing of that name.
    Added,
    /// It is something else, or its contents, owner, mode, time, attributes or other names are not the same; of a
    /// directory also that something in it changes.
    Modified,
    /// It is not there any more.
    Removed,
}

/// A difference between two directories.
#[derive(Debug)]
#[non_exhaustive]
pub struct Change {
    /// What became of the name.
    pub kind: ChangeKind,
    /// What a layer holds for it; a whiteout if it is gone.
    pub entry: Entry,
}

impl From<Change> for Entry {
    fn from(change: Change) -> Entry {
        change.entry
    }
}

/// What must change in the directory `old` to become what the directory `new` is, sorted by name.
///
/// A layer of these entries, unpacked over `old` ([`Whiteouts::Apply`](crate::Whiteouts::Apply)), gives `new`. Files
/// are compared by all that an image knows of them, contents included; the two directories themselves are not.
/// A directory in which something changes is named before that, as a layer has to say which time it has afterwards.
/// Sockets cannot be in a layer and do not count, as in [`walk`](crate::walk).
///
/// ```
/// use oci_image::{ChangeKind, Entry, LayerWriter, PackOptions};
///
/// # let scratch = tempfile::tempdir()?;
/// # let (old, new) = (scratch.path().join("old"), scratch.path().join("new"));
/// # std::fs::create_dir(&old)?;
/// # std::fs::create_dir(&new)?;
/// std::fs::write(old.join("gone"), "")?;
/// std::fs::write(new.join("here"), "")?;
/// let changes = oci_image::diff(&old, &new)?.collect::<Result<Vec<_>, _>>()?;
/// let kinds: Vec<_> = changes.iter().map(|change| change.kind).collect();
/// assert_eq!(kinds, [ChangeKind::Removed, ChangeKind::Added]);
///
/// // As a layer:
/// let mut layer = LayerWriter::new(Vec::new(), PackOptions::new())?;
/// layer.append_all(changes.into_iter().map(|change| Ok(Entry::from(change))))?;
/// # layer.finish()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// [`Error::Io`] when a directory cannot be opened or read; the iterator's items fail likewise.
pub fn diff(old: impl AsRef<Path>, new: impl AsRef<Path>) -> Result<Diff> {
    let (old, new) = (Tree::open(old.as_ref())?, Tree::open(new.as_ref())?);
    let failed = |errno| new.failed(b"", errno);
    let frame = Frame {
        names: Frame::names(Some(&old.root), &new.root).map_err(failed)?,
        old: Some(old.root.try_clone().map_err(|source| Error::Io {
            operation: "open the directory",
            path: old.base.clone(),
            source,
        })?),
        new: new.root.try_clone().map_err(|source| Error::Io {
            operation: "open the directory",
            path: new.base.clone(),
            source,
        })?,
        path: Vec::new(),
        unnamed: false,
    };
    Ok(Diff {
        old,
        new,
        stack: vec![frame],
        waiting: None,
        groups: HashMap::new(),
    })
}

/// An iterator over the differences between two directories; made by [`diff`].
#[derive(Debug)]
pub struct Diff {
    old: Tree,
    new: Tree,
    stack: Vec<Frame>,
    /// A change that comes after that of its directory.
    waiting: Option<Change>,
    /// What was decided about files with several names.
    groups: HashMap<Inode, Group>,
}

type Inode = (u64, u64);
type Names = BTreeSet<Vec<u8>>;

fn inode(stat: &Stat) -> Inode {
    (stat.st_dev, stat.st_ino)
}

/// A directory, and the files in it that have several names in it.
#[derive(Debug)]
struct Tree {
    base: PathBuf,
    root: OwnedFd,
    links: HashMap<Inode, Names>,
}

/// A file of `new` with several names, one of which has been met.
#[derive(Debug)]
struct Group {
    /// The name that the others become links to.
    first: PathBuf,
    /// Names that the file had in `old`, if it stays as it is.
    kept: Names,
}

#[derive(Debug)]
struct Frame {
    old: Option<OwnedFd>,
    new: OwnedFd,
    path: Vec<u8>,
    /// Of both, in reverse order, to be popped.
    names: Vec<Vec<u8>>,
    /// The directory itself is the same, and has not been named yet.
    unnamed: bool,
}

impl Frame {
    fn names(old: Option<&OwnedFd>, new: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
        let mut all: BTreeSet<_> = names(new)?.into_iter().collect();
        if let Some(old) = old {
            all.extend(names(old)?);
        }
        Ok(all.into_iter().rev().collect())
    }
}

impl Tree {
    fn open(base: &Path) -> Result<Tree> {
        let mut tree = Tree {
            root: open_root(base)?,
            base: base.to_owned(),
            links: HashMap::new(),
        };
        tree.links = tree.find_links()?;
        Ok(tree)
    }

    fn failed(&self, path: &[u8], errno: Errno) -> Error {
        Error::Io {
            operation: "compare",
            path: self.base.join(OsStr::from_bytes(path)),
            source: errno.into(),
        }
    }

    /// All names of the files that have several.
    fn find_links(&self) -> Result<HashMap<Inode, Names>> {
        let mut links: HashMap<Inode, Names> = HashMap::new();
        let mut todo = VecDeque::from([Vec::new()]);
        while let Some(path) = todo.pop_front() {
            let failed = |errno| self.failed(&path, errno);
            let dir = open_list(&self.root, if path.is_empty() { b"." } else { &path })
                .map_err(failed)?;
            for name in names(&dir).map_err(failed)? {
                let name_here = OsStr::from_bytes(&name);
                let stat = statat(&dir, name_here, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                let path = joined(&path, &name);
                if file_type(&stat) == FileType::Directory {
                    todo.push_back(path);
                } else if stat.st_nlink > 1 {
                    links.entry(inode(&stat)).or_default().insert(path);
                }
            }
        }
        Ok(links)
    }

    /// All names of the file `path`.
    fn names(&self, path: &[u8], stat: &Stat) -> Names {
        self.links
            .get(&inode(stat))
            .cloned()
            .unwrap_or_else(|| Names::from([path.to_vec()]))
    }
}

impl Diff {
    /// Compares what has a name in the topmost pair of directories.
    fn compare(&mut self, path: &[u8], name: &[u8]) -> Result<Option<Change>, Errno> {
        let Some(frame) = self.stack.last() else {
            return Ok(None);
        };
        let old = match &frame.old {
            Some(dir) => look(dir, name)?,
            None => None,
        };
        let relative = PathBuf::from(OsString::from_vec(path.to_vec()));
        let Some((fd, stat)) = look(&frame.new, name)? else {
            return Ok(old.map(|_| Change {
                kind: ChangeKind::Removed,
                entry: Entry {
                    path: relative,
                    kind: EntryKind::Whiteout,
                    metadata: Metadata::new(0),
                },
            }));
        };
        let same = match &old {
            Some((old, old_stat)) => is_same(old, old_stat, &fd, &stat)?,
            None => false,
        };
        let kind = if file_type(&stat) == FileType::Directory {
            let new = open_list(&frame.new, name)?;
            let old = match (&frame.old, &old) {
                (Some(dir), Some((_, stat))) if file_type(stat) == FileType::Directory => {
                    Some(open_list(dir, name)?)
                }
                _ => None,
            };
            self.stack.push(Frame {
                names: Frame::names(old.as_ref(), &new)?,
                old,
                new,
                path: path.to_vec(),
                unnamed: same,
            });
            if same {
                return Ok(None);
            }
            EntryKind::Directory
        } else {
            let old_names = match &old {
                Some((_, old_stat)) if same => self.old.names(path, old_stat),
                _ => Names::new(),
            };
            match self.link(path, &stat, old_names) {
                Link::Kept => return Ok(None),
                Link::To(first) => EntryKind::Hardlink(first),
                Link::First => match kind_of(&fd, &stat)? {
                    Some(kind) => kind,
                    None => return Ok(None),
                },
            }
        };
        Ok(Some(Change {
            kind: if old.is_some() {
                ChangeKind::Modified
            } else {
                ChangeKind::Added
            },
            entry: Entry {
                path: relative,
                kind,
                metadata: metadata(&fd, &stat)?,
            },
        }))
    }

    /// The directory at this depth, if it has to be named as something in it changes: who carries that out changes its
    /// time, and must set it again.
    fn name_directory(&mut self, depth: usize) -> Result<Option<Change>, Errno> {
        let frame = depth.checked_sub(1).and_then(|at| self.stack.get_mut(at));
        let Some(frame) = frame.filter(|frame| frame.unnamed) else {
            return Ok(None);
        };
        frame.unnamed = false;
        Ok(Some(Change {
            kind: ChangeKind::Modified,
            entry: Entry {
                path: PathBuf::from(OsString::from_vec(frame.path.clone())),
                kind: EntryKind::Directory,
                metadata: metadata(&frame.new, &fstat(&frame.new)?)?,
            },
        }))
    }

    /// What a name of a file becomes in view of its other names. `old` are the names of the file that was there, if it
    /// is the same but for its names.
    fn link(&mut self, path: &[u8], stat: &Stat, old: Names) -> Link {
        let new = self.new.names(path, stat);
        if let Some(group) = self.groups.get(&inode(stat)) {
            return if group.kept.contains(path) {
                Link::Kept
            } else {
                Link::To(group.first.clone())
            };
        }
        // A file that had other names, too, must not be changed along with them.
        let stays = !old.is_empty() && old.is_subset(&new);
        if new.len() > 1 {
            let group = Group {
                first: PathBuf::from(OsString::from_vec(path.to_vec())),
                kept: if stays { old } else { Names::new() },
            };
            self.groups.insert(inode(stat), group);
        }
        if stays { Link::Kept } else { Link::First }
    }
}

enum Link {
    /// It is there already.
    Kept,
    /// It holds the contents.
    First,
    /// It is another name of this one.
    To(PathBuf),
}

impl Iterator for Diff {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Result<Change>> {
        if let Some(change) = self.waiting.take() {
            return Some(Ok(change));
        }
        loop {
            let depth = self.stack.len();
            let frame = self.stack.last_mut()?;
            let Some(name) = frame.names.pop() else {
                self.stack.pop();
                continue;
            };
            let path = joined(&frame.path, &name);
            match self.compare(&path, &name) {
                Ok(None) => {}
                Ok(Some(change)) => match self.name_directory(depth) {
                    Ok(None) => return Some(Ok(change)),
                    Ok(Some(directory)) => {
                        self.waiting = Some(change);
                        return Some(Ok(directory));
                    }
                    Err(errno) => return Some(Err(self.new.failed(&path, errno))),
                },
                Err(errno) => return Some(Err(self.new.failed(&path, errno))),
            }
        }
    }
}

fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory.is_empty() {
        return name.to_vec();
    }
    [directory, b"/", name].concat()
}

fn open_list(dir: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    openat(
        dir,
        OsStr::from_bytes(name),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// What has a name, if that is something that can be in a layer.
fn look(dir: &OwnedFd, name: &[u8]) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = match openat(dir, OsStr::from_bytes(name), flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let stat = fstat(&fd)?;
    let there = !matches!(file_type(&stat), FileType::Socket | FileType::Unknown);
    Ok(there.then_some((fd, stat)))
}

/// Whether two files are the same in all but their names.
fn is_same(old: &OwnedFd, old_stat: &Stat, new: &OwnedFd, new_stat: &Stat) -> Result<bool, Errno> {
    if inode(old_stat) == inode(new_stat) {
        return Ok(true);
    }
    let kind = file_type(new_stat);
    if file_type(old_stat) != kind || metadata(old, old_stat)? != metadata(new, new_stat)? {
        return Ok(false);
    }
    Ok(match kind {
        FileType::RegularFile => {
            old_stat.st_size == new_stat.st_size
                && same_contents(old, new)
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?
        }
        FileType::Symlink => readlinkat(old, "", Vec::new())? == readlinkat(new, "", Vec::new())?,
        FileType::CharacterDevice | FileType::BlockDevice => old_stat.st_rdev == new_stat.st_rdev,
        _ => true,
    })
}

fn same_contents(old: &OwnedFd, new: &OwnedFd) -> io::Result<bool> {
    const BUFFER: usize = 64 << 10;
    let mut files = [File::open(proc_path(old))?, File::open(proc_path(new))?];
    let mut buffers = [Vec::with_capacity(BUFFER), Vec::with_capacity(BUFFER)];
    loop {
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            buffer.clear();
            file.by_ref().take(BUFFER as u64).read_to_end(buffer)?;
        }
        if buffers[0] != buffers[1] {
            return Ok(false);
        }
        if buffers[0].is_empty() {
            return Ok(true);
        }
    }
}
