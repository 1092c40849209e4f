//! What parent and child say to each other over their socket.
//!
//! The child writes records of fixed size; the parent answers with single bytes. Both are too
//! short to be split or merged in a way that matters: the child never has two records unread when
//! the parent waits for one, except `Executing` followed by `Failed`.

use rustix::io::Errno;

use crate::Fallbacks;

macro_rules! calls {
    ($($variant:ident = $name:literal,)*) => {
        /// The system calls that a step makes, to be named in an error.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Call {
            $($variant,)*
        }

        impl Call {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $name),)*];

            /// The name of the system call.
            pub(crate) fn name(self) -> &'static str {
                Self::ALL
                    .iter()
                    .find_map(|(call, name)| (*call == self).then_some(*name))
                    .unwrap_or("system call")
            }

            fn from_byte(byte: u8) -> Option<Self> {
                Self::ALL
                    .iter()
                    .find_map(|(call, _)| (*call as u8 == byte).then_some(*call))
            }
        }
    };
}

calls! {
    Capset = "capset",
    Chdir = "chdir",
    Chown = "fchownat",
    Chmod = "fchmod",
    Chroot = "chroot",
    Clone = "clone3",
    CloseRange = "close_range",
    Dup3 = "dup3",
    Execve = "execve",
    Fchdir = "fchdir",
    Fcntl = "fcntl",
    Fsconfig = "fsconfig",
    Fspick = "fspick",
    Fsmount = "fsmount",
    Fsopen = "fsopen",
    Fstat = "fstat",
    Getcwd = "getcwd",
    Getdents = "getdents64",
    Ioctl = "ioctl",
    IoprioSet = "ioprio_set",
    Keyctl = "keyctl",
    Mkdirat = "mkdirat",
    Mknodat = "mknodat",
    Mount = "mount",
    MountSetattr = "mount_setattr",
    MoveMount = "move_mount",
    Openat = "openat",
    Openat2 = "openat2",
    OpenTree = "open_tree",
    Personality = "personality",
    PivotRoot = "pivot_root",
    Prctl = "prctl",
    Read = "read",
    Readlinkat = "readlinkat",
    SchedSetaffinity = "sched_setaffinity",
    SchedSetattr = "sched_setattr",
    Seccomp = "seccomp",
    Sendfile = "sendfile",
    Sendmsg = "sendmsg",
    Sendto = "sendto",
    SetMempolicy = "set_mempolicy",
    Setdomainname = "setdomainname",
    Setgroups = "setgroups",
    Sethostname = "sethostname",
    Setpriority = "setpriority",
    Setns = "setns",
    Setresgid = "setresgid",
    Setresuid = "setresuid",
    Setrlimit = "setrlimit",
    Setsid = "setsid",
    Sigaction = "rt_sigaction",
    Socket = "socket",
    Symlinkat = "symlinkat",
    Umount = "umount2",
    Unshare = "unshare",
    Write = "write",
}

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// A system call of a step that failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) call: Call,
    pub(crate) errno: Errno,
}

impl Failure {
    pub(crate) fn of(call: Call) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { call, errno }
    }
}

/// What the child tells.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Record {
    /// The step of this index failed; the child is about to exit.
    Failed {
        step: u32,
        failure: Failure,
        /// Further facts about a failed `execve`: the file itself exists.
        file_exists: bool,
    },
    /// The child waits at the barrier of this number.
    Waiting { at: u8, fallbacks: Fallbacks },
    /// The child has cloned again, in joined namespaces; this is the pid of the one to go on.
    Cloned { pid: u32 },
    /// The record comes with a file descriptor of this kind, see [`passed`].
    Passed { what: u8 },
    /// Only `execve` and what must stand right before it are left.
    Executing { fallbacks: Fallbacks },
}

/// Length of a record.
pub(crate) const RECORD: usize = 12;

impl Record {
    pub(crate) fn encode(self) -> [u8; RECORD] {
        let (kind, call, fact, number, errno) = match self {
            Self::Failed {
                step,
                failure,
                file_exists,
            } => (
                1,
                failure.call as u8,
                u8::from(file_exists),
                step,
                failure.errno.raw_os_error(),
            ),
            Self::Waiting { at, fallbacks } => (2, 0, at, fallbacks.bits(), 0),
            Self::Cloned { pid } => (3, 0, 0, pid, 0),
            Self::Executing { fallbacks } => (4, 0, 0, fallbacks.bits(), 0),
            Self::Passed { what } => (5, 0, what, 0, 0),
        };
        let [n0, n1, n2, n3] = number.to_ne_bytes();
        let [e0, e1, e2, e3] = errno.to_ne_bytes();
        [kind, call, fact, 0, n0, n1, n2, n3, e0, e1, e2, e3]
    }

    pub(crate) fn decode(bytes: [u8; RECORD]) -> Option<Self> {
        let [kind, call, fact, _, n0, n1, n2, n3, e0, e1, e2, e3] = bytes;
        let number = u32::from_ne_bytes([n0, n1, n2, n3]);
        let errno = i32::from_ne_bytes([e0, e1, e2, e3]);
        Some(match kind {
            1 => Self::Failed {
                step: number,
                failure: Failure {
                    call: Call::from_byte(call)?,
                    errno: Errno::from_raw_os_error(errno),
                },
                file_exists: fact != 0,
            },
            2 => Self::Waiting {
                at: fact,
                fallbacks: Fallbacks::from_bits_truncate(number),
            },
            3 => Self::Cloned { pid: number },
            4 => Self::Executing {
                fallbacks: Fallbacks::from_bits_truncate(number),
            },
            5 => Self::Passed { what: fact },
            _ => return None,
        })
    }
}

/// How far the child may run: the number of the barrier at which it stops.
pub(crate) mod until {
    pub(crate) const MOUNTED: u8 = 1;
    pub(crate) const READY: u8 = 2;
    pub(crate) const GATE: u8 = 3;
    pub(crate) const EXEC: u8 = 4;
}

/// The kinds of file descriptor that the child passes.
pub(crate) mod passed {
    /// The master of the pseudo-terminal.
    pub(crate) const TERMINAL: u8 = 1;
    /// The listener of the seccomp filter.
    pub(crate) const LISTENER: u8 = 2;
}
