//! The compiled plan: what the child does between `clone` and `execve`.
//!
//! Everything in it is ready to be handed to the kernel. The child only reads it.

use std::ffi::CString;
use std::ops::Range;
use std::os::fd::RawFd;

use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySets, Gid, Uid};

use crate::sys::{CStringArray, Instruction, MountAttr, PlanFd, SchedAttr};
use crate::{Barrier, Capability, DeviceKind, Namespace, Step, TerminalSize};

/// A path inside the root, ready to be resolved and made.
#[derive(Debug)]
pub(crate) struct Target {
    /// Relative to the root; `.` for the root itself.
    pub(crate) path: CString,
    /// Every prefix of the path with its last component, from the first component on.
    pub(crate) components: Vec<(CString, CString)>,
    /// Whether what is missing is made.
    pub(crate) create: bool,
}

/// A mount attribute change and what `mount(2)` knows of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attributes {
    pub(crate) attr: MountAttr,
    /// What is changed of every mount of the tree, before that.
    pub(crate) tree: MountAttr,
    /// The `MS_…` flags for kernels without `mount_setattr`, to be set and to be cleared.
    pub(crate) classic: u64,
    pub(crate) classic_clear: u64,
    /// Only `mount_setattr` can do it.
    pub(crate) modern: bool,
}

impl Attributes {
    pub(crate) fn has_tree(&self) -> bool {
        self.tree.set != 0 || self.tree.clear != 0
    }
}

/// What is copied into a new file system before it covers its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyUp {
    Nothing,
    /// What is in the directory.
    Contents,
    /// The same, and owner and mode of the directory.
    Directory,
}

/// A propagation change.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PropagationChange {
    /// The `MS_…` flag.
    pub(crate) flag: u64,
    pub(crate) recursive: bool,
}

/// One operation of the child.
#[derive(Debug)]
pub(crate) enum Op {
    /// Closes these ranges of file descriptors, first and last.
    CloseFds(Vec<(u32, u32)>),
    /// Makes the process non-dumpable, so that nobody in a joined namespace can look into it.
    HideMemory,
    Join {
        fd: PlanFd,
        kind: Namespace,
        when: JoinTime,
    },
    /// Joins all these namespaces of the process behind a pidfd at once.
    Enter {
        process: PlanFd,
        flags: u32,
    },
    /// Makes a directory the root of this process.
    EnterRoot(PlanFd),
    CloneAgain {
        namespaces: u32,
        cgroup: Option<PlanFd>,
    },
    /// Waits for the parent's first word.
    Created,
    Pause(Barrier),
    Unshare(Namespace),
    /// Makes a time namespace and enters it.
    NewTime {
        /// The lines of `timens_offsets`.
        offsets: Option<CString>,
    },
    BecomeRoot {
        /// A joined user namespace may not map id 0; that is no failure.
        tolerant: bool,
    },
    LoopbackUp,
    Hostname(CString),
    Domainname(CString),
    /// Changes the propagation of all mounts.
    Propagate {
        flag: u64,
    },
    /// Binds a directory of the caller over the root, as the new root.
    AttachRootPath(CString),
    /// Moves a detached mount over the root, as the new root.
    AttachRootMount(PlanFd),
    /// Takes the `/` there is as the place of mounts.
    StayInRoot,
    /// Takes a directory as it is as the new root.
    OpenRoot(CString),
    MountFilesystem {
        kind: CString,
        name: CString,
        options: Vec<(CString, Option<CString>)>,
        /// The options as `mount(2)` takes them.
        data: CString,
        attributes: Attributes,
        or_bind: Option<CString>,
        copy_up: CopyUp,
        target: Target,
        propagation: Option<PropagationChange>,
    },
    MountBind {
        source: CString,
        recursive: bool,
        attributes: Attributes,
        target: Target,
        propagation: Option<PropagationChange>,
    },
    MountDetached {
        fd: PlanFd,
        attributes: Attributes,
        target: Target,
        propagation: Option<PropagationChange>,
    },
    /// Changes what is mounted at the target.
    ChangeMount {
        options: Vec<(CString, Option<CString>)>,
        attributes: Attributes,
        target: Target,
        propagation: Option<PropagationChange>,
    },
    /// Fills the minimal `/dev` that was mounted just before.
    FillDev {
        target: Target,
        /// Whether device nodes can be made; otherwise they are bound.
        nodes: bool,
    },
    Link {
        target: Target,
        to: CString,
    },
    /// Makes the mount at a path read-only, as it was put off.
    ReadOnlyMount(CString),
    Mask(CString),
    ReadOnlyPath(CString),
    ReadOnlyRoot {
        recursive: bool,
    },
    PivotRoot,
    /// Makes the new root the one of this process alone.
    ChangeRoot,
    /// Propagation of the new root, after everything is mounted.
    RootPropagation {
        flag: u64,
    },
    NewSession,
    /// Makes a terminal in the root's devpts and passes its master to the parent.
    Terminal {
        size: TerminalSize,
        console: Target,
        /// Who owns it, as seen inside.
        uid: Option<u32>,
    },
    /// Puts the terminal in place of the streams.
    TakeTerminal,
    Device {
        target: Target,
        /// The caller's file to be bound where nodes cannot be made.
        outside: CString,
        kind: DeviceKind,
        number: (u32, u32),
        mode: u32,
        owner: Option<(u32, u32)>,
        nodes: bool,
    },
    /// Writes to a file of a private `/proc`.
    WriteProc {
        path: CString,
        value: Vec<u8>,
        step: Step,
    },
    Scheduler(SchedAttr),
    Nice(i32),
    IoPriority(u32),
    Affinity(Vec<u64>),
    MemoryPolicy {
        mode: u32,
        nodes: Vec<u64>,
    },
    Personality(u32),
    Keyring(CString),
    /// Waits until somebody opens the gate.
    Gate(PlanFd),
    /// Goes on in a child, and is its init.
    Init {
        /// Not PID 1 of a namespace.
        subreaper: bool,
        /// Where in memory the arguments of this process are: the init shows them to everybody.
        arguments: Range<usize>,
    },
    Rlimit(Resource, Rlimit),
    Umask(Option<u32>),
    /// Makes the working directory.
    CreateDirectory(Target),
    /// Enters the working directory; a refusal is made good by [`Op::EnterDirectoryAgain`].
    EnterDirectory {
        path: CString,
        /// Another try follows, as another user.
        again: bool,
    },
    EnterDirectoryAgain(CString),
    LimitBounding(Vec<Capability>),
    KeepCapabilities,
    Groups {
        groups: Vec<Gid>,
        /// Not asked for by the caller: a refusal is no failure.
        implied: bool,
    },
    Gid(Gid),
    Uid(Uid),
    Capabilities {
        sets: CapabilitySets,
        ambient: Vec<Capability>,
    },
    /// Moves descriptors to the numbers at which the program sees them.
    PlaceFds(Vec<(PlanFd, RawFd)>),
    DieWithParent,
    NoNewPrivs,
    ResetSignals,
    Seccomp {
        program: Vec<Instruction>,
        flags: u32,
        listener: bool,
    },
    Exec,
}

