//! One control group.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;

use crate::apply::available;
use crate::controller::{Controller, Controllers};
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::hierarchy::{Hierarchy, Tree};
use crate::knob::Knob;
use crate::name::GroupName;
use crate::procfs::Version;
use crate::walk;

/// A control group: one directory in each hierarchy of the machine.
///
/// A handle, not an owner: dropping it changes nothing. [`Cgroup::guard`] makes an owner of it.
/// It refers to the group by open directories, so a group that is removed and made anew is never
/// mistaken for the old one; operations on a removed group give [`Error::Vanished`].
#[derive(Debug)]
pub struct Cgroup {
    hierarchy: Hierarchy,
    /// Relative to the visible roots. Where they differ, as in the first hierarchy.
    path: PathBuf,
    /// One for each tree of the hierarchy, in the same order.
    dirs: Vec<Option<Dir>>,
}

/// What becomes of hierarchies in which a group may not be created.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Fails,
    LeftOut,
}

impl Cgroup {
    pub(crate) fn from_dirs(hierarchy: Hierarchy, path: PathBuf, dirs: Vec<Option<Dir>>) -> Self {
        Self {
            hierarchy,
            path,
            dirs,
        }
    }

    /// The hierarchies that it belongs to.
    pub fn hierarchy(&self) -> &Hierarchy {
        &self.hierarchy
    }

