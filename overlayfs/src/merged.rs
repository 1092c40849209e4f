//! The merged tree, read in user space as the kernel would show it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FileType, Mode, OFlags, Stat, openat, readlinkat};

use crate::error::{Error, Result, Role};
use crate::index::Index;
use crate::layer::Layer;
use crate::lookup::{Contents, INDEX, Layers, Node, OpenNode};
use crate::options::Marks;
use crate::root::Root;
use crate::xattr;

/// A stack of layers, read without mounting it and without privilege.
///
/// What it shows is what a mount of the same layers with `redirect_dir` and `metacopy`
/// switched on shows, but for inode and device numbers and, for directories, sizes and link
/// counts. Whiteouts are never shown, while the kernel lists those that hide nothing in a
/// directory of a single layer.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// # let (base, app) = (dir.path().join("base"), dir.path().join("app"));
/// # std::fs::create_dir_all(&base)?; std::fs::create_dir_all(&app)?;
/// std::fs::write(base.join("greeting"), "hello")?;
/// std::fs::write(app.join("name"), "world")?;
/// let merged = overlayfs::Merged::bottom_up([&base, &app])?;
/// let children = merged.top()?.children()?;
/// assert_eq!(children[0].name(), "greeting");
/// assert_eq!(std::io::read_to_string(children[1].open()?)?, "world");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Merged {
    pub(crate) layers: Layers,
}

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    pub(crate) fn of(stat: &Stat) -> Self {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            _ => Kind::File,
        }
    }
}

/// Metadata of an entry of the merged tree.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metadata {
    /// What it is.
    pub kind: Kind,
    /// The permission bits, with set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Bytes; of a symbolic link the length of its target, of a directory 0.
    pub size: u64,
    /// The number of a device, as `makedev(3)` packs it; else 0.
    pub device: u64,
    /// When the contents were last changed.
    pub modified: SystemTime,
}

/// What tells one file from every other one: names with equal ids are hard links of one file.
///
/// It is the device and inode number in the layer, of the copy that a mount would show.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(u64, u64);

