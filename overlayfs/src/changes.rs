//! What an upper layer changed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::vec;

use rustix::fs::{AtFlags, FileType, statat};

use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::lookup::{Contents, INDEX, Node, OpenNode};
use crate::marks::Reader;
use crate::merged::{Merged, Walk, metadata};
use crate::options::Marks;
use crate::root;
use crate::xattr;

/// An upper layer and the lower layers that it was written over.
///
/// It need not be mounted. While it is, changes may be seen half made, as with any walk over
/// a tree that is being written.
#[derive(Debug)]
pub struct Upper {
    /// The lower layers with the upper one on top, so the latter's index is 0.
    pub(crate) merged: Merged,
}

/// One change. It prints as `docker diff` prints it: a letter and the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The path in the merged tree, relative to its top; empty for the top.
    pub path: PathBuf,
    /// What happened to it.
    pub kind: ChangeKind,
}

/// What happened to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// It did not exist below. What a new directory holds is reported too, as added.
    Added,
    /// It is of the same type as below.
    Modified {
        /// The bytes of the file, the target of the link or the number of the device differ.
        contents: bool,
        /// Mode, owner, modification time or extended attributes differ.
        metadata: bool,
    },
    /// It is of another type than below. What a new directory holds is reported as added.
    TypeChanged,
    /// It and everything in it are gone.
    Deleted,
    /// A directory that was replaced: nothing it held below is left, and what it holds now
    /// is reported as added.
    Replaced,
    /// A directory that was at `from` below, and what it held there is now here. What was
    /// changed in it is reported relative to `from`; that `from` is gone is reported by itself.
    Renamed {
        /// The path before, relative to the top.
        from: PathBuf,
        /// There was something else at the new path before, which is gone.
        replaces: bool,
    },
}

impl Change {
    /// `A` for something that was not there, `C` for something that was, `D` for something gone.
    pub fn letter(&self) -> char {
        match self.kind {
            ChangeKind::Added
            | ChangeKind::Renamed {
                replaces: false, ..
            } => 'A',
            ChangeKind::Deleted => 'D',
            _ => 'C',
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} /{}", self.letter(), self.path.display())
    }
}

impl Upper {
    /// Opens an upper layer and the lower layers beneath it, the bottom one first.
    ///
    /// # Errors
    ///
    /// [`Error::OpenDirectory`] for a directory that is missing.
    pub fn over_bottom_up<L: Into<Layer>>(
        lowers: impl IntoIterator<Item = L>,
        upper: impl Into<Layer>,
    ) -> Result<Self> {
        let merged = Merged::bottom_up(lowers)?;
        Ok(Upper {
            merged: merged.upper(upper)?,
        })
    }

    /// Says where the marks are kept; unset, it is [`Marks::of_this_process`].
    ///
    /// # Errors
    ///
    /// [`Error::TrustedMarks`] for [`Marks::Trusted`] in a process that cannot see them.
    pub fn marks(self, marks: Marks) -> Result<Self> {
        Ok(Upper {
            merged: self.merged.marks(marks)?,
        })
    }

    /// Names the work directory of an upper layer that was written with `index=on`; see
    /// [`Merged::index`].
    ///
    /// # Errors
    ///
    /// [`Error::OpenDirectory`] if the directory is missing. That it has no index is no error.
    pub fn index(self, work: impl Into<Layer>) -> Result<Self> {
        Ok(Upper {
            merged: self.merged.index(work)?,
        })
    }

    /// Adds a data-only layer, on top of those given so far.
    ///
    /// # Errors
    ///
    /// [`Error::OpenDirectory`] if it is missing.
    pub fn data_only(self, layer: impl Into<Layer>) -> Result<Self> {
        Ok(Upper {
            merged: self.merged.data_only(layer)?,
        })
    }

    /// Makes every redirect that is met an [`Error::Refused`].
    pub fn refuse_redirects(self) -> Self {
        Upper {
            merged: self.merged.refuse_redirects(),
        }
    }

    /// Makes every metacopy that is met an [`Error::Refused`].
    pub fn refuse_metacopies(self) -> Self {
        Upper {
            merged: self.merged.refuse_metacopies(),
        }
    }

    /// The upper layer merged with those below.
    pub fn merged(&self) -> &Merged {
        &self.merged
    }

