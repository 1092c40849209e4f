//! How a name is found in a stack of layers: the rules of the kernel's `ovl_lookup`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::index::Index;
use crate::marks::{Reader, Redirect};
use crate::options::Marks;
use crate::root::{self, Root};

/// The layers that are looked at, and what is done about marks.
#[derive(Debug)]
pub(crate) struct Layers {
    /// Topmost first.
    pub(crate) roots: Vec<Root>,
    /// Data-only layers, topmost first.
    pub(crate) data: Vec<Root>,
    /// Hard links that were copied up (`index=on`).
    pub(crate) index: Option<Index>,
    /// None for an ordinary tree, in which nothing is a mark.
    pub(crate) marks: Option<Marks>,
    pub(crate) follow_redirects: bool,
    pub(crate) follow_metacopies: bool,
    /// The topmost layer is one that was written, not a lower one.
    pub(crate) has_upper: bool,
}

/// Stands for the index of hard links in a [`Place`].
pub(crate) const INDEX: usize = usize::MAX;

/// Where something stands in a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index into [`Layers::roots`], or [`INDEX`].
    pub(crate) layer: usize,
    /// Relative to the layer's top.
    pub(crate) path: PathBuf,
}

/// What a name means in the merged tree.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Relative to the top of the merged tree.
    pub(crate) path: PathBuf,
    /// Of the topmost place, which metadata and attributes come from.
    pub(crate) stat: Stat,
    /// The places that are merged, topmost first: several for a directory, and for a
    /// metacopy the one with the metadata and the one with the contents.
    pub(crate) stack: Vec<Place>,
    /// Where layers below the last would be asked; none if nothing of them can show through.
    pub(crate) below: Option<PathBuf>,
    /// The contents, which a metacopy has elsewhere, perhaps in a data-only layer.
    pub(crate) contents: Contents,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contents {
    /// In the topmost place.
    Here,
    Layer(Place),
    DataOnly(Place),
    /// A metacopy whose contents are nowhere.
    Missing,
}

impl Node {
    pub(crate) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.kind() == FileType::Directory
    }

    pub(crate) fn top(&self) -> Option<&Place> {
        self.stack.first()
    }

    /// Whether the file may have other names in the merged tree. A copy in the index has the
    /// names of what it is a copy of, and perhaps no other link.
    pub(crate) fn has_links(&self) -> bool {
        !self.is_directory()
            && (self.stat.st_nlink > 1 || self.top().is_some_and(|place| place.layer == INDEX))
    }

    /// The same directory without what the layers above `layer` have of it.
    pub(crate) fn without_above(&self, layer: usize) -> Node {
        let stack = self
            .stack
            .iter()
            .filter(|place| place.layer >= layer)
            .cloned()
            .collect();
        Node {
            stack,
            ..self.clone()
        }
    }
}

/// A directory of the merged tree with its parts open, for looking up many names.
#[derive(Clone, Copy)]
pub(crate) struct OpenNode<'a> {
    pub(crate) node: &'a Node,
    /// One for each place in the node's stack.
    pub(crate) parts: &'a [OwnedFd],
}

/// The names in a merged directory.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Each with where its parts begin.
    names: Vec<(OsString, usize)>,
    parts: Vec<usize>,
}

impl Listing {
    /// One name and the parts that have it, topmost first.
    pub(crate) fn get(&self, number: usize) -> Option<(&OsStr, &[usize])> {
        let (name, start) = self.names.get(number)?;
        let end = self
            .names
            .get(number + 1)
            .map_or(self.parts.len(), |(_, next)| *next);
        Some((name, &self.parts[*start..end]))
    }
}

/// What is still to be looked for while layers are walked downwards.
struct Search {
    wanted: Wanted,
    stop: bool,
    found_directory: bool,
    metacopy: bool,
}

enum Wanted {
    /// In the parent's places.
    Child(OsString),
    /// From the top of each layer.
    Absolute(PathBuf),
}

struct Hit {
    stat: Stat,
    path: PathBuf,
}

impl Layers {
    /// The upper `count` of the layers.
    pub(crate) fn topmost(&self, count: usize) -> Result<Layers> {
        let clone = |roots: &[Root]| {
            roots
                .iter()
                .map(Root::try_clone)
                .collect::<Result<Vec<_>>>()
        };
        Ok(Layers {
            roots: clone(&self.roots[..count])?,
            data: clone(&self.data)?,
            index: self.index.as_ref().map(Index::try_clone).transpose()?,
            ..*self
        })
    }