pub(crate) fn metadata(stat: &Stat) -> Metadata {
    let kind = Kind::of(stat);
    let is_device = matches!(kind, Kind::CharacterDevice | Kind::BlockDevice);
    Metadata {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == Kind::Directory {
            0
        } else {
            u64::try_from(stat.st_size).unwrap_or(0)
        },
        device: if is_device { stat.st_rdev } else { 0 },
        modified: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[allow(
    clippy::cast_possible_truncation,
    reason = "nanoseconds are below 10^9"
)]
fn time(seconds: i64, nanoseconds: u64) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 {
        SystemTime::UNIX_EPOCH - whole
    } else {
        SystemTime::UNIX_EPOCH + whole
    };
    base + Duration::from_nanos(nanoseconds)
}

impl Merged {
    /// Opens a stack of layers, the bottom one first.
    ///
    /// Marks are looked for where a mount by this process would keep them
    /// ([`Marks::of_this_process`]) unless [`marks`](Merged::marks) says otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::OpenDirectory`] for a layer that is missing, [`Error::TooFewLayers`] if there is none.
    pub fn bottom_up<L: Into<Layer>>(layers: impl IntoIterator<Item = L>) -> Result<Self> {
        let mut roots = layers
            .into_iter()
            .map(|layer| Root::open(&layer.into(), Role::Lower))
            .collect::<Result<Vec<_>>>()?;
        if roots.is_empty() {
            return Err(Error::TooFewLayers { lowers: 0 });
        }
        roots.reverse();
        Ok(Merged {
            layers: Layers {
                roots,
                data: Vec::new(),
                index: None,
                marks: Some(Marks::of_this_process()),
                follow_redirects: true,
                follow_metacopies: true,
                has_upper: false,
            },
        })
    }

    /// Puts the upper layer on top.
    ///
    /// # Errors
    ///
    /// [`Error::OpenDirectory`] if it is missing.
    pub fn upper(mut self, layer: impl Into<Layer>) -> Result<Self> {
        self.layers
            .roots
            .insert(0, Root::open(&layer.into(), Role::Upper)?);
        self.layers.has_upper = true;
        Ok(self)
    }

    /// Names the work directory of an overlay that was mounted with `index=on`, where the
    /// copies of hard links are found by names that were not copied up themselves.
    ///
    /// Without it such a copy is an [`Error::NeedsIndex`].
    ///
    /// # Errors
    ///
    /// [`Error::OpenDirectory`] if the directory is missing. That it has no index is no error.
    pub fn index(mut self, work: impl Into<Layer>) -> Result<Self> {
        self.layers.index = Index::open(&work.into())?;
        Ok(self)
    }

    /// Adds a data-only layer on top of those given so far.
    ///
    /// # Errors
    ///
    /// [`Error::OpenDirectory`] if it is missing.
    pub fn data_only(mut self, layer: impl Into<Layer>) -> Result<Self> {
        self.layers
            .data
            .insert(0, Root::open(&layer.into(), Role::DataOnly)?);
        Ok(self)
    }

    /// Says where the marks are kept.
    ///
    /// # Errors
    ///
    /// [`Error::TrustedMarks`] for [`Marks::Trusted`] in a process that cannot see them.
    pub fn marks(mut self, marks: Marks) -> Result<Self> {
        if marks == Marks::Trusted && Marks::of_this_process() != Marks::Trusted {
            return Err(Error::TrustedMarks);
        }
        self.layers.marks = Some(marks);
        Ok(self)
    }

    /// Takes the layers for ordinary trees, in which nothing is a mark.
    pub(crate) fn without_marks(mut self) -> Self {
        self.layers.marks = None;
        self
    }

    /// Makes every redirect that is met an [`Error::Refused`].
    pub fn refuse_redirects(mut self) -> Self {
        self.layers.follow_redirects = false;
        self
    }

    /// Makes every metacopy that is met an [`Error::Refused`].
    pub fn refuse_metacopies(mut self) -> Self {
        self.layers.follow_metacopies = false;
        self
    }

    /// The top directory.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be read.
    pub fn top(&self) -> Result<Entry<'_>> {
        Ok(Entry {
            merged: self,
            node: self.layers.top()?,
        })
    }

    /// Looks up a path, relative to the top. Symbolic links are not followed.
    ///
    /// # Errors
    ///
    /// [`Error::BadMark`] or [`Error::Refused`] for marks on the way, [`Error::Io`] otherwise.
    /// That there is nothing at the path is no error.
    pub fn lookup(&self, path: impl AsRef<Path>) -> Result<Option<Entry<'_>>> {
        let node = self.layers.resolve(path.as_ref())?;
        Ok(node.map(|node| Entry { merged: self, node }))
    }

    /// Goes through the whole tree, directories before what they hold, names in order of
    /// their bytes. The top itself is left out.
    pub fn walk(&self) -> Walk<'_> {
        Walk {
            merged: self,
            pending: Vec::new(),
            started: false,
        }
    }
}

/// Something in a [`Merged`] tree.
#[derive(Clone, Debug)]
pub struct Entry<'a> {
    pub(crate) merged: &'a Merged,
    pub(crate) node: Node,
}

impl<'a> Entry<'a> {
    /// The path, relative to the top; empty for the top.
    pub fn path(&self) -> &Path {
        &self.node.path
    }

    /// The last part of the path.
    pub fn name(&self) -> &OsStr {
        self.node.path.file_name().unwrap_or_default()
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        Kind::of(&self.node.stat)
    }

    /// Its metadata.
    pub fn metadata(&self) -> Metadata {
        metadata(&self.node.stat)
    }

    /// What it has in common with its other names, and with nothing else.
    #[doc(alias = "hard link")]
    pub fn file_id(&self) -> FileId {
        FileId(self.node.stat.st_dev, self.node.stat.st_ino)
    }

