//! Every single system call of a plan is made to fail in turn, by a supervisor who answers for the
//! kernel: the error names the call, and nothing is left.
//!
//! Alone in its file: what a process has left is only to be seen while nothing else happens in it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use common::sys::{self, Call};
use common::{Rootfs, everything, traces};
use namespaces::{Command, Error};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What a plan calls that has no result by which to fail.
const INFALLIBLE: [libc::c_long; 5] = [
    libc::SYS_umask,
    libc::SYS_close,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
];

/// The names under which errors know calls that have several.
fn name(number: i64) -> Option<&'static str> {
    let names: BTreeMap<libc::c_long, &'static str> = BTreeMap::from([
        (libc::SYS_capset, "capset"),
        (libc::SYS_chdir, "chdir"),
        (libc::SYS_chroot, "chroot"),
        (libc::SYS_clone3, "clone3"),
        (libc::SYS_close_range, "close_range"),
        (libc::SYS_dup3, "dup3"),
        (libc::SYS_execve, "execve"),
        (libc::SYS_faccessat2, "execve"),
        (libc::SYS_fchdir, "fchdir"),
        (libc::SYS_fchmod, "fchmod"),
        (libc::SYS_fchown, "fchownat"),
        (libc::SYS_fchownat, "fchownat"),
        (libc::SYS_fcntl, "fcntl"),
        (libc::SYS_fsconfig, "fsconfig"),
        (libc::SYS_fsmount, "fsmount"),
        (libc::SYS_fsopen, "fsopen"),
        (libc::SYS_fstat, "fstat"),
        (libc::SYS_fstatfs, "fstat"),
        (libc::SYS_newfstatat, "fstat"),
        (libc::SYS_statx, "fstat"),
        (libc::SYS_getcwd, "getcwd"),
        (libc::SYS_getdents64, "getdents64"),
        (libc::SYS_ioctl, "ioctl"),
        (libc::SYS_ioprio_set, "ioprio_set"),
        (libc::SYS_keyctl, "keyctl"),
        (libc::SYS_mkdirat, "mkdirat"),
        (libc::SYS_mknodat, "mknodat"),
        (libc::SYS_mount, "mount"),
        (libc::SYS_mount_setattr, "mount_setattr"),
        (libc::SYS_move_mount, "move_mount"),
        (libc::SYS_openat, "openat"),
        (libc::SYS_openat2, "openat2"),
        (libc::SYS_open_tree, "open_tree"),
        (libc::SYS_personality, "personality"),
        (libc::SYS_pivot_root, "pivot_root"),
        (libc::SYS_prctl, "prctl"),
        (libc::SYS_prlimit64, "setrlimit"),
        (libc::SYS_read, "read"),
        (libc::SYS_readlinkat, "readlinkat"),
        (libc::SYS_rt_sigaction, "rt_sigaction"),
        (libc::SYS_rt_sigprocmask, "execve"),
        (libc::SYS_sched_setaffinity, "sched_setaffinity"),
        (libc::SYS_sched_setattr, "sched_setattr"),
        (libc::SYS_seccomp, "seccomp"),
        (libc::SYS_sendfile, "sendfile"),
        (libc::SYS_sendmsg, "sendmsg"),
        (libc::SYS_sendto, "sendto"),
        (libc::SYS_setdomainname, "setdomainname"),
        (libc::SYS_setgroups, "setgroups"),
        (libc::SYS_sethostname, "sethostname"),
        (libc::SYS_setns, "setns"),
        (libc::SYS_setpriority, "setpriority"),
        (libc::SYS_setresgid, "setresgid"),
        (libc::SYS_setresuid, "setresuid"),
        (libc::SYS_setsid, "setsid"),
        (libc::SYS_socket, "socket"),
        (libc::SYS_symlinkat, "symlinkat"),
        (libc::SYS_umount2, "umount2"),
        (libc::SYS_unshare, "unshare"),
        (libc::SYS_utimensat, "utimensat"),
        (libc::SYS_write, "write"),
        (libc::SYS_recvfrom, "recvfrom"),
    ]);
    names.get(&number).copied()
}

/// Calls that may fail without harm, each for its reason.
const SPARED: [&str; 8] = [
    // Of a build with assertions: whether what is to be closed is open.
    "fcntl",
    // The parent that is told has gone on, or is told by `write`.
    "sendto",
    // Times of a copy.
    "utimensat",
    // Whether the parent has ended: if it had, the process would end at its next word.
    "recvfrom",
    // A private /proc; the one at /proc is as good once it is known to be one.
    "fsopen",
    "fsconfig",
    "fsmount",
    // Which of the handlers were there to be reset, of a parent that had none.
    "rt_sigaction",
];