    pub(crate) fn top(&self) -> Result<Node> {
        let place = Path::new("");
        let first = self
            .roots
            .first()
            .ok_or(Error::TooFewLayers { lowers: 0 })?;
        let stat = rustix::fs::fstat(first.directory(place)?)
            .map_err(|source| Error::io("read", first.name(place), source))?;
        Ok(Node {
            path: PathBuf::new(),
            stat,
            stack: (0..self.roots.len())
                .map(|layer| Place {
                    layer,
                    path: PathBuf::new(),
                })
                .collect(),
            below: Some(PathBuf::new()),
            contents: Contents::Here,
        })
    }

    /// Opens the parts of a directory.
    pub(crate) fn parts(&self, node: &Node) -> Result<Vec<OwnedFd>> {
        node.stack
            .iter()
            .map(|place| self.root(place.layer).directory(&place.path))
            .collect()
    }

    /// Looks up a path from the top. Symbolic links are not followed.
    pub(crate) fn resolve(&self, path: &Path) -> Result<Option<Node>> {
        self.resolve_with(path, true)
    }

    /// As `resolve`, but a hard link that was copied up under another name is what it was.
    pub(crate) fn resolve_without_index(&self, path: &Path) -> Result<Option<Node>> {
        self.resolve_with(path, false)
    }

    fn resolve_with(&self, path: &Path, index: bool) -> Result<Option<Node>> {
        let mut node = self.top()?;
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) if node.is_directory() => {
                    let parts = self.parts(&node)?;
                    match self.search(
                        OpenNode {
                            node: &node,
                            parts: &parts,
                        },
                        name,
                        None,
                        index,
                    )? {
                        Some(child) => node = child,
                        None => return Ok(None),
                    }
                }
                _ => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// The names in a merged directory, sorted, also those that are hidden, each with the
    /// parts that have it.
    pub(crate) fn names(&self, open: OpenNode<'_>) -> Result<Listing> {
        let mut all: Vec<(OsString, usize)> = Vec::new();
        for (part, directory) in open.parts.iter().enumerate() {
            let place = &open.node.stack[part];
            let path = self.root(place.layer).name(&place.path);
            all.extend(
                root::names(directory, &path)?
                    .into_iter()
                    .map(|name| (name, part)),
            );
        }
        if open.parts.len() > 1 {
            all.sort_unstable();
        }
        let mut listing = Listing::default();
        for (name, part) in all {
            if listing.names.last().is_none_or(|(last, _)| *last != name) {
                listing.names.push((name, listing.parts.len()));
            }
            listing.parts.push(part);
        }
        Ok(listing)
    }

    /// Looks up a name of a listing, only in the parts that have it.
    pub(crate) fn listed(
        &self,
        parent: OpenNode<'_>,
        (name, parts): (&OsStr, &[usize]),
    ) -> Result<Option<Node>> {
        self.search(parent, name, Some(parts), true)
    }

    /// Looks up one name in a merged directory.
    pub(crate) fn child(&self, parent: OpenNode<'_>, name: &OsStr) -> Result<Option<Node>> {
        self.search(parent, name, None, true)
    }

    /// As `child`, but a hard link that was copied up under another name is what it was.
    pub(crate) fn child_before(&self, parent: OpenNode<'_>, name: &OsStr) -> Result<Option<Node>> {
        self.search(parent, name, None, false)
    }

