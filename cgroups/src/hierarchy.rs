//! Where this machine has which controllers.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::controller::{Controller, Controllers};
use crate::dir::{Dir, read_all};
use crate::error::{Error, ParseError, Result};
use crate::group::Cgroup;
use crate::procfs::{Memberships, MountEntry, MountTable, Version};

/// How a machine lays out its controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// v2 alone.
    Unified,
    /// v1 alone: a hierarchy for each controller.
    Legacy,
    /// Some controllers on v1, the others on v2.
    Hybrid,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unified => "the unified cgroup layout (v2)",
            Self::Legacy => "the legacy cgroup layout (v1)",
            Self::Hybrid => "the hybrid cgroup layout (v1 and v2)",
        })
    }
}

/// One mounted hierarchy.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) version: Version,
    /// On v2 those that the mounted root has to give.
    pub(crate) controllers: Controllers,
    /// The group that is mounted, seen from this process's cgroup namespace.
    mounted: PathBuf,
    pub(crate) root: Dir,
    /// What a new group of v1 needs before it behaves as one of v2 does.
    pub(crate) preparation: Preparation,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Preparation {
    /// To be told to account for its children.
    pub(crate) accounting: bool,
    /// To be given the processors and memory nodes of its parent.
    pub(crate) sets: bool,
}

/// The control groups of this machine, as far as this process sees them.
///
/// Found from `/proc/self/mountinfo` and `/proc/self/cgroup`, never from fixed paths, and checked
/// by what is really mounted. Cloning is cheap.
///
/// Hierarchies of v1 that have a name instead of a controller belong to the program that mounted
/// them (systemd, as a rule) and are left alone.
///
/// Manual: `cgroups(7)`.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    trees: Arc<[Tree]>,
}

const CGROUP_SUPER_MAGIC: i64 = 0x0027_e0eb;
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

impl Hierarchy {
    /// Finds the hierarchies that are mounted in this process's mount namespace.
    ///
    /// # Errors
    ///
    /// [`Error::NoCgroupfs`] when there is none; [`Error::Io`] when `/proc` cannot be read;
    /// [`Error::Parse`] when it holds something unforeseen.
    pub fn detect() -> Result<Self> {
        let table = read_proc(Path::new("/proc/self/mountinfo"), MountTable::from_bytes)?;
        let groups = read_proc(Path::new("/proc/self/cgroup"), Memberships::from_bytes)?;
        Self::from_tables(&table, &groups)
    }

    fn from_tables(table: &MountTable, groups: &Memberships) -> Result<Self> {
        let mut trees: Vec<Tree> = Vec::new();
        let mut devices: Vec<(u32, u32)> = Vec::new();
        for entry in &table.0 {
            if devices.contains(&entry.device) {
                continue;
            }
            let mut candidates: Vec<_> = table
                .0
                .iter()
                .filter(|other| other.device == entry.device)
                .collect();
            // Of several mounts of one hierarchy the one that shows most, and among those the
            // one that also shows this process.
            candidates.sort_by_key(|mount| {
                let own = groups.find(mount.version, mount.controllers);
                let shows_own = own.is_some_and(|own| own.starts_with(&mount.root));
                (!shows_own, mount.root.components().count())
            });
            if let Some(tree) = candidates.into_iter().find_map(open_tree) {
                devices.push(entry.device);
                trees.push(tree);
            }
        }
        if trees.is_empty() {
            return Err(Error::NoCgroupfs);
        }
        // v2 first: what it has is complete for processes, freezing and killing.
        trees.sort_by_key(|tree| tree.version == Version::V1);
        Ok(Self {
            trees: trees.into(),
        })
    }

    pub(crate) fn trees(&self) -> &[Tree] {
        &self.trees
    }

    /// How the controllers are laid out.
    pub fn layout(&self) -> Layout {
        let has = |version| self.trees.iter().any(|tree| tree.version == version);
        match (has(Version::V2), has(Version::V1)) {
            (true, false) => Layout::Unified,
            (true, true) => Layout::Hybrid,
            (false, _) => Layout::Legacy,
        }
    }

    /// The controllers of all hierarchies. Freezing is a part of v2 itself, so
    /// [`Controller::Freezer`] is among them wherever v2 is mounted.
    pub fn controllers(&self) -> Controllers {
        self.trees.iter().fold(Controllers::EMPTY, |all, tree| {
            let implicit = match tree.version {
                Version::V2 => [Controller::Freezer, Controller::PerfEvent]
                    .into_iter()
                    .collect(),
                Version::V1 => Controllers::EMPTY,
            };
            all.union(tree.controllers).union(implicit)
        })
    }

    /// The interface through which a controller is used here; nothing when it is absent.
    pub fn version_of(&self, controller: Controller) -> Option<Version> {
        self.tree_of(controller)
            .map(|index| self.trees[index].version)
    }

    /// Where the hierarchy with a controller is mounted.
    pub fn mount_point_of(&self, controller: Controller) -> Option<&Path> {
        self.tree_of(controller)
            .map(|index| self.trees[index].root.path())
    }

    /// Where v2 is mounted.
    pub fn unified_mount_point(&self) -> Option<&Path> {
        self.trees
            .iter()
            .find(|tree| tree.version == Version::V2)
            .map(|tree| tree.root.path())
    }

