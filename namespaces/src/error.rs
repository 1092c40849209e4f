//! What can go wrong.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use crate::Namespace;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program is not in the new root, or in none of the directories of its `PATH`. Shells
    /// end with status 127.
    #[error("{} not found{}; check the spelling{}", .program.display(), Searched(.searched), if *.interpreter { ", and that the interpreter or dynamic loader that the file names exists: the file itself does" } else { ", and that it is installed in the root file system" })]
    NotFound {
        /// The program as it was given.
        program: OsString,
        /// The directories that were searched, when it was given without a slash.
        searched: Vec<PathBuf>,
        /// The file exists, but not the interpreter that it names.
        interpreter: bool,
        /// `ENOENT` or `ENOTDIR`.
        source: io::Error,
    },
    /// The program exists but cannot be executed. Shells end with status 126.
    #[error("cannot execute {}: {source}; {}", .program.display(), NotExecutableHint(.source))]
    NotExecutable {
        /// The program as it was given.
        program: OsString,
        /// `EACCES`, `ENOEXEC`, …
        source: io::Error,
    },
    /// A step between `clone` and `execve` failed. Everything that was done before it is undone:
    /// the process is gone, and with it its namespaces and mounts.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The new process ended before it executed the program, without naming a step: it was
    /// killed, for instance by the OOM killer of its cgroup.
    #[error(
        "the new process ended before it executed the program: {status}; if it was killed, give its cgroup more memory"
    )]
    Died {
        /// How it ended.
        status: ExitStatus,
    },
    /// The process could not be cloned.
    #[error("clone a process in new namespaces ({}): {source}; {}", List(.namespaces), CloneHint(.namespaces, .source))]
    Clone {
        /// The namespaces that it was to get by the call.
        namespaces: Vec<Namespace>,
        /// What the kernel said.
        source: io::Error,
    },
    /// An id map could not be written.
    #[error("write {} ({map}): {source}; without CAP_SETUID and CAP_SETGID only the caller's own id, or subordinate ids of /etc/subuid and /etc/subgid, can be mapped", .path.display())]
    IdMap {
        /// The file under `/proc`.
        path: PathBuf,
        /// The map, its lines separated by commas.
        map: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// An id map is one that the kernel cannot take.
    #[error("the {which} map is not valid: {defect}")]
    InvalidIdMap {
        /// `uid` or `gid`.
        which: &'static str,
        /// What is wrong, and what to do.
        defect: &'static str,
    },
    /// `newuidmap` or `newgidmap` could not map the ids.
    #[error("{helper} could not map ids: {}; check that it is setuid root and that /etc/subuid and /etc/subgid give the caller this range", .message.to_string_lossy().trim_end())]
    IdMapHelper {
        /// Name of the program.
        helper: &'static str,
        /// What it printed, or why it could not be run.
        message: OsString,
    },
    /// Two settings of a [`Command`](crate::Command) contradict each other, or one lacks another.
    #[error("{setting}: {problem}")]
    Invalid {
        /// The setting.
        setting: &'static str,
        /// What is wrong, and what to do.
        problem: &'static str,
    },
    /// A string holds a NUL byte, which no system call can take.
    #[error("{what} {value:?} has a NUL byte in it; take it out")]
    NulByte {
        /// What the string is: `argument`, `mount target`, …
        what: &'static str,
        /// The string.
        value: OsString,
    },
    /// What was given to join is not a namespace, or one of another kind.
    #[error("join {wanted} namespace: {} is {}; give an fd of /proc/PID/ns/{} or a pidfd", .origin, Found(*.found), .wanted.proc_name())]
    NotThatNamespace {
        /// The kind that was to be joined.
        wanted: Namespace,
        /// Where it came from.
        origin: Origin,
        /// The kind that it is, if it is a namespace at all.
        found: Option<Namespace>,
    },
    /// The process could not be put into the cgroup.
    #[error(
        "attach process {pid} to the cgroup: {source}; the cgroup must be writable by the caller, have no child with controllers, and fit the process"
    )]
    Cgroup {
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A call of this process failed.
    #[error("{operation}{}: {source}", OnPath(.path))]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// On which file, if on one.
        path: Option<PathBuf>,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Error {
    /// The status with which a shell would end: 127 when the program is not found, 126 when it
    /// cannot be executed, `None` for anything else.
    pub fn shell_status(&self) -> Option<u8> {
        match self {
            Self::NotFound { .. } => Some(127),
            Self::NotExecutable { .. } => Some(126),
            _ => None,
        }
    }

    pub(crate) fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            path: None,
            source,
        }
    }

    pub(crate) fn io_path(
        operation: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            operation,
            path: Some(path.into()),
            source,
        }
    }
}

/// The step between `clone` and `execve` that failed.
#[derive(Debug)]
pub struct StepError {
    pub(crate) step: Step,
    pub(crate) detail: String,
    pub(crate) target: Option<Box<Path>>,
    pub(crate) operation: &'static str,
    pub(crate) undone: Vec<String>,
    pub(crate) total: usize,
    pub(crate) source: io::Error,
    pub(crate) hint: Option<&'static str>,
}

impl StepError {
    /// The kind of step.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The step with its arguments, such as `mount proc on /proc`.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Where in the root something was to be mounted or made, where that is the step.
    pub fn target(&self) -> Option<&Path> {
        self.target.as_deref()
    }