/// When a namespace is joined with respect to a joined user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JoinTime {
    /// There is one chance only.
    Now,
    /// With the caller's rights; `EPERM` puts it off.
    BeforeUser,
    /// With the joined user namespace's rights, if it was put off.
    AfterUser,
}

/// The version of the kernel: what differs between them here cannot be tried.
fn kernel() -> (u32, u32) {
    version(rustix::system::uname().release().to_bytes())
}

/// The first two numbers of a release such as `6.1.0-28-amd64`.
fn version(release: &[u8]) -> (u32, u32) {
    let mut numbers = release
        .split(|byte| !byte.is_ascii_digit())
        .map(|digits| std::str::from_utf8(digits).unwrap_or_default());
    let mut next = || numbers.next().and_then(|digits| digits.parse().ok());
    (next().unwrap_or(0), next().unwrap_or(0))
}

/// The plan.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) ops: Vec<Op>,
    /// The child's end of the socket.
    pub(crate) channel: PlanFd,
    /// Where the program may be, in the order of trying.
    pub(crate) programs: Vec<CString>,
    pub(crate) args: CStringArray,
    pub(crate) env: CStringArray,
    /// Whether its user or group becomes another than the caller's, as seen by the caller.
    pub(crate) changes_users: bool,
}

impl Plan {
    /// Whether the child may run in the memory of the parent.
    ///
    /// Not when it does something to the memory: a change of users makes it non-dumpable as a
    /// whole, and joining requires just that. Not when it stays there for long, at a gate or as an
    /// init, or needs much of a stack. And entering a time namespace is refused to those who share
    /// memory, unless `execve` does it. Not under a filter that might kill it, either, where a core
    /// dump ends everybody who shares the memory.
    pub(crate) fn may_share_memory(&self) -> bool {
        !self.changes_users
            && !self.ops.iter().any(|op| match op {
                Op::HideMemory
                | Op::Join { .. }
                | Op::Enter { .. }
                | Op::Init { .. }
                | Op::MountFilesystem {
                    copy_up: CopyUp::Contents | CopyUp::Directory,
                    ..
                }
                | Op::CloneAgain { .. }
                | Op::Gate(_) => true,
                // `execve` enters the time namespace for children since Linux 6.2, surely so in 6.6.
                Op::NewTime { .. } => kernel() < (6, 6),
                // Core dumps are of one process since then.
                Op::Seccomp { .. } => kernel() < (5, 16),
                _ => false,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn releases_are_read() {
        assert_eq!(version(b"6.1.0-28-amd64"), (6, 1));
        assert_eq!(version(b"5.10-rc3"), (5, 10));
        assert_eq!(version(b"7"), (7, 0));
        assert_eq!(version(b"what"), (0, 0));
    }
}
