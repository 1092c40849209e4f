//! Attributes of a process beyond users and limits.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// How the CPU is shared with other processes, see `sched(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "sched_setattr")]
pub enum Scheduler {
    /// The default: time sharing.
    #[doc(alias = "SCHED_OTHER")]
    Normal,
    /// Time sharing for work without a user waiting.
    #[doc(alias = "SCHED_BATCH")]
    Batch,
    /// Only when nothing else wants to run.
    #[doc(alias = "SCHED_IDLE")]
    Idle,
    /// Real time, until it blocks; priority 1 to 99.
    #[doc(alias = "SCHED_FIFO")]
    Fifo {
        /// 1 to 99, the higher the sooner.
        priority: u32,
    },
    /// Real time, in turns with its equals; priority 1 to 99.
    #[doc(alias = "SCHED_RR")]
    RoundRobin {
        /// 1 to 99, the higher the sooner.
        priority: u32,
    },
    /// Deadline scheduling; nanoseconds.
    #[doc(alias = "SCHED_DEADLINE")]
    Deadline {
        /// CPU time in each period.
        runtime: u64,
        /// From the start of a period until when it has to be given.
        deadline: u64,
        /// Length of a period.
        period: u64,
    },
}

/// The class of I/O priority, see `ioprio_set(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
#[doc(alias = "ioprio_set")]
pub enum IoPriority {
    /// Before all others; level 0 (first) to 7.
    Realtime(u8),
    /// The default class; level 0 (first) to 7.
    BestEffort(u8),
    /// When nobody else wants the disk.
    Idle,
}

impl IoPriority {
    /// The number that the kernel takes, or `None` for a level beyond 7.
    pub(crate) fn to_kernel(self) -> Option<u32> {
        let (class, level) = match self {
            Self::Realtime(level) => (1, level),
            Self::BestEffort(level) => (2, level),
            Self::Idle => (3, 0),
        };
        (level <= 7).then(|| class << 13 | u32::from(level))
    }
}

/// What a device node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// A device node to be made inside the root, see `mknod(2)`.
///
/// In a user namespace, where nodes cannot be made, the caller's file of the same path is bound
/// instead, once it is certain to be that device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[doc(alias = "mknod")]
pub struct Device {
    pub(crate) path: PathBuf,
    pub(crate) kind: DeviceKind,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
}

impl Device {
    /// A device with mode 0666, owned by root.
    pub fn new(path: impl AsRef<Path>, kind: DeviceKind, major: u32, minor: u32) -> Self {
        Self {
            path: path.as_ref().to_owned(),
            kind,
            major,
            minor,
            mode: 0o666,
            owner: None,
        }
    }

    /// Its permission bits.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Its user and group, as seen inside.
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Where the label of a security module goes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SecurityLabel {
    /// A SELinux context, such as `system_u:system_r:container_t:s0`.
    Selinux(OsString),
    /// An AppArmor profile.
    Apparmor(OsString),
}

/// How memory is spread over NUMA nodes, see `set_mempolicy(2)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// `MPOL_…`: 0 default, 1 preferred, 2 bind, 3 interleave, 4 local, 5 preferred many,
    /// 6 weighted interleave.
    pub mode: u32,
    /// `MPOL_F_…`.
    pub flags: u32,
    /// The nodes, by number; up to 1023.
    pub nodes: Vec<u16>,
}

/// An offset of a clock in a time namespace, see `time_namespaces(7)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeOffset {
    /// Whole seconds; negative is behind.
    pub seconds: i64,
    /// Nanoseconds to be added, up to 999,999,999.
    pub nanoseconds: u32,
}