    /// The system call that failed, such as `fsconfig`.
    pub fn operation(&self) -> &'static str {
        self.operation
    }

    /// Its place among the steps of the plan, from 1.
    pub fn index(&self) -> usize {
        self.undone.len().saturating_add(1)
    }

    /// The steps that were done before it, in order, each as a [`detail`](Self::detail). All are
    /// undone: they concerned a process that is gone, and with it its namespaces and mounts. What
    /// stays is what is on a disk: files and directories that were made in the root as targets of
    /// mounts.
    pub fn undone(&self) -> &[String] {
        &self.undone
    }

    /// How many steps the plan has.
    pub fn total(&self) -> usize {
        self.total
    }

    /// What the kernel said.
    pub fn io_error(&self) -> &io::Error {
        &self.source
    }

    /// What usually causes it and what to do, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        self.hint
    }
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (step {} of {}, {}): {}",
            self.detail,
            self.index(),
            self.total,
            self.operation,
            self.source
        )?;
        if let Some(hint) = self.hint {
            write!(f, "; {hint}")?;
        }
        match self.undone.len() {
            0 => Ok(()),
            1 => write!(f, "; the step before is undone"),
            count => write!(f, "; the {count} steps before are undone"),
        }
    }
}

impl std::error::Error for StepError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// The kinds of step that a plan has between `clone` and `execve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Close what the program is not to see.
    CloseFds,
    /// Join a namespace.
    JoinNamespace,
    /// Clone again, inside the joined namespaces.
    Clone,
    /// Make a namespace that cannot be made by `clone`.
    UnshareNamespace,
    /// Wait for the parent.
    Barrier,
    /// Become root of the new user namespace.
    BecomeRoot,
    /// Bring the loopback device up.
    Loopback,
    /// Set the hostname.
    Hostname,
    /// Set the NIS domain name.
    Domainname,
    /// Set the propagation of mounts.
    Propagation,
    /// Attach the new root.
    AttachRoot,
    /// Mount something.
    Mount,
    /// Mask a path.
    Mask,
    /// Make a path or the root read-only.
    ReadOnly,
    /// Switch to the new root and let go of the old.
    PivotRoot,
    /// Start a session or take a controlling terminal.
    Session,
    /// Set a resource limit.
    ResourceLimit,
    /// Set the file mode mask.
    Umask,
    /// Set users, groups and capabilities.
    Credentials,
    /// Change the working directory.
    CurrentDirectory,
    /// Put file descriptors into place.
    Stdio,
    /// Tie the process to its parent's life.
    ParentDeathSignal,
    /// Set `no_new_privs`.
    NoNewPrivs,
    /// Install a seccomp filter.
    Seccomp,
    /// Write a kernel parameter.
    Sysctl,
    /// Set the label of a security module.
    SecurityLabel,
    /// Set how CPU, memory and disks are shared.
    Scheduling,
    /// Set the execution domain.
    Personality,
    /// Join a session keyring.
    Keyring,
    /// Restore signal handling.
    Signals,
    /// Execute the program.
    Exec,
}

/// Where a namespace to be joined came from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// A file descriptor.
    Fd(RawFd),
    /// A path.
    Path(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fd(fd) => write!(f, "fd {fd}"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

struct Searched<'a>(&'a [PathBuf]);

impl fmt::Display for Searched<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, directory) in self.0.iter().enumerate() {
            f.write_str(if at == 0 { " in " } else { ":" })?;
            directory.display().fmt(f)?;
        }
        Ok(())
    }
}

struct NotExecutableHint<'a>(&'a io::Error);

impl fmt::Display for NotExecutableHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0.raw_os_error() {
            Some(libc::ENOEXEC) => {
                "the file is for another architecture, or a script without a #! line"
            }
            Some(libc::E2BIG) => "the arguments and the environment are too long together",
            Some(libc::ETXTBSY) => "the file is open for writing; close it first",
            _ => "it must be a regular file with its execute bit set, on a mount without noexec",
        })
    }
}

struct List<'a>(&'a [Namespace]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (at, namespace) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str(", ")?;
            }
            namespace.fmt(f)?;
        }
        Ok(())
    }
}

struct CloneHint<'a>(&'a [Namespace], &'a io::Error);

impl fmt::Display for CloneHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.1.raw_os_error() {
            Some(libc::EPERM) if self.0.contains(&Namespace::User) => {
                "user namespaces may be switched off: look at the sysctls kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns, and for a seccomp filter of an outer container"
            }
            Some(libc::EPERM) => {
                "without privilege a user namespace is needed as well (Command::user_namespace)"
            }
            Some(libc::EAGAIN) => "the limit of processes is reached (pids cgroup or RLIMIT_NPROC)",
            Some(libc::ENOSPC | libc::EUSERS) => {
                "the limit of nested or total namespaces is reached (/proc/sys/user/max_*_namespaces)"
            }
            Some(libc::EINVAL) => "the kernel may be built without one of these namespaces",
            _ => "the new process was not made",
        })
    }
}

struct Found(Option<Namespace>);

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(kind) => write!(f, "a {kind} namespace"),
            None => f.write_str("no namespace"),
        }
    }
}

struct OnPath<'a>(&'a Option<PathBuf>);

impl fmt::Display for OnPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(path) => write!(f, " {}", path.display()),
            None => Ok(()),
        }
    }
}