    /// Goes through what the upper layer changed, directories before what they hold, names
    /// in order of their bytes. With an [index](Upper::index) that is not empty there follow,
    /// in the same order, the names that share a changed file; finding them takes a walk
    /// over the whole merged tree.
    ///
    /// Only the upper layer is walked: the time taken grows with the changes, not with the
    /// layers below. A file that was copied up is compared with the one below, so one that
    /// was opened for writing and not written is no change. Files of the same size are
    /// compared byte by byte, and a change of times alone is one of metadata. The top
    /// directory is reported when its mode, owner or attributes changed; its time, which
    /// every change touches, is left out. Which names share one file is not reported either:
    /// [`Entry::file_id`](crate::Entry::file_id) tells.
    #[doc(alias = "diff")]
    pub fn changes(&self) -> Changes<'_> {
        let layers = &self.merged.layers;
        let has_copies = layers.index.as_ref().is_some_and(|index| !index.is_empty());
        Changes {
            upper: self,
            frames: Vec::new(),
            state: State::New,
            with_links: false,
            names: has_copies.then(|| self.merged.walk()),
        }
    }
}

/// The changes of an [`Upper`], found as they are asked for.
///
/// After an error the iterator ends: what comes after it could not be trusted.
#[derive(Debug)]
pub struct Changes<'a> {
    upper: &'a Upper,
    frames: Vec<Frame>,
    state: State,
    /// Files that may have come to share, or to share no more, what they hold are reported too,
    /// as modified in nothing.
    with_links: bool,
    /// The merged tree, in search of names whose copy only the index knows.
    names: Option<Walk<'a>>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    New,
    Walking,
    Done,
}

/// A directory of the upper layer that is being walked.
#[derive(Debug)]
struct Frame {
    node: Node,
    /// What the directory was below, without the upper layer; none if it is new.
    before: Option<Before>,
    names: vec::IntoIter<OsString>,
    /// The parts of `node`, of which all but the first are those of `before`. Only the
    /// innermost directory keeps them open, so that depth costs no descriptors.
    parts: Option<Vec<OwnedFd>>,
}

#[derive(Debug)]
struct Before {
    node: Node,
    /// Where that was in the merged tree below.
    path: PathBuf,
}

impl Iterator for Changes<'_> {
    type Item = Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        let result = self.advance().transpose();
        if !matches!(result, Some(Ok(_))) {
            self.state = State::Done;
        }
        result
    }
}