    /// The hierarchy that has a controller.
    pub(crate) fn tree_of(&self, controller: Controller) -> Option<usize> {
        let explicit = |tree: &Tree| tree.controllers.contains(controller);
        let implicit = |tree: &Tree| {
            tree.version == Version::V2
                && matches!(controller, Controller::Freezer | Controller::PerfEvent)
        };
        let position = |wanted: &dyn Fn(&Tree) -> bool| self.trees.iter().position(wanted);
        match controller {
            // v2's freezer works on processes alone, so it is there beside v1's; and better.
            Controller::Freezer => position(&implicit).or_else(|| position(&explicit)),
            _ => position(&explicit).or_else(|| position(&implicit)),
        }
    }

    /// The root group that is visible here.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the process has no more file descriptors.
    pub fn root(&self) -> Result<Cgroup> {
        let dirs = self
            .trees
            .iter()
            .map(|tree| tree.root.try_clone().map(Some))
            .collect::<Result<_>>()?;
        Ok(Cgroup::from_dirs(self.clone(), PathBuf::new(), dirs))
    }

    /// The group of this process. Its place may differ from hierarchy to hierarchy.
    ///
    /// # Errors
    ///
    /// As [`Hierarchy::of_process`].
    pub fn own(&self) -> Result<Cgroup> {
        self.of(Path::new("/proc/self/cgroup"))
    }

    /// The group of a process. Its place may differ from hierarchy to hierarchy; a hierarchy in
    /// which it is not visible from here is left out.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcess`]; [`Error::NotFound`] when the group is nowhere visible.
    pub fn of_process(&self, pid: u32) -> Result<Cgroup> {
        match self.of(&PathBuf::from(format!("/proc/{pid}/cgroup"))) {
            Err(Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound
                    || Errno::from_io_error(&source) == Some(Errno::SRCH) =>
            {
                Err(Error::NoSuchProcess { pid })
            }
            other => other,
        }
    }

    fn of(&self, proc_cgroup: &Path) -> Result<Cgroup> {
        let groups = read_proc(proc_cgroup, Memberships::from_bytes)?;
        let mut shown = None;
        let mut dirs = Vec::with_capacity(self.trees.len());
        for tree in self.trees.iter() {
            let relative = groups
                .find(tree.version, tree.controllers)
                .and_then(|path| path.strip_prefix(&tree.mounted).ok())
                // Of an outside group (`/..`) nothing can be opened from here.
                .filter(|path| path.components().all(|c| c.as_os_str() != ".."));
            let Some(relative) = relative else {
                dirs.push(None);
                continue;
            };
            shown.get_or_insert_with(|| relative.to_owned());
            dirs.push(if relative.as_os_str().is_empty() {
                Some(tree.root.try_clone()?)
            } else {
                match tree.root.open_below(relative) {
                    Ok(dir) => Some(dir),
                    // The last for a name of full length with ` (deleted)` after it.
                    Err(Errno::NOENT | Errno::ACCESS | Errno::NAMETOOLONG) => None,
                    Err(errno) => {
                        let name = relative.to_string_lossy();
                        return Err(tree.root.error("open", &name, errno));
                    }
                }
            });
        }
        if dirs.iter().all(Option::is_none) {
            return Err(Error::NotFound {
                group: groups
                    .0
                    .first()
                    .map_or_else(PathBuf::new, |g| g.path.clone()),
            });
        }
        let shown = shown.unwrap_or_default();
        Ok(Cgroup::from_dirs(self.clone(), shown, dirs))
    }

    /// Creates a group in every hierarchy, below the visible root, and its parents where they
    /// do not exist. Fails, and leaves nothing, when the group itself exists.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::create`].
    pub fn create(&self, path: impl AsRef<Path>) -> Result<Cgroup> {
        self.root()?.create(path)
    }

    /// Opens a group below the visible root.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::open`].
    pub fn open(&self, path: impl AsRef<Path>) -> Result<Cgroup> {
        self.root()?.open(path)
    }
}

/// Opens what `mountinfo` promises, unless something else has been mounted over it.
fn open_tree(mount: &MountEntry) -> Option<Tree> {
    let root = Dir::open(&mount.mount_point).ok()?;
    // The width of the field differs between architectures.
    #[allow(clippy::cast_lossless, clippy::unnecessary_cast)]
    let kind = rustix::fs::fstatfs(&root).ok()?.f_type as i64;
    let controllers = match mount.version {
        Version::V1 if kind == CGROUP_SUPER_MAGIC => mount.controllers,
        Version::V2 if kind == CGROUP2_SUPER_MAGIC => {
            let names = root.read("cgroup.controllers").ok()?;
            Controllers::parse_known(&names, char::is_whitespace)
        }
        _ => return None,
    };
    if mount.version == Version::V1 && controllers.is_empty() {
        return None;
    }
    let has = |controller| mount.version == Version::V1 && controllers.contains(controller);
    // Linux 5.11 made accounting for children the only behaviour. Before, what is above a group
    // decides for it too.
    let accounts = || matches!(root.read("memory.use_hierarchy").as_deref(), Ok("1\n"));
    let preparation = Preparation {
        accounting: has(Controller::Memory) && !accounts(),
        sets: has(Controller::Cpuset),
    };
    Some(Tree {
        preparation,
        version: mount.version,
        controllers,
        mounted: mount.root.clone(),
        root,
    })
}

fn read_proc<T>(path: &Path, parse: fn(&[u8]) -> Result<T, ParseError>) -> Result<T> {
    let mut bytes = Vec::new();
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    openat(CWD, path, flags, Mode::empty())
        .and_then(|file| read_all(file.as_fd(), &mut bytes))
        .map_err(|errno| Error::Io {
            operation: "read",
            path: path.to_owned(),
            source: errno.into(),
        })?;
    parse(&bytes).map_err(|source| Error::Parse {
        path: path.to_owned(),
        source,
    })
}
