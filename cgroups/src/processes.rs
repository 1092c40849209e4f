//! Which processes are in a group, and moving them there.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::str::FromStr;

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::dir::Dir;
use crate::error::{Error, ParseError, Result};
use crate::group::Cgroup;
use crate::hierarchy::Tree;
use crate::sys;

const PROCS: &str = "cgroup.procs";

/// The content of `cgroup.procs`, `cgroup.threads` or `tasks`: a number in each line.
#[doc(alias = "cgroup.procs")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessIds(pub Vec<u32>);

impl FromStr for ProcessIds {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut ids = Vec::new();
        parse_pids(text.as_bytes(), &mut ids)?;
        Ok(Self(ids))
    }
}

impl fmt::Display for ProcessIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|id| writeln!(f, "{id}"))
    }
}

impl Cgroup {
    /// The processes that are in the group itself, not in its children, in no particular order.
    /// A process of a pid namespace that is not visible from here is 0.
    ///
    /// Read from the hierarchy of v2 where there is one, else from the first of v1.
    ///
    /// # Errors
    ///
    /// [`Error::Threaded`] for a group of single threads; [`Error::Vanished`], [`Error::Io`].
    #[doc(alias = "cgroup.procs")]
    pub fn processes(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        if let Some((_, dir)) = self.members().next() {
            read_pids(dir, PROCS, &mut Vec::new(), &mut pids)?;
        }
        Ok(pids)
    }

    /// The threads that are in the group itself, as [`Cgroup::processes`].
    ///
    /// # Errors
    ///
    /// [`Error::Vanished`], [`Error::Io`].
    #[doc(alias = "cgroup.threads")]
    pub fn threads(&self) -> Result<Vec<u32>> {
        let mut tids = Vec::new();
        if let Some((_, dir)) = self.members().next() {
            let file = if dir.has("cgroup.threads") {
                "cgroup.threads"
            } else {
                "tasks"
            };
            read_pids(dir, file, &mut Vec::new(), &mut tids)?;
        }
        Ok(tids)
    }

    /// Moves a process, with all its threads, into the group in every hierarchy. When one
    /// refuses, the process goes back to where it was in the others.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchProcess`], [`Error::CannotAttach`], [`Error::NotDelegated`],
    /// [`Error::Vanished`].
    pub fn attach(&self, pid: u32) -> Result<()> {
        let before = if self.members().count() > 1 {
            Some(self.hierarchy().of_process(pid)?)
        } else {
            None
        };
        let mut moved = 0;
        let result = self.members().try_for_each(|(_, dir)| {
            attach_one(dir, pid)?;
            moved += 1;
            Ok(())
        });
        let Err(cause) = result else { return Ok(()) };
        let mut failures = Vec::new();
        for (tree, _) in self.members().take(moved) {
            let old = before.as_ref().and_then(|group| group.dir_in(tree));
            if let Some(Err(error)) = old.map(|dir| attach_one(dir, pid)) {
                failures.push(error);
            }
        }
        // A process that has ended is nowhere, so it is not left half moved.
        failures.retain(|error| !matches!(error, Error::NoSuchProcess { .. }));
        if failures.is_empty() {
            Err(cause)
        } else {
            Err(Error::Rollback {
                cause: Box::new(cause),
                failures,
            })
        }
    }

    /// Moves the process of a pidfd, so that no other process that has got its number meanwhile
    /// is moved instead.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::attach`]; [`Error::NoSuchProcess`] with 0 when it has ended or is of another
    /// pid namespace; [`Error::Io`] when `pidfd` is something else.
    #[doc(alias = "pidfd_open")]
    pub fn attach_pidfd(&self, pidfd: impl AsFd) -> Result<()> {
        let pidfd = pidfd.as_fd();
        let pid = number_of(pidfd)?;
        let before = self.hierarchy().of_process(pid)?;
        self.attach(pid)?;
        // The number is the process's for as long as it lives. If it lives still, it was the one
        // that has been moved.
        if number_of(pidfd).is_ok() {
            return Ok(());
        }
        // Otherwise whoever has its number now, if anybody, goes back.
        match before.attach(pid) {
            Ok(()) | Err(Error::NoSuchProcess { .. }) => Err(Error::NoSuchProcess { pid }),
            Err(error) => Err(error),
        }
    }

    /// Moves the calling process into the group.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::attach`].
    pub fn attach_self(&self) -> Result<()> {
        self.attach(std::process::id())
    }

    /// Starts a program in the group: it is inside in every hierarchy before its first
    /// instruction, so nothing that it does escapes the accounting.
    ///
    /// The command is taken by value because it would enter the group again if it were spawned a
    /// second time.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] with what [`Command::spawn`] says: that may be the program's error or, from
    /// the new process, the group's refusal.
    pub fn spawn(&self, mut command: Command) -> Result<Child> {
        let mut files = Vec::new();
        for (_, dir) in self.members() {
            files.push(dir.open_file(PROCS, OFlags::WRONLY)?);
        }
        let program = PathBuf::from(command.get_program());
        sys::enter_before_exec(&mut command, files);
        command.spawn().map_err(|source| Error::Io {
            operation: "start in a control group",
            path: program,
            source,
        })
    }