    fn search(
        &self,
        parent: OpenNode<'_>,
        name: &OsStr,
        present: Option<&[usize]>,
        index: bool,
    ) -> Result<Option<Node>> {
        let mut search = Search {
            wanted: Wanted::Child(name.to_owned()),
            stop: false,
            found_directory: false,
            metacopy: false,
        };
        let mut found: Option<Node> = None;
        // Which part of the parent, or after an absolute redirect which layer, is next.
        let mut part = 0;
        let mut layer = 0;
        while !search.stop {
            let at;
            let hit = match &search.wanted {
                Wanted::Child(wanted) => {
                    // What is known of the name says nothing of one that it redirects to.
                    let next = match present.filter(|_| wanted == name) {
                        Some(present) => present.iter().copied().find(|known| *known >= part),
                        None => Some(part),
                    };
                    let Some((next, place)) =
                        next.and_then(|next| Some((next, parent.node.stack.get(next)?)))
                    else {
                        break;
                    };
                    part = next;
                    at = place.layer;
                    let directory = &parent.parts[part];
                    part += 1;
                    self.search_directory(at, directory, &place.path, &mut search)?
                }
                Wanted::Absolute(_) => {
                    if layer >= self.roots.len() {
                        break;
                    }
                    at = layer;
                    layer += 1;
                    self.search_from_top(at, &mut search)?
                }
            };
            let Some(hit) = hit else { continue };
            let place = Place {
                layer: at,
                path: hit.path,
            };
            match &mut found {
                None => {
                    found = Some(Node {
                        path: parent.node.path.join(name),
                        stat: hit.stat,
                        stack: vec![place],
                        below: None,
                        contents: if search.metacopy {
                            Contents::Missing
                        } else {
                            Contents::Here
                        },
                    });
                }
                Some(node) if node.is_directory() => node.stack.push(place),
                // Metacopies between the topmost and the contents add nothing.
                Some(_) if search.metacopy => {}
                Some(node) => {
                    node.contents = Contents::Layer(place.clone());
                    node.stack.push(place);
                }
            }
            if matches!(search.wanted, Wanted::Absolute(_)) {
                layer = layer.max(at + 1);
            }
        }
        let Some(mut node) = found else {
            return Ok(None);
        };
        if !search.stop {
            node.below = match &search.wanted {
                Wanted::Child(name) => parent.node.below.as_ref().map(|below| below.join(name)),
                Wanted::Absolute(path) => Some(path.strip_prefix("/").unwrap_or(path).to_owned()),
            };
        }
        if node.contents == Contents::Missing
            && let Wanted::Absolute(path) = &search.wanted
        {
            node.contents = self.find_data(path)?;
        }
        if index && !node.is_directory() && node.stat.st_nlink > 1 {
            self.apply_index(&mut node)?;
        }
        Ok(Some(node))
    }

