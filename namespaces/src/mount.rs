//! Mounts as data.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

bitflags::bitflags! {
    /// Attributes of a mount, see `mount_setattr(2)` and `mount(8)`.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct MountAttributes: u64 {
        /// Nothing can be written through the mount.
        #[doc(alias = "MOUNT_ATTR_RDONLY")]
        const READ_ONLY = 0x01;
        /// Set-user-id bits and file capabilities do not count.
        #[doc(alias = "MOUNT_ATTR_NOSUID")]
        const NO_SUID = 0x02;
        /// Device nodes cannot be opened.
        #[doc(alias = "MOUNT_ATTR_NODEV")]
        const NO_DEV = 0x04;
        /// Programs cannot be executed.
        #[doc(alias = "MOUNT_ATTR_NOEXEC")]
        const NO_EXEC = 0x08;
        /// Access times are not updated.
        #[doc(alias = "MOUNT_ATTR_NOATIME")]
        const NO_ATIME = 0x10;
        /// Access times are always updated.
        #[doc(alias = "MOUNT_ATTR_STRICTATIME")]
        const STRICT_ATIME = 0x20;
        /// Access times of directories are not updated.
        #[doc(alias = "MOUNT_ATTR_NODIRATIME")]
        const NO_DIR_ATIME = 0x80;
        /// Symbolic links are not followed. Linux 5.10.
        #[doc(alias = "MOUNT_ATTR_NOSYMFOLLOW")]
        const NO_SYMLINK_FOLLOW = 0x0020_0000;
    }
}

/// How mounts and unmounts propagate between peers, see `mount_namespaces(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Propagation {
    /// Neither receives nor sends. The default of a new root.
    #[default]
    #[doc(alias = "MS_PRIVATE")]
    Private,
    /// Receives and sends.
    #[doc(alias = "MS_SHARED")]
    Shared,
    /// Receives only.
    #[doc(alias = "MS_SLAVE")]
    Slave,
    /// Private, and cannot be bind-mounted.
    #[doc(alias = "MS_UNBINDABLE")]
    Unbindable,
}

/// What a [`Mount`] puts at its target.
#[derive(Debug)]
pub(crate) enum Source {
    /// A file system made for it: `proc`, `tmpfs`, …
    Filesystem {
        kind: OsString,
        options: Vec<(OsString, Option<OsString>)>,
        /// The `source` that mountinfo shows.
        name: OsString,
        /// What to do where the kernel refuses with EPERM.
        or_bind: Option<PathBuf>,
        /// Whether what is at the target is copied into it.
        copy_up: bool,
    },
    Bind {
        path: PathBuf,
        recursive: bool,
    },
    Detached(OwnedFd),
    /// What is mounted at the target already.
    Mounted {
        options: Vec<(OsString, Option<OsString>)>,
    },
    /// The minimal /dev.
    Dev {
        options: Vec<(OsString, Option<OsString>)>,
    },
}

/// One mount inside the new root, described as data.
///
/// The target is resolved *inside the root* (`openat2(2)` with `RESOLVE_IN_ROOT`), whatever links
/// an image has there; missing directories on the way are made. Sources of bind mounts are paths
/// outside, as the caller sees them.
#[derive(Debug)]
pub struct Mount {
    pub(crate) source: Source,
    pub(crate) target: PathBuf,
    /// Of the topmost mount, set and cleared after those of the tree.
    pub(crate) attributes: MountAttributes,
    pub(crate) cleared: MountAttributes,
    /// Of every mount of the tree.
    pub(crate) tree_attributes: MountAttributes,
    pub(crate) tree_cleared: MountAttributes,
    pub(crate) idmap: Option<(OwnedFd, bool)>,
    pub(crate) read_only_when_done: bool,
    pub(crate) propagation: Option<(Propagation, bool)>,
    pub(crate) create_target: bool,
}

impl Mount {
    fn new(source: Source, target: &Path) -> Self {
        Self {
            source,
            target: target.to_owned(),
            attributes: MountAttributes::empty(),
            cleared: MountAttributes::empty(),
            tree_attributes: MountAttributes::empty(),
            tree_cleared: MountAttributes::empty(),
            idmap: None,
            read_only_when_done: false,
            propagation: None,
            create_target: true,
        }
    }

    /// A new instance of the file system `kind`.
    #[doc(alias = "fsopen")]
    pub fn filesystem(kind: impl Into<OsString>, target: impl AsRef<Path>) -> Self {
        let kind = kind.into();
        Self::new(
            Source::Filesystem {
                name: kind.clone(),
                kind,
                options: Vec::new(),
                or_bind: None,
                copy_up: false,
            },
            target.as_ref(),
        )
    }

