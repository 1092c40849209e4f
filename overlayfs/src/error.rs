//! What can go wrong, with the reason and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The part that a directory plays in an overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Role {
    /// A read-only layer.
    Lower,
    /// A layer that only holds file contents (`datadir+`, Linux 6.8).
    DataOnly,
    /// The writable layer.
    Upper,
    /// The kernel's scratch directory beside the upper layer.
    Work,
    /// Where the overlay is attached.
    Target,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Lower => "lower layer",
            Role::DataOnly => "data-only layer",
            Role::Upper => "upper layer",
            Role::Work => "work directory",
            Role::Target => "mount point",
        })
    }
}

/// The system call of a mount that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// `fsopen("overlay")`
    Open,
    /// `fsconfig`, for the option that is named
    Configure(&'static str),
    /// `fsconfig(FSCONFIG_CMD_CREATE)`
    Create,
    /// `fsmount`
    Mount,
    /// `mount_setattr`
    Attributes,
    /// `move_mount` onto the target
    Attach,
    /// `open_tree`, which takes a mount out of a namespace
    Detach,
    /// `unshare`, for a private mount namespace
    Unshare,
    /// the classic `mount`
    Classic,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Open => f.write_str("fsopen(\"overlay\")"),
            Step::Configure(option) => write!(f, "fsconfig(\"{option}\")"),
            Step::Create => f.write_str("fsconfig(FSCONFIG_CMD_CREATE)"),
            Step::Mount => f.write_str("fsmount"),
            Step::Attributes => f.write_str("mount_setattr"),
            Step::Attach => f.write_str("move_mount"),
            Step::Detach => f.write_str("open_tree(OPEN_TREE_CLONE)"),
            Step::Unshare => f.write_str("unshare(CLONE_FS|CLONE_NEWNS)"),
            Step::Classic => f.write_str("mount(\"overlay\")"),
        }
    }
}