    /// A hard link of which another name was copied up with `index=on` shows that copy.
    fn apply_index(&self, node: &mut Node) -> Result<()> {
        let Some(place) = node.top().cloned() else {
            return Ok(());
        };
        let root = self.root(place.layer);
        let parent = root.directory(place.path.parent().unwrap_or(Path::new("")))?;
        let name = place.path.file_name().unwrap_or_default();
        let shown = root.name(&place.path);
        let Some(index) = &self.index else {
            let reader = Reader {
                directory: parent.as_fd(),
                name,
                path: &shown,
                marks: self.marks,
            };
            // Only the layer that was written last can have names below that share its copy.
            if place.layer == 0 && self.has_upper && reader.get("nlink")?.is_some() {
                return Err(Error::NeedsIndex { path: shown });
            }
            return Ok(());
        };
        if place.layer == 0 {
            return Ok(());
        }
        let Some(copy) = index.find(parent.as_fd(), name, &shown)? else {
            return Ok(());
        };
        let directory = index.root.directory(Path::new(""))?;
        let shown = index.root.name(Path::new(copy));
        let stat = statat(&directory, copy, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|source| Error::io("read", &shown, source))?;
        let reader = Reader {
            directory: directory.as_fd(),
            name: copy,
            path: &shown,
            marks: self.marks,
        };
        if reader.whiteout(&stat)?.is_some() {
            return Ok(());
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || !reader.is_metacopy()?
        {
            node.contents = Contents::Here;
        } else if node.contents == Contents::Here {
            node.contents = Contents::Layer(place);
        }
        node.stat = stat;
        node.stack.insert(
            0,
            Place {
                layer: INDEX,
                path: copy.into(),
            },
        );
        Ok(())
    }

    pub(crate) fn root(&self, layer: usize) -> &Root {
        match &self.index {
            Some(index) if layer == INDEX => &index.root,
            _ => &self.roots[layer],
        }
    }

    fn search_directory(
        &self,
        layer: usize,
        directory: &OwnedFd,
        path: &Path,
        search: &mut Search,
    ) -> Result<Option<Hit>> {
        let Wanted::Child(name) = &search.wanted else {
            return Ok(None);
        };
        let name = name.clone();
        self.search_name(layer, directory, path, &name, None, search)
    }

    /// Walks an absolute redirect in one layer, obeying the marks on the way.
    fn search_from_top(&self, layer: usize, search: &mut Search) -> Result<Option<Hit>> {
        let Wanted::Absolute(path) = &search.wanted else {
            return Ok(None);
        };
        // A redirect on the way changes where the layers below are searched, not this one.
        let path = path.clone();
        let mut at = PathBuf::new();
        let mut components = path
            .components()
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .peekable();
        while let Some(name) = components.next() {
            let directory = self.roots[layer].directory(&at)?;
            let rest: PathBuf = components.clone().collect();
            let more = components.peek().is_some().then_some(rest.as_path());
            let Some(hit) = self.search_name(layer, &directory, &at, name, more, search)? else {
                return Ok(None);
            };
            if more.is_none() {
                return Ok(Some(hit));
            }
            at = hit.path;
        }
        Ok(None)
    }

    /// One name in one directory of one layer. `rest` is what comes after it in an absolute
    /// redirect.
    fn search_name(
        &self,
        layer: usize,
        directory: &OwnedFd,
        parent: &Path,
        name: &OsStr,
        rest: Option<&Path>,
        search: &mut Search,
    ) -> Result<Option<Hit>> {
        let path = parent.join(name);
        let shown = self.roots[layer].name(&path);
        let stat = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(None),
            Err(source) => return Err(Error::io("read", shown, source)),
        };
        let reader = Reader {
            directory: directory.as_fd(),
            name,
            path: &shown,
            marks: self.marks,
        };
        if reader.whiteout(&stat)?.is_some() {
            search.stop = true;
            return Ok(None);
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_last = rest.is_none();
        if is_last && search.metacopy && kind != FileType::RegularFile {
            search.stop = true;
            return Ok(None);
        }
        if kind == FileType::Directory {
            if is_last {
                search.found_directory = true;
            }
            if reader.is_opaque()? {
                search.stop = true;
                return Ok(Some(Hit { stat, path }));
            }
        } else {
            if search.found_directory || !is_last {
                search.stop = true;
                return Ok(None);
            }
            search.metacopy = kind == FileType::RegularFile && reader.is_metacopy()?;
            search.stop = !search.metacopy;
            if !search.metacopy {
                return Ok(Some(Hit { stat, path }));
            }
            if !self.follow_metacopies {
                return Err(Error::Refused {
                    path: shown,
                    mark: "metacopy",
                });
            }
        }
        if let Some(redirect) = reader.redirect()? {
            if !self.follow_redirects {
                return Err(Error::Refused {
                    path: shown,
                    mark: "redirect",
                });
            }
            let mut wanted = match (redirect, &search.wanted) {
                (Redirect::Absolute(target), _) => {
                    search.stop = false;
                    Wanted::Absolute(target)
                }
                (Redirect::Sibling(sibling), Wanted::Child(_)) => Wanted::Child(sibling),
                // The prefix is that of the path which is being walked.
                (Redirect::Sibling(sibling), Wanted::Absolute(walked)) => {
                    // Counted from the end, since a redirect further up may have changed it.
                    let after = rest.map_or(0, |rest| rest.components().count());
                    let before = walked.components().count().saturating_sub(after + 1);
                    let mut target: PathBuf = walked.components().take(before).collect();
                    target.push(sibling);
                    Wanted::Absolute(target)
                }
            };
            if let (Wanted::Absolute(target), Some(rest)) = (&mut wanted, rest) {
                target.push(rest);
            }
            search.wanted = wanted;
        }
        Ok(Some(Hit { stat, path }))
    }

    /// Contents that only a data-only layer has; only ever reached by an absolute redirect.
    fn find_data(&self, redirect: &Path) -> Result<Contents> {
        let path = redirect.strip_prefix("/").unwrap_or(redirect);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Contents::Missing);
        };
        for (layer, root) in self.data.iter().enumerate() {
            let directory = match root.directory(parent) {
                Ok(directory) => directory,
                Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    continue;
                }
                Err(error) => return Err(error),
            };
            match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {
                    return Ok(Contents::DataOnly(Place {
                        layer,
                        path: path.to_owned(),
                    }));
                }
                _ => {}
            }
        }
        Ok(Contents::Missing)
    }
}