    /// `/proc` of the new pid namespace: nosuid, nodev, noexec. See `proc(5)`.
    pub fn proc(target: impl AsRef<Path>) -> Self {
        Self::filesystem("proc", target).attributes(
            MountAttributes::NO_SUID | MountAttributes::NO_DEV | MountAttributes::NO_EXEC,
        )
    }

    /// An empty file system in memory: nosuid, nodev. Limit it with `.option("size", "64m")`. See
    /// `tmpfs(5)`.
    pub fn tmpfs(target: impl AsRef<Path>) -> Self {
        Self::filesystem("tmpfs", target)
            .attributes(MountAttributes::NO_SUID | MountAttributes::NO_DEV)
    }

    /// A private set of pseudo-terminals: `newinstance`, mode 0620, ptmx open to all; nosuid,
    /// noexec. Group 5 (tty) owns the terminals where that group is mapped.
    pub fn devpts(target: impl AsRef<Path>) -> Self {
        Self::filesystem("devpts", target)
            .flag("newinstance")
            .option("ptmxmode", "0666")
            .option("mode", "0620")
            .attributes(MountAttributes::NO_SUID | MountAttributes::NO_EXEC)
    }

    /// `/sys`, read-only: nosuid, nodev, noexec. Where the kernel refuses it, which it does in a
    /// user namespace that does not own the network namespace, the caller's `/sys` is bound
    /// recursively instead.
    pub fn sysfs(target: impl AsRef<Path>) -> Self {
        let mut mount = Self::filesystem("sysfs", target).attributes(
            MountAttributes::READ_ONLY
                | MountAttributes::NO_SUID
                | MountAttributes::NO_DEV
                | MountAttributes::NO_EXEC,
        );
        if let Source::Filesystem { or_bind, .. } = &mut mount.source {
            *or_bind = Some(PathBuf::from("/sys"));
        }
        mount
    }

    /// POSIX message queues of the ipc namespace, `mq_overview(7)`: nosuid, nodev, noexec.
    pub fn mqueue(target: impl AsRef<Path>) -> Self {
        Self::filesystem("mqueue", target).attributes(
            MountAttributes::NO_SUID | MountAttributes::NO_DEV | MountAttributes::NO_EXEC,
        )
    }

    /// The unified control group hierarchy (cgroup v2): nosuid, nodev, noexec.
    pub fn cgroup2(target: impl AsRef<Path>) -> Self {
        Self::filesystem("cgroup2", target).attributes(
            MountAttributes::NO_SUID | MountAttributes::NO_DEV | MountAttributes::NO_EXEC,
        )
    }

    /// A minimal `/dev`: a tmpfs with `null zero full random urandom tty` (nodes where that is
    /// allowed, else binds of the caller's), and the links `fd stdin stdout stderr ptmx`. Add
    /// [`devpts`](Self::devpts) on `/dev/pts` and a [`tmpfs`](Self::tmpfs) on `/dev/shm` as
    /// wanted. Mode 0755 and at most 64 MiB, unless [options](Self::option) say otherwise.
    #[doc(alias = "mknod")]
    pub fn dev(target: impl AsRef<Path>) -> Self {
        let options = Vec::new();
        Self::new(Source::Dev { options }, target.as_ref())
            .attributes(MountAttributes::NO_SUID | MountAttributes::STRICT_ATIME)
    }

    /// The file or directory `source` of the caller, with everything mounted below it.
    #[doc(alias = "MS_BIND")]
    #[doc(alias = "open_tree")]
    pub fn bind(source: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        Self::new(
            Source::Bind {
                path: source.as_ref().to_owned(),
                recursive: true,
            },
            target.as_ref(),
        )
    }

    /// The file or directory `source` of the caller, without what is mounted below it.
    pub fn bind_single(source: impl AsRef<Path>, target: impl AsRef<Path>) -> Self {
        Self::new(
            Source::Bind {
                path: source.as_ref().to_owned(),
                recursive: false,
            },
            target.as_ref(),
        )
    }