    /// The layers that have a part of it, as indexes from the bottom, topmost first.
    pub fn layers(&self) -> impl Iterator<Item = usize> + '_ {
        let count = self.merged.layers.roots.len();
        self.node
            .stack
            .iter()
            .filter(|place| place.layer != INDEX)
            .map(move |place| count - 1 - place.layer)
    }

    /// What a directory holds, in order of the names' bytes.
    ///
    /// # Errors
    ///
    /// As [`Merged::lookup`]; [`Error::Io`] with `ENOTDIR` if it is no directory.
    pub fn children(&self) -> Result<Vec<Entry<'a>>> {
        let layers = &self.merged.layers;
        let parts = layers.parts(&self.node)?;
        let open = OpenNode {
            node: &self.node,
            parts: &parts,
        };
        let mut children = Vec::new();
        let listing = layers.names(open)?;
        for name in (0..).map_while(|number| listing.get(number)) {
            if let Some(node) = layers.listed(open, name)? {
                children.push(Entry {
                    merged: self.merged,
                    node,
                });
            }
        }
        Ok(children)
    }

    /// The extended attributes as a mount shows them, sorted by name.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if they cannot be read.
    pub fn xattrs(&self) -> Result<Vec<(OsString, Vec<u8>)>> {
        let layers = &self.merged.layers;
        let (directory, name, shown) = layers.top_of(&self.node)?;
        xattr::visible(directory.as_fd(), &name, layers.marks)
            .map_err(|source| Error::io("read the attributes of", shown, source))
    }

    /// Opens a regular file for reading.
    ///
    /// # Errors
    ///
    /// [`Error::MissingContents`] for a metacopy without its lower part; [`Error::Io`] with
    /// `ELOOP` or `EINVAL` if it is no regular file.
    pub fn open(&self) -> Result<File> {
        self.merged.layers.open_file(&self.node)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with `EINVAL` if it is none.
    pub fn read_link(&self) -> Result<PathBuf> {
        self.merged.layers.read_link(&self.node)
    }
}

impl Layers {
    /// The directory and name of the topmost part of a node, and its path for messages.
    pub(crate) fn top_of(&self, node: &Node) -> Result<(OwnedFd, OsString, PathBuf)> {
        let place = node.top().ok_or(Error::TooFewLayers { lowers: 0 })?;
        locate(self.root(place.layer), &place.path)
    }
}

/// The directory and name of a place in a layer, and its path for messages.
fn locate(root: &Root, path: &Path) -> Result<(OwnedFd, OsString, PathBuf)> {
    let directory = root.directory(path.parent().unwrap_or(Path::new("")))?;
    Ok((
        directory,
        path.file_name().unwrap_or_default().to_owned(),
        root.name(path),
    ))
}

impl Layers {
    pub(crate) fn open_file(&self, node: &Node) -> Result<File> {
        let (directory, name, shown) = match &node.contents {
            Contents::Here => self.top_of(node)?,
            Contents::Layer(place) => locate(self.root(place.layer), &place.path)?,
            Contents::DataOnly(place) => locate(&self.data[place.layer], &place.path)?,
            Contents::Missing => {
                return Err(Error::MissingContents {
                    path: node.path.clone(),
                });
            }
        };
        if node.kind() != FileType::RegularFile {
            return Err(Error::io("open", shown, rustix::io::Errno::INVAL));
        }
        // Without NONBLOCK a pipe that has taken the file's place would be waited for.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&directory, &name, flags, Mode::empty())
            .map(File::from)
            .map_err(|source| Error::io("open", shown, source))
    }

    pub(crate) fn read_link(&self, node: &Node) -> Result<PathBuf> {
        let (directory, name, shown) = self.top_of(node)?;
        readlinkat(&directory, &name, Vec::new())
            .map(|target| OsString::from_vec(target.into_bytes()).into())
            .map_err(|source| Error::io("read the link", shown, source))
    }
}

/// A walk over a [`Merged`] tree.
#[derive(Debug)]
pub struct Walk<'a> {
    merged: &'a Merged,
    /// What is still to be visited, the next one last.
    pending: Vec<Entry<'a>>,
    started: bool,
}

impl<'a> Walk<'a> {
    fn enter(&mut self, directory: &Entry<'a>) -> Result<()> {
        let mut children = directory.children()?;
        children.reverse();
        self.pending.append(&mut children);
        Ok(())
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Entry<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.started {
            self.started = true;
            if let Err(error) = self.merged.top().and_then(|top| self.enter(&top)) {
                return Some(Err(error));
            }
        }
        let entry = self.pending.pop()?;
        if entry.kind() == Kind::Directory
            && let Err(error) = self.enter(&entry)
        {
            return Some(Err(error));
        }
        Some(Ok(entry))
    }
}