    fn dir_in(&self, tree: &Tree) -> Option<&Dir> {
        self.members()
            .find(|(other, _)| std::ptr::eq(*other, tree))
            .map(|(_, dir)| dir)
    }
}

/// The number of a pidfd's process, in the pid namespace of `/proc`.
fn number_of(pidfd: BorrowedFd<'_>) -> Result<u32> {
    let path = PathBuf::from(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()));
    let unreadable = |source| Error::Io {
        operation: "read",
        path: path.clone(),
        source,
    };
    let text = std::fs::read_to_string(&path).map_err(unreadable)?;
    let field = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    let Some(number) = field.map(str::trim) else {
        return Err(unreadable(std::io::Error::from(Errno::BADF)));
    };
    // -1 for a process that has ended, 0 for one that is not visible here.
    match number.parse() {
        Ok(pid) if pid > 0 => Ok(pid),
        _ => Err(Error::NoSuchProcess { pid: 0 }),
    }
}

fn attach_one(dir: &Dir, pid: u32) -> Result<()> {
    // 0 would mean the calling process, and no process has a number beyond i32.
    if pid == 0 || i32::try_from(pid).is_err() {
        return Err(Error::NoSuchProcess { pid });
    }
    dir.write_raw(PROCS, &pid.to_string())
        .map_err(|errno| match errno {
            Errno::SRCH => Error::NoSuchProcess { pid },
            Errno::BUSY | Errno::NOSPC | Errno::OPNOTSUPP | Errno::INVAL | Errno::AGAIN => {
                Error::CannotAttach {
                    pid,
                    group: dir.path().to_owned(),
                    source: errno.into(),
                }
            }
            _ => dir.error("write", PROCS, errno),
        })
}

/// Adds the numbers in a file of one number a line to `pids`.
pub(crate) fn read_pids(
    dir: &Dir,
    file: &str,
    buffer: &mut Vec<u8>,
    pids: &mut Vec<u32>,
) -> Result<()> {
    dir.read_into(file, buffer).map_err(|errno| match errno {
        Errno::OPNOTSUPP => Error::Threaded {
            group: dir.path().to_owned(),
        },
        _ => dir.error("read", file, errno),
    })?;
    parse_pids(buffer, pids).map_err(|error| dir.unforeseen(file, error))
}

pub(crate) fn parse_pids(text: &[u8], pids: &mut Vec<u32>) -> Result<(), ParseError> {
    // Numbers of five digits, unless the machine is small or has counted far.
    pids.reserve(text.len() / 6 + 1);
    let mut rest = text;
    while let [first, ..] = rest {
        let mut number = 0_u32;
        let mut digits = 0;
        for byte in rest.iter().take_while(|byte| **byte != b'\n') {
            let digit = byte.wrapping_sub(b'0');
            let next = number
                .checked_mul(10)
                .and_then(|n| n.checked_add(u32::from(digit)));
            match next {
                Some(next) if digit < 10 => number = next,
                _ => return Err(no_pid(rest)),
            }
            digits += 1;
        }
        if *first != b'\n' {
            pids.push(number);
        }
        rest = rest.get(digits + 1..).unwrap_or_default();
    }
    Ok(())
}

#[cold]
fn no_pid(rest: &[u8]) -> ParseError {
    let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
    ParseError::new("a process id", &String::from_utf8_lossy(line))
}

/// Adds the processes of `dir` and of everything below it to `pids`.
pub(crate) fn read_pids_recursively(dir: &Dir, pids: &mut Vec<u32>) -> Result<()> {
    let mut buffer = Vec::new();
    // Threaded groups of v2 show their processes in the root of their domain only.
    match dir.read_into(PROCS, &mut buffer) {
        Ok(()) => parse_pids(&buffer, pids).map_err(|error| dir.unforeseen(PROCS, error))?,
        Err(Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(dir.error("read", PROCS, errno)),
    }
    crate::walk::post_order(dir.as_fd(), |_, _, child| {
        let read = rustix::fs::openat(
            child,
            PROCS,
            OFlags::RDONLY | OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .and_then(|file| crate::dir::read_all(file.as_fd(), &mut buffer));
        match read {
            // What has just been removed holds nothing.
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => Ok(()),
            Err(errno) => Err(Failure::Kernel(errno)),
            Ok(()) => parse_pids(&buffer, pids).map_err(Failure::Text),
        }
    })
    .map_err(|failure| match failure {
        Failure::Kernel(errno) => dir.error("read the processes below", "", errno),
        Failure::Text(error) => dir.unforeseen(PROCS, error),
    })
}

enum Failure {
    Kernel(Errno),
    Text(ParseError),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}