    /// A detached mount: an fd from `fsmount(2)` or `open_tree(2)` with `OPEN_TREE_CLONE`, for
    /// instance an overlay. It is moved, so it can be used for one process only.
    ///
    /// # Errors
    ///
    /// When the fd cannot be duplicated.
    #[doc(alias = "move_mount")]
    pub fn detached(mount: impl AsFd, target: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::new(
            Source::Detached(mount.as_fd().try_clone_to_owned()?),
            target.as_ref(),
        ))
    }

    /// Changes what is mounted at the target already: its attributes and propagation, and with
    /// [options](Self::option) those of the file system itself, which needs the new mount API.
    /// Fails with `EINVAL` where nothing is mounted.
    #[doc(alias = "MS_REMOUNT")]
    #[doc(alias = "fspick")]
    pub fn mounted(target: impl AsRef<Path>) -> Self {
        let options = Vec::new();
        Self::new(Source::Mounted { options }, target.as_ref()).create_target(false)
    }

    /// What a container's programs expect: `/proc`, `/dev` with `pts`, `shm` and `mqueue`, and a
    /// read-only `/sys`.
    pub fn standard() -> Vec<Self> {
        vec![
            Self::proc("/proc"),
            Self::dev("/dev"),
            Self::devpts("/dev/pts"),
            Self::tmpfs("/dev/shm")
                .option("mode", "1777")
                .option("size", "65536k")
                .with(MountAttributes::NO_EXEC),
            Self::mqueue("/dev/mqueue"),
            Self::sysfs("/sys"),
        ]
    }

    /// Replaces the attributes to be set by these, for the topmost mount; others stay as they are.
    pub fn attributes(mut self, attributes: MountAttributes) -> Self {
        self.attributes = attributes;
        self.tree_attributes = MountAttributes::empty();
        self
    }

    /// Replaces the attributes to be set by these, for every mount of a recursive bind or a
    /// detached tree. Linux 5.12.
    #[doc(alias = "mount_setattr")]
    pub fn attributes_recursive(mut self, attributes: MountAttributes) -> Self {
        self.attributes = MountAttributes::empty();
        self.tree_attributes = attributes;
        self
    }

    /// Adds attributes, for the topmost mount.
    pub fn with(mut self, attributes: MountAttributes) -> Self {
        self.attributes |= attributes;
        self.cleared -= attributes;
        self
    }

    /// Adds attributes for every mount of a recursive bind or a detached tree. What is said of the
    /// topmost mount alone, by [`with`](Self::with) and [`without`](Self::without), counts more.
    /// Linux 5.12.
    pub fn with_recursive(mut self, attributes: MountAttributes) -> Self {
        self.tree_attributes |= attributes;
        self.tree_cleared -= attributes;
        self
    }

    /// Clears attributes of a bind or a detached mount. In a user namespace those that the outer
    /// one set cannot be cleared.
    pub fn without(mut self, attributes: MountAttributes) -> Self {
        self.cleared |= attributes;
        self.attributes -= attributes;
        self
    }

    /// Clears attributes of every mount of a recursive bind or a detached tree. Linux 5.12.
    pub fn without_recursive(mut self, attributes: MountAttributes) -> Self {
        self.tree_cleared |= attributes;
        self.tree_attributes -= attributes;
        self
    }

    /// Shifts the owners of files on a bind or a detached mount by the map of a user namespace:
    /// an fd of `/proc/PID/ns/user`, for instance of
    /// [`user_namespace`](crate::user_namespace). The mount must not be idmapped already.
    /// Linux 5.12, and support of the file system.
    ///
    /// # Errors
    ///
    /// When the fd cannot be duplicated.
    #[doc(alias = "MOUNT_ATTR_IDMAP")]
    pub fn idmapped(mut self, user_namespace: impl AsFd) -> io::Result<Self> {
        self.idmap = Some((user_namespace.as_fd().try_clone_to_owned()?, false));
        Ok(self)
    }

    /// As [`idmapped`](Self::idmapped), for every mount of a recursive bind or a detached tree.
    ///
    /// # Errors
    ///
    /// When the fd cannot be duplicated.
    pub fn idmapped_recursive(mut self, user_namespace: impl AsFd) -> io::Result<Self> {
        self.idmap = Some((user_namespace.as_fd().try_clone_to_owned()?, true));
        Ok(self)
    }

    /// Makes it read-only; for a recursive bind everything below too, which needs Linux 5.12
    /// where something is mounted below.
    pub fn read_only(self) -> Self {
        if let Source::Bind {
            recursive: true, ..
        } = self.source
        {
            self.with_recursive(MountAttributes::READ_ONLY)
        } else {
            self.with(MountAttributes::READ_ONLY)
        }
    }

    /// Makes it read-only when every mount, device and link of the command has been made, which
    /// may be within it: for `/dev`, or the tmpfs that holds the control groups of v1.
    pub fn read_only_when_done(mut self) -> Self {
        self.read_only_when_done = true;
        self
    }

    /// Whether what is in the target directory is copied into the new file system, with owners,
    /// modes and times, before it covers the directory. The file system gets owner and mode of the
    /// directory, too, unless a `mode` is among its options. Off by default; without meaning for
    /// binds and detached mounts.
    ///
    /// In a user namespace owners without a number inside become root's, and device nodes, which
    /// cannot be made there, are left out; so are sockets. Directories may be 64 deep.
    #[doc(alias = "tmpcopyup")]
    pub fn copy_up(mut self, copy: bool) -> Self {
        if let Source::Filesystem { copy_up, .. } = &mut self.source {
            *copy_up = copy;
        }
        self
    }

    /// An option of the file system with a value, such as `size=64m` of tmpfs or `hidepid=2` of
    /// proc. Without meaning for binds and detached mounts.
    #[doc(alias = "fsconfig")]
    pub fn option(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        if let Source::Filesystem { options, .. }
        | Source::Dev { options }
        | Source::Mounted { options } = &mut self.source
        {
            options.push((key.into(), Some(value.into())));
        }
        self
    }

    /// An option of the file system without a value.
    pub fn flag(mut self, key: impl Into<OsString>) -> Self {
        if let Source::Filesystem { options, .. }
        | Source::Dev { options }
        | Source::Mounted { options } = &mut self.source
        {
            options.push((key.into(), None));
        }
        self
    }

    /// The source that `/proc/self/mountinfo` shows for a file system; its kind by default.
    pub fn source_name(mut self, source: impl Into<OsString>) -> Self {
        if let Source::Filesystem { name, .. } = &mut self.source {
            *name = source.into();
        }
        self
    }

    /// Sets the propagation of the mount.
    ///
    /// With [`Slave`](Propagation::Slave) or [`Shared`](Propagation::Shared) a bind receives what is
    /// mounted outside later if its source does and
    /// [`root_propagation`](crate::Command::root_propagation) is one of these two as well; it never
    /// sends anything out.
    pub fn propagation(mut self, propagation: Propagation) -> Self {
        self.propagation = Some((propagation, false));
        self
    }

    /// Sets the propagation of the mount and of everything below it.
    pub fn propagation_recursive(mut self, propagation: Propagation) -> Self {
        self.propagation = Some((propagation, true));
        self
    }

    /// Whether a missing target is made: a directory, or for a bind of a file an empty file.
    /// On by default.
    pub fn create_target(mut self, create: bool) -> Self {
        self.create_target = create;
        self
    }

    /// Where it goes inside the root.
    pub fn target(&self) -> &Path {
        &self.target
    }
}