/// Everything that this crate refuses or fails at.
///
/// The kernel answers nearly every mistake in an overlay with `EINVAL`. The variants here
/// tell them apart: the directories are examined when a mount fails, and what the kernel
/// wrote to the log of the mount's configuration is passed on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A directory of the overlay cannot be opened.
    #[error("cannot open the {role} {}: {source}; it must be an existing directory that the caller may search", path.display())]
    OpenDirectory {
        /// What the directory was meant for.
        role: Role,
        /// The directory as it was given.
        path: PathBuf,
        /// Why it cannot be opened.
        source: io::Error,
    },

    /// There are not enough layers for the kernel to make an overlay of.
    #[error(
        "an overlay without an upper layer needs at least two lower layers, but there are {lowers}; add an upper layer, or bind-mount the one directory"
    )]
    TooFewLayers {
        /// How many lower layers there are.
        lowers: usize,
    },

    /// There are more layers than the kernel takes.
    #[error(
        "{lowers} lower layers are more than the {max} that the kernel takes; squash some of them"
    )]
    TooManyLayers {
        /// How many there are, data-only layers included.
        lowers: usize,
        /// How many there may be.
        max: usize,
    },

    /// The layers do not fit into the one page that kernels before 6.5 read.
    #[error(
        "{lowers} lower layers need {bytes} bytes of mount options, and this kernel reads {max}; squash some layers, or use Linux 6.5"
    )]
    OptionsTooLong {
        /// How many lower layers there are.
        lowers: usize,
        /// What their shortest names need.
        bytes: usize,
        /// What the kernel reads.
        max: usize,
    },

    /// Data-only layers below nothing.
    #[error(
        "data-only layers need at least one lower layer above them, because nothing in them is visible by itself"
    )]
    OnlyDataLayers,

    /// One of upper and work is, or contains, the other.
    #[error("the upper layer {} and the work directory {} overlap; make the work directory a sibling of the upper layer", upper.display(), work.display())]
    UpperAndWorkOverlap {
        /// The upper layer.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },

    /// Upper and work are on different filesystems or mounts.
    #[error("the upper layer {} and the work directory {} are not on the same mount of the same filesystem; put the work directory beside the upper layer", upper.display(), work.display())]
    DifferentFilesystems {
        /// The upper layer.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },

    /// A layer stands in another one, or is given twice.
    #[error("the {inner_role} {} lies in the {outer_role} {} (or is the same directory); every layer needs a tree of its own", inner.display(), outer.display())]
    LayersOverlap {
        /// The role of the directory that is inside.
        inner_role: Role,
        /// The directory that is inside.
        inner: PathBuf,
        /// The role of the directory that is around it.
        outer_role: Role,
        /// The directory that is around it.
        outer: PathBuf,
    },

    /// The work directory holds something that is not the kernel's.
    #[error("the work directory {} is not empty: it holds {}, which overlayfs did not make; give it an empty directory", work.display(), entry.display())]
    WorkNotEmpty {
        /// The work directory.
        work: PathBuf,
        /// The first foreign entry in it.
        entry: PathBuf,
    },

    /// Another overlay that is mounted somewhere uses the same upper layer or work directory.
    #[error("the upper layer {} or its work directory {} is used by an overlay that is mounted; unmount that one first, or give each mount its own pair", upper.display(), work.display())]
    UpperInUse {
        /// The upper layer.
        upper: PathBuf,
        /// The work directory.
        work: PathBuf,
    },

    /// The last mount over this upper layer was volatile and not unmounted cleanly.
    #[error("the upper layer of {} was last mounted without syncing and not unmounted cleanly, so its contents may be torn; discard upper and work, or, if no crash came between, remove {}/work/incompat/volatile", work.display(), work.display())]
    VolatileLeftover {
        /// The work directory.
        work: PathBuf,
    },

    /// The filesystem of the upper layer cannot hold one.
    #[error("the filesystem of {} cannot hold an upper layer: it has no {missing}; use ext4, xfs, btrfs or tmpfs", upper.display())]
    UnsuitableUpper {
        /// The upper layer.
        upper: PathBuf,
        /// What the filesystem does not have.
        missing: &'static str,
    },

    /// The filesystem of the upper layer is mounted read-only.
    #[error("the upper layer {} is on a read-only mount; put upper and work on a writable filesystem", upper.display())]
    ReadOnlyUpper {
        /// The upper layer.
        upper: PathBuf,
    },

    /// A filesystem that cannot be a layer at all.
    #[error("the {role} {} is on a filesystem that overlayfs refuses as a layer{}; copy it to an ordinary filesystem", path.display(), LogSuffix(log))]
    UnsuitableLayer {
        /// Which layer it is.
        role: Role,
        /// The layer.
        path: PathBuf,
        /// The kernel's own words, if it left any in the log of the configuration.
        log: Vec<String>,
    },

    /// Overlays over overlays, deeper than the kernel allows.
    #[error("the layers are on overlays that are themselves stacked as deep as the kernel allows (two); use the layers of those overlays instead (deepest: {})", path.display())]
    TooDeeplyStacked {
        /// A layer that is on a stacked filesystem.
        path: PathBuf,
    },

    /// Two options exclude each other.
    #[error("the options {first} and {second} exclude each other; drop one of them")]
    ConflictingOptions {
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
    },

    /// The running kernel does not have a feature.
    #[error(
        "this kernel's overlayfs does not have {feature} (Linux {since}); leave it out, or use a newer kernel"
    )]
    Unsupported {
        /// The feature that was asked for.
        feature: &'static str,
        /// The version that brought it.
        since: &'static str,
    },

    /// The caller may not mount.
    #[error(
        "{step} is not permitted; mounting an overlay needs CAP_SYS_ADMIN in the user namespace that owns the mount namespace"
    )]
    NotPermitted {
        /// The step that was refused.
        step: Step,
        /// What the kernel said.
        source: io::Error,
    },

    /// The kernel refused a mount, and the examination of the directories shows no reason.
    #[error("{step} failed: {source}{}", LogSuffix(log))]
    Mount {
        /// The step that failed.
        step: Step,
        /// The kernel's own words, if it left any in the log of the configuration.
        log: Vec<String>,
        /// What the kernel said.
        source: io::Error,
    },

    /// A mark in a layer whose value makes no sense.
    #[error("the overlay.{mark} attribute of {} has {source}; the layer is damaged, or was not made by overlayfs", path.display())]
    BadMark {
        /// The entry that has the mark.
        path: PathBuf,
        /// The last part of the attribute's name.
        mark: &'static str,
        /// What is wrong with it.
        source: crate::marks::BadMark,
    },

    /// A mark that the caller did not want to be followed.
    #[error("{} has an overlay.{mark} attribute, and following those is switched off; allow it, or copy the merged tree instead of the layer", path.display())]
    Refused {
        /// The entry that has the mark.
        path: PathBuf,
        /// The last part of the attribute's name.
        mark: &'static str,
    },

    /// A redirect that the layers below do not agree about.
    #[error("{} redirects to /{}, which is not what the lower layers have there; the redirect cannot be told as a rename", path.display(), from.display())]
    AmbiguousRedirect {
        /// The entry with the redirect.
        path: PathBuf,
        /// Where it points.
        from: PathBuf,
    },

    /// Another process writes to the same target.
    #[error("another process is writing {}; wait until it is done", target.display())]
    TargetBusy {
        /// The target.
        target: PathBuf,
    },

    /// A commit onto a layer that is not directly below the upper one.
    #[error("{} is not the topmost lower layer, which is {}; squash the layers above it first", path.display(), top.display())]
    NotTheTopLayer {
        /// The directory that was given.
        path: PathBuf,
        /// The layer directly below the upper one.
        top: PathBuf,
    },

    /// A hard link, copied up with `index=on`, one of whose names is below the layer that is
    /// committed onto.
    #[error("/{} is a name of a file that was changed under another name, and it is in a layer further down; squash the lower layers first, or flatten", path.display())]
    SharedWithLowerLayer {
        /// The name.
        path: PathBuf,
    },

    /// A file that was copied up with `index=on`, so that names below may share it.
    #[error("{} is a copy of a file with several names, made with index=on; give the work directory too, whose index tells which names they are", path.display())]
    NeedsIndex {
        /// The copy in the upper layer.
        path: PathBuf,
    },

    /// The contents of a metacopy are in none of the layers.
    #[error("{} holds metadata only, and its contents are in none of the given layers; give the lower layers that it was made over", path.display())]
    MissingContents {
        /// The file.
        path: PathBuf,
    },

    /// Something is mounted inside a layer. The kernel's overlay would see what is beneath.
    #[error("{} is on another mount than its layer; unmount what is mounted inside of the layer", path.display())]
    MountInLayer {
        /// The directory in the layer.
        path: PathBuf,
    },

    /// `trusted.` attributes were asked for by a process that the kernel does not show them to.
    #[error(
        "marks in trusted.overlay.* cannot be read without CAP_SYS_ADMIN in the initial user namespace; run as root, or use layers with user.overlay.* marks"
    )]
    TrustedMarks,

    /// An operation on a file or directory failed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// Whether it is the mount API itself that is missing, rather than something in the layers.
    pub(crate) fn lacks_mount_api(&self) -> bool {
        let missing = Some(rustix::io::Errno::NOSYS.raw_os_error());
        match self {
            Error::Mount {
                step: Step::Open | Step::Detach,
                source,
                ..
            } => source.raw_os_error() == missing,
            Error::Mount {
                step: Step::Unshare,
                ..
            }
            | Error::NotPermitted {
                step: Step::Unshare,
                ..
            } => true,
            _ => false,
        }
    }

    pub(crate) fn io(
        operation: &'static str,
        path: impl Into<PathBuf>,
        source: impl Into<io::Error>,
    ) -> Self {
        Error::Io {
            operation,
            path: path.into(),
            source: source.into(),
        }
    }
}

struct LogSuffix<'a>(&'a [String]);

impl fmt::Display for LogSuffix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("; the kernel's log (dmesg) may say why");
        }
        write!(f, "; the kernel says: {}", self.0.join("; "))
    }
}