impl Changes<'_> {
    pub(crate) fn with_links(mut self) -> Self {
        self.with_links = true;
        self
    }

    /// Whether a file that is there before and after is of any interest.
    fn is_change(&self, contents: bool, metadata: bool, before: &Node, node: &Node) -> bool {
        contents || metadata || (self.with_links && (before.has_links() || node.has_links()))
    }

    fn advance(&mut self) -> Result<Option<Change>> {
        match self.state {
            State::Done => return Ok(None),
            State::Walking => {}
            State::New => {
                self.state = State::Walking;
                if let Some(change) = self.start()? {
                    return Ok(Some(change));
                }
            }
        }
        while let Some(frame) = self.frames.last_mut() {
            let Some(name) = frame.names.next() else {
                self.frames.pop();
                continue;
            };
            if let Some(change) = self.entry(&name)? {
                return Ok(Some(change));
            }
        }
        self.next_name()
    }

    /// The next name of a file that was copied up under another name.
    fn next_name(&mut self) -> Result<Option<Change>> {
        let layers = &self.upper.merged.layers;
        while let Some(entry) = self.names.as_mut().and_then(Iterator::next) {
            let node = entry?.node;
            if node.top().is_none_or(|place| place.layer != INDEX) {
                continue;
            }
            let Some(before) = layers.resolve_without_index(&node.path)? else {
                continue;
            };
            let contents = self.contents_differ(&before, &node)?;
            let metadata = self.metadata_differs(&before, &node)?;
            if self.is_change(contents, metadata, &before, &node) {
                let kind = ChangeKind::Modified { contents, metadata };
                return Ok(Some(Change {
                    path: node.path,
                    kind,
                }));
            }
        }
        Ok(None)
    }

    fn start(&mut self) -> Result<Option<Change>> {
        let layers = &self.upper.merged.layers;
        let node = layers.top()?;
        let mut before = node.without_above(1);
        let below = layers.roots[1].directory(Path::new(""))?;
        before.stat = rustix::fs::fstat(&below)
            .map_err(|source| Error::io("read", layers.roots[1].name(Path::new("")), source))?;
        let here = layers.roots[0].directory(Path::new(""))?;
        let (was, is) = (metadata(&before.stat), metadata(&node.stat));
        let same = (was.mode, was.uid, was.gid) == (is.mode, is.uid, is.gid)
            && self.attributes(&here, OsStr::new(""), &node)?
                == self.attributes(&below, OsStr::new(""), &before)?;
        self.push(
            node,
            Some(Before {
                node: before,
                path: PathBuf::new(),
            }),
        )?;
        Ok((!same).then(|| Change {
            path: PathBuf::new(),
            kind: ChangeKind::Modified {
                contents: false,
                metadata: true,
            },
        }))
    }

    /// Descends into a directory of the upper layer.
    fn push(&mut self, node: Node, before: Option<Before>) -> Result<()> {
        if let Some(outer) = self.frames.last_mut() {
            outer.parts = None;
        }
        let layers = &self.upper.merged.layers;
        let parts = layers.parts(&node)?;
        let (Some(directory), Some(place)) = (parts.first(), node.stack.first()) else {
            return Ok(());
        };
        let names = root::names(directory, &layers.roots[0].name(&place.path))?.into_iter();
        self.frames.push(Frame {
            node,
            before,
            names,
            parts: Some(parts),
        });
        Ok(())
    }

    fn entry(&mut self, name: &OsStr) -> Result<Option<Change>> {
        let layers = &self.upper.merged.layers;
        let Some(frame) = self.frames.last_mut() else {
            return Ok(None);
        };
        let parts = match frame.parts.take() {
            Some(parts) => frame.parts.insert(parts),
            None => frame.parts.insert(layers.parts(&frame.node)?),
        };
        let (Some((directory, below)), Some(place)) =
            (parts.split_first(), frame.node.stack.first())
        else {
            return Ok(None);
        };
        let path = frame.node.path.join(name);
        let before = match &frame.before {
            None => None,
            Some(parent) => {
                let mut found = layers.child_before(
                    OpenNode {
                        node: &parent.node,
                        parts: below,
                    },
                    name,
                )?;
                if let Some(node) = &mut found {
                    // Reported by where it was in the merged tree below.
                    node.path = parent.path.join(name);
                }
                found
            }
        };
        let shown = layers.roots[0].name(&place.path.join(name));
        let stat = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|source| Error::io("read", &shown, source))?;
        let reader = Reader {
            directory: directory.as_fd(),
            name,
            path: &shown,
            marks: layers.marks,
        };
        if reader.whiteout(&stat)?.is_some() {
            return Ok(before.map(|_| Change {
                path,
                kind: ChangeKind::Deleted,
            }));
        }
        let Some(node) = layers.child(
            OpenNode {
                node: &frame.node,
                parts,
            },
            name,
        )?
        else {
            return Ok(None);
        };
        if node.kind() != FileType::Directory {
            let kind = match &before {
                None => ChangeKind::Added,
                Some(before) if before.kind() != node.kind() => ChangeKind::TypeChanged,
                Some(before) => {
                    let contents = self.contents_differ(before, &node)?;
                    let metadata = self.metadata_differs(before, &node)?;
                    if !self.is_change(contents, metadata, before, &node) {
                        return Ok(None);
                    }
                    ChangeKind::Modified { contents, metadata }
                }
            };
            return Ok(Some(Change { path, kind }));
        }
        self.directory(path, node, before)
    }

    fn directory(
        &mut self,
        path: PathBuf,
        node: Node,
        before: Option<Node>,
    ) -> Result<Option<Change>> {
        let layers = &self.upper.merged.layers;
        let lower = node.without_above(1);
        if lower.stack.is_empty() {
            // Nothing shows through: it is new, or it replaces what was there.
            let kind = match &before {
                None => ChangeKind::Added,
                Some(before) if before.is_directory() => ChangeKind::Replaced,
                Some(_) => ChangeKind::TypeChanged,
            };
            self.push(node, None)?;
            return Ok(Some(Change { path, kind }));
        }
        let replaces = before.is_some();
        if let Some(before) = before.filter(|before| before.stack == lower.stack) {
            let changed = self.metadata_differs(&before, &node)?;
            let origin = before.path.clone();
            self.push(
                node,
                Some(Before {
                    node: before,
                    path: origin,
                }),
            )?;
            return Ok(changed.then_some(Change {
                path,
                kind: ChangeKind::Modified {
                    contents: false,
                    metadata: true,
                },
            }));
        }
        // A redirect: the lower part was somewhere else. That place is named in the merged
        // tree of the lower layers, which must agree about what is there.
        let from = self.redirected(&node)?;
        let mut origin = self.lower_lookup(&from)?;
        match &mut origin {
            Some(origin) if origin.stack == lower.stack => origin.path.clone_from(&from),
            _ => {
                return Err(Error::AmbiguousRedirect {
                    path: layers.roots[0].name(&node.stack[0].path),
                    from,
                });
            }
        }
        let origin = origin.map(|node| Before {
            node,
            path: from.clone(),
        });
        self.push(node, origin)?;
        Ok(Some(Change {
            path,
            kind: ChangeKind::Renamed { from, replaces },
        }))
    }

    /// Where the redirect of a directory of the upper layer points, in the lower merged tree.
    fn redirected(&self, node: &Node) -> Result<PathBuf> {
        let layers = &self.upper.merged.layers;
        let (directory, name, shown) = layers.top_of(node)?;
        let reader = Reader {
            directory: directory.as_fd(),
            name: &name,
            path: &shown,
            marks: layers.marks,
        };
        let parent = self.frames.last().and_then(|frame| frame.before.as_ref());
        match (reader.redirect()?, parent) {
            (Some(crate::marks::Redirect::Absolute(path)), _) => {
                Ok(path.strip_prefix("/").unwrap_or(&path).to_owned())
            }
            (Some(crate::marks::Redirect::Sibling(name)), Some(parent)) => {
                Ok(parent.path.join(name))
            }
            _ => Err(Error::AmbiguousRedirect {
                path: shown,
                from: node.path.clone(),
            }),
        }
    }

    fn lower_lookup(&self, path: &Path) -> Result<Option<Node>> {
        let layers = &self.upper.merged.layers;
        let mut node = layers.top()?.without_above(1);
        for name in path {
            if !node.is_directory() {
                return Ok(None);
            }
            let parts = layers.parts(&node)?;
            match layers.child_before(
                OpenNode {
                    node: &node,
                    parts: &parts,
                },
                name,
            )? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    fn attributes(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        node: &Node,
    ) -> Result<Vec<(OsString, Vec<u8>)>> {
        xattr::visible(directory.as_fd(), name, self.upper.merged.layers.marks)
            .map_err(|source| Error::io("read the attributes of", &node.path, source))
    }

    fn metadata_differs(&self, before: &Node, node: &Node) -> Result<bool> {
        let (mut was, is) = (metadata(&before.stat), metadata(&node.stat));
        // Those are contents.
        was.size = is.size;
        was.device = is.device;
        if was != is {
            return Ok(true);
        }
        let layers = &self.upper.merged.layers;
        let (directory, name, _) = layers.top_of(before)?;
        let was = self.attributes(&directory, &name, before)?;
        let (directory, name, _) = layers.top_of(node)?;
        Ok(was != self.attributes(&directory, &name, node)?)
    }

    fn contents_differ(&self, before: &Node, node: &Node) -> Result<bool> {
        let layers = &self.upper.merged.layers;
        match node.kind() {
            FileType::Symlink => Ok(layers.read_link(before)? != layers.read_link(node)?),
            FileType::CharacterDevice | FileType::BlockDevice => {
                Ok(before.stat.st_rdev != node.stat.st_rdev)
            }
            FileType::RegularFile => {
                if before.stat.st_size != node.stat.st_size {
                    return Ok(true);
                }
                if place_of_contents(before).is_some()
                    && place_of_contents(before) == place_of_contents(node)
                {
                    return Ok(false);
                }
                let (one, other) = (layers.open_file(before)?, layers.open_file(node)?);
                differ(one, other).map_err(|source| Error::io("read", &node.path, source))
            }
            _ => Ok(false),
        }
    }
}

/// What tells whether two files have their contents from the same place.
fn place_of_contents(node: &Node) -> Option<(bool, &crate::lookup::Place)> {
    match &node.contents {
        Contents::Here => node.stack.first().map(|place| (false, place)),
        Contents::Layer(place) => Some((false, place)),
        Contents::DataOnly(place) => Some((true, place)),
        Contents::Missing => None,
    }
}

fn differ(mut one: File, mut other: File) -> std::io::Result<bool> {
    let mut buffers = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let length = one.read(&mut buffers.0)?;
        if length == 0 {
            return Ok(other.read(&mut buffers.1[..1])? != 0);
        }
        match other.read_exact(&mut buffers.1[..length]) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(true),
            Err(error) => return Err(error),
        }
        if buffers.0[..length] != buffers.1[..length] {
            return Ok(true);
        }
    }
}