/// What becomes `/`.
#[derive(Debug)]
pub struct Root(pub(crate) RootKind);

#[derive(Debug)]
pub(crate) enum RootKind {
    Path(PathBuf),
    Detached(OwnedFd),
    Shared(PathBuf),
}

impl Root {
    /// A directory, bound recursively.
    pub fn path(path: impl Into<PathBuf>) -> Self {
        Self(RootKind::Path(path.into()))
    }

    /// A detached mount: an fd from `fsmount(2)` or `open_tree(2)` with `OPEN_TREE_CLONE`. It is
    /// moved, so it can be used for one process only.
    pub fn detached(mount: OwnedFd) -> Self {
        Self(RootKind::Detached(mount))
    }

    /// A directory as it is, for a process without a mount namespace of its own: mounts in it are
    /// everybody's and stay when the process has ended, and `chroot(2)` alone keeps the process in
    /// it, which holds nobody who may chroot himself. To be read-only it must be a mount.
    #[doc(alias = "chroot")]
    pub fn shared(path: impl Into<PathBuf>) -> Self {
        Self(RootKind::Shared(path.into()))
    }

    pub(crate) fn is_shared(&self) -> bool {
        matches!(self.0, RootKind::Shared(_))
    }
}

impl From<OwnedFd> for Root {
    fn from(mount: OwnedFd) -> Self {
        Self::detached(mount)
    }
}

impl From<PathBuf> for Root {
    fn from(path: PathBuf) -> Self {
        Self::path(path)
    }
}

impl From<OsString> for Root {
    fn from(path: OsString) -> Self {
        Self::path(path)
    }
}

impl From<&Path> for Root {
    fn from(path: &Path) -> Self {
        Self::path(path)
    }
}

impl From<&str> for Root {
    fn from(path: &str) -> Self {
        Self::path(path)
    }
}