    /// Its path, relative to the visible root; empty for the root itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directories, that of v2 first.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.members().map(|(_, dir)| dir.path())
    }

    /// Its directory in the hierarchy of v2, to be lent to `clone3` with `CLONE_INTO_CGROUP`
    /// (Linux 5.7) so that a process starts inside. Nothing where v2 is not mounted.
    ///
    /// On a hybrid layout the v1 hierarchies remain: [`Cgroup::attach`] the new process before
    /// it runs.
    #[doc(alias = "CLONE_INTO_CGROUP")]
    pub fn unified_directory(&self) -> Option<BorrowedFd<'_>> {
        self.unified().map(AsFd::as_fd)
    }

    /// Its directory in the hierarchy that has `controller`.
    pub fn directory_of(&self, controller: Controller) -> Option<BorrowedFd<'_>> {
        let tree = self.hierarchy.tree_of(controller)?;
        self.dirs[tree].as_ref().map(AsFd::as_fd)
    }

    pub(crate) fn unified(&self) -> Option<&Dir> {
        self.members()
            .find(|(tree, _)| tree.version == Version::V2)
            .map(|(_, dir)| dir)
    }

    /// The directories that it has, each with its hierarchy, that of v2 first.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&Tree, &Dir)> {
        self.hierarchy
            .trees()
            .iter()
            .zip(&self.dirs)
            .filter_map(|(tree, dir)| Some((tree, dir.as_ref()?)))
    }

    /// The directory by which to name the group in messages.
    pub(crate) fn label(&self) -> PathBuf {
        self.members()
            .next()
            .map_or_else(|| self.path.clone(), |(_, dir)| dir.path().to_owned())
    }

    /// The directory that has a controller, and its interface.
    pub(crate) fn dir_of(&self, controller: Controller) -> Result<(Version, &Dir)> {
        self.hierarchy
            .tree_of(controller)
            .and_then(|index| {
                let dir = self.dirs[index].as_ref()?;
                Some((self.hierarchy.trees()[index].version, dir))
            })
            .ok_or_else(|| Error::ControllerUnavailable {
                controller,
                group: self.label(),
            })
    }

    pub(crate) fn unsupported(&self, knob: Knob) -> Error {
        Error::Unsupported {
            knob,
            layout: self.hierarchy.layout(),
        }
    }

    /// Creates a group below this one, in every hierarchy that this one is in. Parents that do
    /// not exist are created too. When it fails, what it created is removed.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`], [`Error::AlreadyExists`], [`Error::NotDelegated`],
    /// [`Error::ReadOnly`], [`Error::TooManyGroups`], [`Error::Vanished`] when this group was
    /// removed.
    pub fn create(&self, path: impl AsRef<Path>) -> Result<Self> {
        self.create_with(path.as_ref(), Missing::Fails)
    }

    /// Creates a group as [`Cgroup::create`] does, but leaves out the hierarchies where this
    /// process may not create one, as an ordinary user who has only a part of a hybrid layout.
    /// Limits of controllers that were left out fail with [`Error::ControllerUnavailable`].
    ///
    /// # Errors
    ///
    /// As [`Cgroup::create`]; permission only when it is missing everywhere.
    pub fn create_where_permitted(&self, path: impl AsRef<Path>) -> Result<Self> {
        self.create_with(path.as_ref(), Missing::LeftOut)
    }

    fn create_with(&self, path: &Path, missing: Missing) -> Result<Self> {
        let name = GroupName::new(path)?;
        let mut created = Vec::new();
        let dirs = self.create_dirs(name, missing, &mut created);
        if dirs.is_err() {
            // Nobody can have entered yet, and a group that someone else made a home of its own
            // meanwhile is refused by the kernel: nothing to do about either.
            for (tree, path) in created.iter().rev() {
                if let Some(parent) = &self.dirs[*tree] {
                    let _ = rustix::fs::unlinkat(parent, path, rustix::fs::AtFlags::REMOVEDIR);
                }
            }
        }
        Ok(Self::from_dirs(
            self.hierarchy.clone(),
            self.path.join(path),
            dirs?,
        ))
    }

    fn create_dirs(
        &self,
        name: GroupName<'_>,
        missing: Missing,
        created: &mut Vec<(usize, PathBuf)>,
    ) -> Result<Vec<Option<Dir>>> {
        let mut dirs = Vec::with_capacity(self.dirs.len());
        let mut refusal = None;
        for (index, tree) in self.hierarchy.trees().iter().enumerate() {
            let Some(parent) = &self.dirs[index] else {
                dirs.push(None);
                continue;
            };
            match create_dir(tree, parent, name, |path| created.push((index, path))) {
                Ok(dir) => dirs.push(Some(dir)),
                Err(error @ (Error::NotDelegated { .. } | Error::ReadOnly { .. }))
                    if missing == Missing::LeftOut =>
                {
                    refusal.get_or_insert(error);
                    dirs.push(None);
                }
                Err(error) => return Err(error),
            }
        }
        match refusal {
            Some(error) if dirs.iter().all(Option::is_none) => Err(error),
            _ => Ok(dirs),
        }
    }

    /// Opens a group below this one that exists in at least one hierarchy.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::InvalidName`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let name = GroupName::existing(path)?;
        let mut dirs = Vec::with_capacity(self.dirs.len());
        for dir in &self.dirs {
            dirs.push(match dir.as_ref().map(|dir| (dir, dir.open_below(path))) {
                // The kernel's own files are no groups.
                None | Some((_, Err(Errno::NOENT | Errno::NOTDIR))) => None,
                Some((_, Ok(dir))) => Some(dir),
                Some((dir, Err(errno))) => {
                    return Err(dir.error("open", &path.to_string_lossy(), errno));
                }
            });
        }
        let path = self.path.join(name.path());
        if dirs.iter().all(Option::is_none) {
            return Err(Error::NotFound { group: path });
        }
        Ok(Self::from_dirs(self.hierarchy.clone(), path, dirs))
    }

    /// Opens a group below this one, or creates it.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::create`] and [`Cgroup::open`].
    pub fn open_or_create(&self, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        match self.create(path) {
            Err(Error::AlreadyExists { .. }) => self.open(path),
            other => other,
        }
    }

    /// The names of the groups directly below this one, in any hierarchy, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`], [`Error::Io`].
    pub fn children(&self) -> Result<Vec<PathBuf>> {
        let mut names = Vec::new();
        for (_, dir) in self.members() {
            let children =
                walk::children(dir.as_fd()).map_err(|errno| dir.error("list", "", errno))?;
            // A removed directory can still be listed, and seems empty.
            if children.is_empty() && !dir.is_alive() {
                return Err(dir.error("list", "", Errno::NODEV));
            }
            names.extend(children.into_iter().map(walk::to_path));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Whether it still exists in every hierarchy where it was opened.
    pub fn exists(&self) -> bool {
        self.members().all(|(_, dir)| dir.is_alive())
    }

    /// The controllers that limits and statistics of this group can use: those of its v1
    /// hierarchies, those that its parent on v2 passes on, and those that this process may enable
    /// in the parents (the rule that processes live in leaves only may still forbid it).
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`], [`Error::Io`].
    pub fn usable_controllers(&self) -> Result<Controllers> {
        let mut all = Controllers::EMPTY;
        for (tree, dir) in self.members() {
            all = all.union(match tree.version {
                Version::V1 => tree.controllers,
                Version::V2 => usable_on_v2(tree, dir)?,
            });
        }
        Ok(all)
    }
}

fn usable_on_v2(tree: &Tree, dir: &Dir) -> Result<Controllers> {
    let mut set = available(dir)?;
    if dir.has("cgroup.freeze") {
        set.insert(Controller::Freezer);
    }
    let mut here = dir.path();
    while here != tree.root.path()
        && let Some(above) = here.parent()
    {
        let may_enable = rustix::fs::accessat(
            rustix::fs::CWD,
            above.join("cgroup.subtree_control"),
            rustix::fs::Access::WRITE_OK,
            rustix::fs::AtFlags::EACCESS,
        );
        if may_enable.is_err() {
            break;
        }
        let parent =
            Dir::open(above).map_err(|errno| dir.error("open the parent of", "", errno))?;
        set = set.union(available(&parent)?);
        here = above;
    }
    Ok(set)
}

fn create_dir(
    tree: &Tree,
    parent: &Dir,
    name: GroupName<'_>,
    mut created: impl FnMut(PathBuf),
) -> Result<Dir> {
    let prefixes: Vec<_> = name.prefixes().collect();
    let needs_preparation = tree.preparation.accounting || tree.preparation.sets;
    // Someone may remove an empty parent between its creation and that of its child.
    let mut attempts = 16;
    'again: loop {
        for (depth, path) in prefixes.iter().enumerate() {
            match rustix::fs::mkdirat(parent, path, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    created(path.clone());
                    let last = depth + 1 == prefixes.len();
                    if !last && !needs_preparation {
                        continue;
                    }
                    match parent.open_below(path) {
                        Ok(dir) => {
                            prepare(tree, parent, &dir)?;
                            if last {
                                return Ok(dir);
                            }
                        }
                        Err(Errno::NOENT) if attempts > 0 => {
                            attempts -= 1;
                            continue 'again;
                        }
                        Err(errno) => {
                            return Err(parent.error("open", &path.to_string_lossy(), errno));
                        }
                    }
                }
                Err(Errno::EXIST) if depth + 1 < prefixes.len() => {}
                Err(Errno::EXIST) => {
                    return Err(Error::AlreadyExists {
                        group: parent.path().join(path),
                    });
                }
                Err(Errno::NOENT) if attempts > 0 && parent.is_alive() => {
                    attempts -= 1;
                    continue 'again;
                }
                // An ancestor's bound, or that of the memory controller, which numbers its groups
                // (65,535, and a removed one keeps its number while pages are left of it).
                Err(errno @ (Errno::AGAIN | Errno::NOSPC | Errno::BUSY)) => {
                    return Err(Error::TooManyGroups {
                        group: parent.path().join(path),
                        source: errno.into(),
                    });
                }
                Err(errno) => {
                    return Err(parent.error("create", &path.to_string_lossy(), errno));
                }
            }
        }
        match parent.open_below(name.path()) {
            Ok(dir) => return Ok(dir),
            Err(Errno::NOENT) if attempts > 0 => attempts -= 1,
            Err(errno) => {
                return Err(parent.error("open", &name.path().to_string_lossy(), errno));
            }
        }
    }
}

/// Makes a new group of v1 behave as one of v2 does: it accounts for its children, and it may
/// use what its parent may.
fn prepare(tree: &Tree, top: &Dir, dir: &Dir) -> Result<()> {
    if tree.preparation.accounting {
        const FILE: &str = "memory.use_hierarchy";
        if dir.try_read(FILE)?.as_deref() == Some("0\n") {
            dir.write(FILE, "1")?;
        }
    }
    if tree.preparation.sets {
        let above;
        let parent = match dir.path().parent() {
            Some(parent) if parent != top.path() => {
                above = Dir::open(parent)
                    .map_err(|errno| top.error("open", &parent.to_string_lossy(), errno))?;
                &above
            }
            _ => top,
        };
        // A group whose sets are empty, as they are in a new one, admits no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            dir.write(file, parent.read(file)?.trim())?;
        }
    }
    Ok(())
}
