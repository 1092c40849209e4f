//! What an operation of a plan is called, and what helps where it fails.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::plan::{CopyUp, Op, Plan, Target};
use crate::{DeviceKind, Namespace, Step};

/// The kinds of these `CLONE_NEW…` bits, as text.
fn kinds(flags: u32) -> String {
    let names: Vec<String> = Namespace::ALL
        .into_iter()
        .filter(|kind| flags & kind.flag() != 0)
        .map(|kind| kind.to_string())
        .collect();
    names.join(", ")
}

/// A path inside the root, from its top.
fn from_the_top(target: &Target) -> PathBuf {
    match target.path.as_bytes() {
        b"." => PathBuf::from("/"),
        path => Path::new("/").join(OsStr::from_bytes(path)),
    }
}

impl Plan {
    /// Names the operation of that index: its kind, and the text of an error.
    pub(crate) fn describe(&self, index: usize) -> (Step, String) {
        let Some(op) = self.ops.get(index) else {
            return (Step::Exec, String::from("run the plan"));
        };
        let text = |string: &CString| string.to_string_lossy().into_owned();
        let at = |target: &Target| from_the_top(target).to_string_lossy().into_owned();
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
            Op::OpenRoot(path) => (Step::AttachRoot, format!("open the root {}", text(path))),
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
            Op::ChangeMount { target, .. } => (
                Step::Mount,
                format!("change what is mounted on {}", at(target)),
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
            Op::PivotRoot | Op::ChangeRoot => (Step::PivotRoot, "switch to the new root".into()),
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

    /// Where the operation of that index mounts or makes something.
    pub(crate) fn target(&self, index: usize) -> Option<PathBuf> {
        match self.ops.get(index)? {
            Op::MountFilesystem { target, .. }
            | Op::MountBind { target, .. }
            | Op::MountDetached { target, .. }
            | Op::ChangeMount { target, .. }
            | Op::FillDev { target, .. }
            | Op::Link { target, .. }
            | Op::Device { target, .. } => Some(from_the_top(target)),
            _ => None,
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
            (Op::ChangeMount { .. }, libc::EINVAL) => {
                "nothing is mounted there, or its file system does not take one of the options"
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
                | Op::ChangeMount { target, .. }
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
            (Op::AttachRootPath(_) | Op::OpenRoot(_), libc::ENOENT) => {
                "there is no such directory; check the path"
            }
            (Op::AttachRootPath(_) | Op::OpenRoot(_), libc::ENOTDIR) => {
                "the root must be a directory"
            }
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
