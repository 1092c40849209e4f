//! The eight kinds of namespace.

use std::fmt;

/// A kind of Linux namespace, see [namespaces(7)].
///
/// [namespaces(7)]: https://man7.org/linux/man-pages/man7/namespaces.7.html
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Namespace {
    /// User and group ids, keys and capabilities, `user_namespaces(7)`.
    ///
    /// The only kind that needs no privilege; it owns the others that are made together with it.
    #[doc(alias = "CLONE_NEWUSER")]
    User,
    /// The mount table, `mount_namespaces(7)`.
    #[doc(alias = "CLONE_NEWNS")]
    Mount,
    /// Process ids, `pid_namespaces(7)`. In a new one the program is PID 1.
    #[doc(alias = "CLONE_NEWPID")]
    Pid,
    /// Hostname and NIS domain name, `uts_namespaces(7)`.
    #[doc(alias = "CLONE_NEWUTS")]
    Uts,
    /// System V IPC and POSIX message queues, `ipc_namespaces(7)`.
    #[doc(alias = "CLONE_NEWIPC")]
    Ipc,
    /// Network devices, addresses, ports and routes, `network_namespaces(7)`.
    #[doc(alias = "CLONE_NEWNET")]
    Net,
    /// The root of the visible cgroup tree, `cgroup_namespaces(7)`.
    ///
    /// A new one is rooted at the cgroup in which the process is once the first barrier is passed,
    /// so that [`Command::cgroup`](crate::Command::cgroup) and a move by the parent both count.
    #[doc(alias = "CLONE_NEWCGROUP")]
    Cgroup,
    /// Offsets of the monotonic and boot-time clocks, `time_namespaces(7)`. Linux 5.6.
    #[doc(alias = "CLONE_NEWTIME")]
    Time,
}

impl Namespace {
    /// Every kind, in the order in which they are entered.
    pub const ALL: [Self; 8] = [
        Self::User,
        Self::Mount,
        Self::Pid,
        Self::Uts,
        Self::Ipc,
        Self::Net,
        Self::Cgroup,
        Self::Time,
    ];

    /// The name of the link under `/proc/PID/ns`.
    pub const fn proc_name(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Mount => "mnt",
            Self::Pid => "pid",
            Self::Uts => "uts",
            Self::Ipc => "ipc",
            Self::Net => "net",
            Self::Cgroup => "cgroup",
            Self::Time => "time",
        }
    }

    /// The `CLONE_NEW…` bit.
    pub(crate) const fn flag(self) -> u32 {
        match self {
            Self::User => 0x1000_0000,
            Self::Mount => 0x0002_0000,
            Self::Pid => 0x2000_0000,
            Self::Uts => 0x0400_0000,
            Self::Ipc => 0x0800_0000,
            Self::Net => 0x4000_0000,
            Self::Cgroup => 0x0200_0000,
            Self::Time => 0x0000_0080,
        }
    }

    pub(crate) fn from_flag(flag: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.flag() == flag)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mount => "mount",
            other => other.proc_name(),
        })
    }
}