/// How an attempt ended.
#[derive(Debug)]
enum End {
    Status(Option<i32>),
    Error(Error),
}

/// Answers until the attempt has ended; lets the call of that index fail. The calls of the new
/// process up to its program, by number.
fn supervise(
    listener: &OwnedFd,
    own: u32,
    fail: Option<usize>,
    ended: &mpsc::Receiver<End>,
) -> (Vec<i64>, Option<End>) {
    let mut calls = Vec::new();
    let mut executed = BTreeSet::new();
    let mut end = None;
    loop {
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: 10_000_000,
        };
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        let ready = poll(&mut fds, Some(&wait)).unwrap_or(0);
        let revents = fds[0].revents();
        if ready > 0 && revents.contains(PollFlags::IN) {
            let Some(call) = sys::receive(listener.as_fd()).expect("receive") else {
                continue;
            };
            let errno = counted(call, own, &mut executed).and_then(|number| {
                calls.push(number);
                (fail == Some(calls.len() - 1)).then_some(libc::EIO)
            });
            sys::answer(listener.as_fd(), call, errno).expect("answer");
        } else if revents.contains(PollFlags::HUP) {
            // Every thread under the filter is gone.
            end = end.or_else(|| ended.try_recv().ok());
            return (calls, end);
        } else {
            end = end.or_else(|| ended.try_recv().ok());
        }
    }
}

/// Whether it is a call of the plan.
fn counted(call: Call, own: u32, executed: &mut BTreeSet<u32>) -> Option<i64> {
    if call.thread == own || executed.contains(&call.thread) || INFALLIBLE.contains(&call.number) {
        return None;
    }
    if call.number == libc::SYS_execve {
        executed.insert(call.thread);
    }
    Some(call.number)
}

/// Spawns what `plan` makes while the call of that index fails.
fn attempt(plan: &dyn Fn() -> Command, fail: Option<usize>) -> (Vec<i64>, End) {
    let mut command = plan();
    let (listens, listener) = mpsc::channel();
    let (ends, ended) = mpsc::channel();
    let (calls, end) = std::thread::scope(|scope| {
        scope.spawn(move || {
            let own = rustix::thread::gettid().as_raw_nonzero().get();
            let (listener, handed) = (
                sys::answer_for_me().expect("a filter"),
                mpsc::channel::<()>(),
            );
            listens.send((listener, own, handed.0)).expect("send");
            // The supervisor has it now, and is in this process: so it is in both counts.
            let _ = handed.1.recv();
            let before = traces();
            let end = match command.spawn() {
                Ok(mut child) => End::Status(child.wait().expect("wait").code()),
                Err(error) => End::Error(error),
            };
            assert_eq!(before, traces(), "something is left after {end:?}");
            ends.send(end).expect("send");
        });
        let (listener, own, handed) = listener.recv().expect("a listener");
        drop(handed);
        supervise(&listener, own.unsigned_abs(), fail, &ended)
    });
    let names = || calls.last().and_then(|number| name(*number));
    (
        calls.clone(),
        end.unwrap_or_else(|| panic!("no result with call {fail:?}, {:?}", names())),
    )
}

#[test]
fn every_call_that_fails_is_named_and_leaves_nothing() {
    let rootfs = Rootfs::new();
    let plan = || {
        let mut command = everything(&rootfs);
        command.arg0("sh");
        command
    };
    // Once before, for what the image is missing is made the first time only.
    let (_, _) = attempt(&plan, None);
    let (calls, end) = attempt(&plan, None);
    assert!(matches!(end, End::Status(Some(42))), "{end:?}");
    assert!(calls.len() > 100, "{} calls", calls.len());
    let mut spared = BTreeSet::new();
    for (index, number) in calls.iter().enumerate() {
        let call = name(*number).unwrap_or_else(|| panic!("call {number} has no name here"));
        let (_, end) = attempt(&plan, Some(index));
        match end {
            End::Status(status) => {
                assert_eq!(status, Some(42), "call {index}, {call}");
                spared.insert(call);
            }
            End::Error(Error::Step(error)) => {
                let named =
                    error.operation() == call && error.io_error().raw_os_error() == Some(libc::EIO);
                // What is looked up again in another way fails there, if it does.
                assert!(named, "call {index}, {call}: {error}");
                assert!(error.undone().len() < error.total());
            }
            End::Error(Error::NotExecutable { source, .. }) => {
                assert_eq!((call, source.raw_os_error()), ("execve", Some(libc::EIO)));
            }
            End::Error(error) => panic!("call {index}, {call}: {error}"),
        }
    }
    println!(
        "{} calls failed in turn; without harm: {spared:?}",
        calls.len()
    );
    for call in spared {
        assert!(SPARED.contains(&call), "{call} failed and nobody was told");
    }
}
