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

/// The kinds of these `CLONE_NEW…` bits, as text.
fn kinds(flags: u32) -> String {
    let names: Vec<String> = Namespace::ALL
        .into_iter()
        .filter(|kind| flags & kind.flag() != 0)
        .map(|kind| kind.to_string())
        .collect();
    names.join(", ")
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

/// Whether a program that is executed is in the time namespace for children: not so before Linux
/// 6.2, surely so in 6.6.
fn execve_enters_time_namespaces() -> bool {
    let system = rustix::system::uname();
    version(system.release().to_bytes()) >= (6, 6)
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
    /// memory, unless `execve` does it.
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
                Op::NewTime { .. } => !execve_enters_time_namespaces(),
                _ => false,
            })
    }

    /// Names the operation of that index: its kind, and the text of an error.
    pub(crate) fn describe(&self, index: usize) -> (Step, String) {
        let Some(op) = self.ops.get(index) else {
            return (Step::Exec, String::from("run the plan"));
        };
        let text = |string: &CString| string.to_string_lossy().into_owned();
        let at = |target: &Target| match target.path.to_string_lossy() {
            root if root == "." => String::from("/"),
            path => format!("/{path}"),
        };
        match op {
            Op::CloseFds(_) => (Step::CloseFds, "close file descriptors".into()),
            Op::HideMemory => (Step::JoinNamespace, "become non-dumpable".into()),
            Op::Join { kind, .. } => (Step::JoinNamespace, format!("join the {kind} namespace")),
            Op::Enter { flags, .. } => (
                Step::JoinNamespace,
                format!("enter the {} namespaces of the process", kinds(*flags)),
            ),
            Op::EnterRoot(_) => (
                Step::JoinNamespace,
                "enter the root directory of the process".into(),
            ),
            Op::CloneAgain { .. } => (
                Step::Clone,
                "clone a process inside the joined namespaces".into(),
            ),
            Op::Created => (Step::Barrier, "wait for the parent".into()),
            Op::Pause(barrier) => (Step::Barrier, format!("wait at the barrier {barrier:?}")),
            Op::Unshare(kind) => (
                Step::UnshareNamespace,
                format!("make a new {kind} namespace"),
            ),
            Op::NewTime { .. } => (Step::UnshareNamespace, "make a new time namespace".into()),
            Op::BecomeRoot { .. } => (Step::BecomeRoot, "become root of the user namespace".into()),
            Op::LoopbackUp => (Step::Loopback, "bring the interface lo up".into()),
            Op::Hostname(name) => (
                Step::Hostname,
                format!("set the hostname to {}", text(name)),
            ),
            Op::Domainname(name) => (
                Step::Domainname,
                format!("set the domain name to {}", text(name)),
            ),
            Op::Propagate { .. } => (
                Step::Propagation,
                "cut all mounts off from the caller's".into(),
            ),
            Op::AttachRootPath(path) => {
                (Step::AttachRoot, format!("attach the root {}", text(path)))
            }
            Op::AttachRootMount(fd) => (
                Step::AttachRoot,
                format!("attach the root, the detached mount of fd {}", fd.number()),
            ),
            Op::StayInRoot => (Step::AttachRoot, "open the root".into()),
            Op::MountFilesystem { kind, target, .. } => (
                Step::Mount,
                format!("mount {} on {}", text(kind), at(target)),
            ),
            Op::MountBind { source, target, .. } => (
                Step::Mount,
                format!("bind {} on {}", text(source), at(target)),
            ),
            Op::MountDetached { fd, target, .. } => (
                Step::Mount,
                format!("move the mount of fd {} to {}", fd.number(), at(target)),
            ),
            Op::FillDev { target, .. } => {
                (Step::Mount, format!("make the devices of {}", at(target)))
            }
            Op::Link { target, to } => (
                Step::Mount,
                format!("make the link {} to {}", at(target), text(to)),
            ),
            Op::Mask(path) => (Step::Mask, format!("mask /{}", text(path))),
            Op::ReadOnlyPath(path) | Op::ReadOnlyMount(path) => {
                (Step::ReadOnly, format!("make /{} read-only", text(path)))
            }
            Op::ReadOnlyRoot { .. } => (Step::ReadOnly, "make the root read-only".into()),
            Op::PivotRoot => (Step::PivotRoot, "switch to the new root".into()),
            Op::RootPropagation { .. } => (
                Step::Propagation,
                "set the propagation of the new root".into(),
            ),
            Op::Terminal { .. } => (Step::Session, "make a terminal in /dev/pts".into()),
            Op::TakeTerminal => (Step::Session, "take the terminal as controlling one".into()),
            Op::Device {
                target,
                kind,
                number: (major, minor),
                ..
            } => (
                Step::Mount,
                format!(
                    "make the {} {} ({major}:{minor})",
                    match kind {
                        DeviceKind::Character => "character device",
                        DeviceKind::Block => "block device",
                        DeviceKind::Fifo => "fifo",
                    },
                    at(target)
                ),
            ),
            Op::WriteProc { path, value, step } => (
                *step,
                format!(
                    "write {} to /proc/{}",
                    String::from_utf8_lossy(value).trim_end(),
                    text(path)
                ),
            ),
            Op::Scheduler(_) => (Step::Scheduling, "set the scheduling policy".into()),
            Op::Nice(nice) => (Step::Scheduling, format!("set the nice value to {nice}")),
            Op::IoPriority(_) => (Step::Scheduling, "set the I/O priority".into()),
            Op::Affinity(_) => (Step::Scheduling, "set the CPUs to run on".into()),
            Op::MemoryPolicy { .. } => (Step::Scheduling, "set the memory policy".into()),
            Op::Personality(persona) => (
                Step::Personality,
                format!("set the execution domain to {persona:#x}"),
            ),
            Op::Keyring(name) => (
                Step::Keyring,
                format!("join the new session keyring {}", text(name)),
            ),
            Op::Gate(_) => (Step::Barrier, "wait at the gate".into()),
            Op::Init { .. } => (Step::Clone, "clone the program from its init".into()),
            Op::NewSession => (Step::Session, "start a new session".into()),
            Op::Rlimit(resource, limit) => (
                Step::ResourceLimit,
                format!(
                    "set the limit {resource:?} to {} (hard {})",
                    limit
                        .current
                        .map_or("none".into(), |value| value.to_string()),
                    limit
                        .maximum
                        .map_or("none".into(), |value| value.to_string()),
                ),
            ),
            Op::Umask(_) => (Step::Umask, "set the file mode mask".into()),
            Op::CreateDirectory(target) => (
                Step::CurrentDirectory,
                format!("make the working directory {}", at(target)),
            ),
            Op::EnterDirectory { path, .. } | Op::EnterDirectoryAgain(path) => (
                Step::CurrentDirectory,
                format!("enter the working directory {}", text(path)),
            ),
            Op::LimitBounding(_) => (
                Step::Credentials,
                "limit the bounding set of capabilities".into(),
            ),
            Op::KeepCapabilities => (
                Step::Credentials,
                "keep capabilities over the change of user".into(),
            ),
            Op::Groups { groups, .. } => (
                Step::Credentials,
                format!("set {} supplementary groups", groups.len()),
            ),
            Op::Gid(gid) => (Step::Credentials, format!("become group {}", gid.as_raw())),
            Op::Uid(uid) => (Step::Credentials, format!("become user {}", uid.as_raw())),
            Op::Capabilities { .. } => (Step::Credentials, "set the capabilities".into()),
            Op::PlaceFds(_) => (Step::Stdio, "put file descriptors into place".into()),
            Op::DieWithParent => (
                Step::ParentDeathSignal,
                "tie the process to its parent's life".into(),
            ),
            Op::NoNewPrivs => (Step::NoNewPrivs, "set no_new_privs".into()),
            Op::ResetSignals => (Step::Signals, "restore signal handling".into()),
            Op::Seccomp { .. } => (Step::Seccomp, "install the seccomp filter".into()),
            Op::Exec => (
                Step::Exec,
                format!(
                    "execute {}",
                    self.programs.first().map(text).unwrap_or_default()
                ),
            ),
        }
    }

    /// Whether what failed is known, and what to do about it.
    pub(crate) fn hint(&self, index: usize, errno: i32) -> Option<&'static str> {
        let userns =
            "a namespace can be changed by the privileged of the user namespace that owns it only";
        Some(match (self.ops.get(index)?, errno) {
            (Op::MountFilesystem { kind, .. }, libc::EPERM) if kind.as_bytes() == b"proc" => {
                "in a user namespace /proc can only be mounted together with a new pid namespace, and when a fully visible one exists (an outer container must not mask parts of it)"
            }
            (Op::MountFilesystem { kind, .. }, libc::EPERM) if kind.as_bytes() == b"sysfs" => {
                "sysfs can only be mounted by the owner of the network namespace; make a new one too, or bind /sys"
            }
            (Op::MountFilesystem { kind, .. }, libc::EPERM) if kind.as_bytes() == b"mqueue" => {
                "mqueue can only be mounted by the owner of the ipc namespace; make a new one too"
            }
            (Op::MountFilesystem { copy_up, .. }, libc::ELOOP) if *copy_up != CopyUp::Nothing => {
                "the directories to be copied are more than 64 deep; make them flatter"
            }
            (Op::MountFilesystem { .. }, libc::ENODEV) => {
                "this kernel has no such file system; load its module or leave the mount out"
            }
            (Op::MountFilesystem { .. }, libc::EINVAL) => {
                "the kernel does not take one of the options; see the manual page of the file system"
            }
            (
                Op::MountFilesystem { target, .. }
                | Op::MountBind { target, .. }
                | Op::MountDetached { target, .. }
                | Op::FillDev { target, .. },
                libc::ENOENT,
            ) if !target.create => "the target does not exist in the root; make it first",
            (Op::MountBind { .. }, libc::ENOENT) => "the source does not exist; check the path",
            (
                Op::MountBind { attributes, .. } | Op::MountDetached { attributes, .. },
                libc::EINVAL,
            ) if attributes.modern => {
                "the file system cannot be idmapped on this kernel, or the mount is idmapped already"
            }
            (Op::MountBind { .. }, libc::EPERM) => {
                "in a user namespace attributes that the outer one has set, and the way access times are kept, cannot be changed"
            }
            (Op::MountBind { .. }, libc::ENOTDIR | libc::EISDIR) => {
                "source and target must both be directories or both be something else"
            }
            (Op::MountBind { attributes, .. }, libc::ENOSYS) if attributes.has_tree() => {
                "attributes for a whole tree need mount_setattr of Linux 5.12"
            }
            (
                Op::MountFilesystem { .. }
                | Op::MountBind { .. }
                | Op::MountDetached { .. }
                | Op::FillDev { .. },
                libc::ELOOP | libc::EXDEV,
            ) => "the target leads through a link that must not be followed; give its real path",
            (
                Op::MountFilesystem { .. }
                | Op::MountBind { .. }
                | Op::MountDetached { .. }
                | Op::FillDev { .. },
                libc::EROFS,
            ) => "the target is missing and the root is read-only; make the target in the image",
            (Op::AttachRootPath(_), libc::ENOENT) => "there is no such directory; check the path",
            (Op::AttachRootPath(_), libc::ENOTDIR) => "the root must be a directory",
            (Op::AttachRootMount(_), libc::EINVAL) => {
                "the fd must be a detached mount (fsmount, or open_tree with OPEN_TREE_CLONE) that was not used before"
            }
            (Op::PivotRoot, libc::EINVAL) => {
                "the old root cannot be pivoted away from when it is the initial ramfs; run from a real root file system"
            }
            (Op::Groups { .. }, libc::EPERM) => {
                "supplementary groups cannot be set in a user namespace with a single id; map subordinate ids"
            }
            (Op::Groups { .. } | Op::Gid(_) | Op::Uid(_), libc::EINVAL) => {
                "the id is not mapped in the user namespace; map it or choose another"
            }
            (Op::BecomeRoot { .. }, libc::EINVAL) => {
                "id 0 is not mapped in the user namespace; give Command::uid and Command::gid"
            }
            (Op::Gid(_) | Op::Uid(_), libc::EPERM) => {
                "changing users needs CAP_SETUID and CAP_SETGID; use a user namespace"
            }
            (Op::Capabilities { .. } | Op::LimitBounding(_), libc::EPERM) => {
                "only capabilities that the caller has can be given, ambient ones must be inheritable and permitted, and limiting the bounding set needs CAP_SETPCAP"
            }
            (Op::Terminal { .. }, libc::ENOENT | libc::ENODEV) => {
                "the terminal needs a devpts on /dev/pts of the new root: add Mount::devpts"
            }
            (
                Op::WriteProc {
                    step: Step::Sysctl, ..
                },
                libc::ENOENT,
            ) => "this kernel has no such parameter; check the name",
            (
                Op::WriteProc {
                    step: Step::Sysctl, ..
                },
                libc::EACCES | libc::EPERM | libc::EROFS,
            ) => {
                "only parameters of a namespace that the process owns can be set; make that namespace new"
            }
            (
                Op::WriteProc {
                    step: Step::SecurityLabel,
                    ..
                },
                libc::ENOENT | libc::EINVAL,
            ) => "this kernel does not run that security module, or does not know the label",
            (Op::Scheduler(_) | Op::Nice(_) | Op::IoPriority(_), libc::EPERM | libc::EACCES) => {
                "a higher priority needs CAP_SYS_NICE or a resource limit that allows it"
            }
            (Op::Affinity(_), libc::EINVAL) => {
                "none of these CPUs is online and in the cpuset of the process"
            }
            (Op::Rlimit(..), libc::EPERM) => {
                "raising a hard limit needs CAP_SYS_RESOURCE; stay at or below the caller's"
            }
            (Op::Rlimit(..), libc::EINVAL) => "the soft limit must not exceed the hard limit",
            (Op::EnterDirectory { .. } | Op::EnterDirectoryAgain(_), libc::ENOENT) => {
                "the directory is not in the root file system; make it, or see Command::create_current_dir"
            }
            (Op::Seccomp { .. }, libc::EACCES) => {
                "without CAP_SYS_ADMIN a filter needs Command::no_new_privs"
            }
            (Op::Seccomp { .. }, libc::EINVAL) => {
                "the kernel does not take the program as a filter"
            }
            (Op::Enter { .. }, libc::ESRCH) => "the process has ended",
            (Op::Enter { .. }, libc::EPERM) => {
                "entering needs CAP_SYS_ADMIN in the user namespaces of all of them; its creator has it in a user namespace"
            }
            (Op::Join { .. } | Op::Enter { .. }, libc::EINVAL) => {
                "a user namespace cannot be joined twice; a pidfd needs Linux 5.8"
            }
            (
                Op::Hostname(_) | Op::Domainname(_) | Op::Join { .. } | Op::LoopbackUp,
                libc::EPERM,
            ) => userns,
            (Op::Propagate { .. }, libc::EPERM) => {
                "a new mount namespace needs CAP_SYS_ADMIN; use a user namespace as well"
            }
            (Op::NewTime { .. }, libc::EINVAL) => {
                "time namespaces need Linux 5.6 with CONFIG_TIME_NS"
            }
            _ => return None,
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
