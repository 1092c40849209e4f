//! The part of a plan that is about namespaces that exist: those joined by themselves, and those of a
//! process that is entered.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use crate::compile_fds::Fds;
use crate::plan::{JoinTime, Op};
use crate::sys::{self, PlanFd};
use crate::{Command, Error, Namespace, NamespaceId};

/// The process that is entered.
pub(crate) struct Entered {
    process: PlanFd,
    pub(crate) flags: u32,
    root: Option<PlanFd>,
}

/// What of the process behind the pidfd is not the caller's already.
pub(crate) fn entered(
    command: &Command,
    process: BorrowedFd<'_>,
    fds: &mut Fds,
) -> Result<Entered, Error> {
    let pid = pid_of(process)?;
    let taken = |kind| command.new.contains(&kind) || command.joined.contains_key(&kind);
    let mut flags = 0;
    for kind in Namespace::ALL {
        if !taken(kind)
            && let Some(own) = NamespaceId::of_this_thread_if_known(kind)?
            && NamespaceId::of_process(pid, kind)? != own
        {
            flags |= kind.flag();
        }
    }
    let path = PathBuf::from(format!("/proc/{pid}/root"));
    let root = rustix::fs::open(
        &path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let root =
        root.map_err(|errno| Error::io_path("open the root directory", path)(errno.into()))?;
    let place = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
    let look = Error::io("look at a root directory");
    let (theirs, ours) = match (rustix::fs::fstat(&root), rustix::fs::stat(c"/")) {
        (Ok(theirs), Ok(ours)) => (place(theirs), place(ours)),
        (Err(errno), _) | (_, Err(errno)) => return Err(look(errno.into())),
    };
    let moves = flags & Namespace::Mount.flag() != 0 || theirs != ours;
    // In another mount namespace the directory would not be in a mount of the program's.
    let root = if moves && !taken(Namespace::Mount) {
        Some(fds.take(root)?)
    } else {
        None
    };
    // All the above was of that process only if it still is there.
    pid_of(process)?;
    Ok(Entered {
        process: fds.hold(process)?,
        flags,
        root,
    })
}

/// The pid behind a pidfd, as the caller sees it.
fn pid_of(process: BorrowedFd<'_>) -> Result<u32, Error> {
    let path = format!("/proc/self/fdinfo/{}", process.as_raw_fd());
    let text =
        std::fs::read_to_string(&path).map_err(Error::io_path("look at the process of", path))?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    match pid.map(|pid| pid.trim().parse::<i64>()) {
        Some(Ok(pid @ 1..)) if is_pidfd(process) => {
            u32::try_from(pid).map_err(|_| Error::Invalid {
                setting: "enter",
                problem: "the kernel gave a pid that is none",
            })
        }
        Some(_) => Err(Error::Invalid {
            setting: "enter",
            problem: "the process has ended, or is not in the pid namespace of this one",
        }),
        None => Err(Error::Invalid {
            setting: "enter",
            problem: "the descriptor is not a pidfd; give a Child, a Process or a Starting",
        }),
    }
}

pub(crate) fn is_pidfd(fd: BorrowedFd<'_>) -> bool {
    // Signal 0 checks without sending; ESRCH is the answer of a pidfd of a process that ended.
    match sys::pidfd_send_signal(fd, 0) {
        Ok(()) => true,
        Err(error) => error.raw_os_error() != Some(libc::EBADF),
    }
}

pub(crate) fn joins(ops: &mut Vec<Op>, joined: &[(Namespace, PlanFd)], entered: Option<&Entered>) {
    if joined.is_empty() && entered.is_none() {
        return;
    }
    ops.push(Op::HideMemory);
    let join = |(kind, fd): &(Namespace, PlanFd), when| Op::Join {
        fd: *fd,
        kind: *kind,
        when,
    };
    let user = joined.iter().find(|(kind, _)| *kind == Namespace::User);
    let others = joined.iter().filter(|(kind, _)| *kind != Namespace::User);
    let enters_user = entered.is_some_and(|entered| entered.flags & Namespace::User.flag() != 0);
    let times: &[JoinTime] = if user.is_some() || enters_user {
        // Other namespaces may be owned by the joined user namespace or by an outer one: try with
        // the caller's rights first, and again with the new ones.
        &[JoinTime::BeforeUser, JoinTime::AfterUser]
    } else {
        &[JoinTime::Now]
    };
    for when in times {
        if *when == JoinTime::AfterUser {
            ops.extend(user.map(|user| join(user, JoinTime::Now)));
            ops.extend(entered.filter(|_| enters_user).and_then(enter));
        }
        ops.extend(others.clone().map(|other| join(other, *when)));
    }
    if let Some(entered) = entered {
        if !enters_user {
            ops.extend(enter(entered));
        }
        ops.extend(entered.root.map(Op::EnterRoot));
    }
}

fn enter(entered: &Entered) -> Option<Op> {
    (entered.flags != 0).then_some(Op::Enter {
        process: entered.process,
        flags: entered.flags,
    })
}
