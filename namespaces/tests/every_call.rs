//! Every single system call of a plan is made to fail in turn, by a supervisor who answers for the
//! kernel: the error names the call, and nothing is left. So are those of an init, of the program
//! below it, and of a program that enters a container.
//!
//! Alone in its file: what a process has left is only to be seen while nothing else happens in it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;

use common::sys::{self, Call};
use common::{Rootfs, container, everything, traces};
use namespaces::{Command, Error, Stdio};

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
        (libc::SYS_process_vm_writev, "process_vm_writev"),
        (libc::SYS_read, "read"),
        (libc::SYS_readlinkat, "readlinkat"),
        (libc::SYS_rt_sigaction, "rt_sigaction"),
        (libc::SYS_rt_sigprocmask, "execve"),
        (libc::SYS_rt_sigtimedwait, "rt_sigtimedwait"),
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
        (libc::SYS_wait4, "wait4"),
        (libc::SYS_write, "write"),
        (libc::SYS_recvfrom, "recvfrom"),
    ]);
    names.get(&number).copied()
}

/// Calls that may fail without harm, each for its reason.
const SPARED: [&str; 13] = [
    // Of a build with assertions: whether what is to be closed is open.
    "fcntl",
    // The parent that is told has gone on, or is told by `write`.
    "sendto",
    "behind: sendto",
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
    // What the init does for tidiness: descriptors are closed one by one, and it keeps its name, its
    // directory or its arguments.
    "behind: close_range",
    "behind: prctl",
    "behind: process_vm_writev",
    "behind: chdir",
];

/// Without these the init cannot know of its program: it ends, with the status of a failure.
const FATAL: [&str; 2] = ["behind: rt_sigtimedwait", "behind: wait4"];

/// A process of a plan, in the order of their first calls, and the number of a call of it.
type Place = (usize, usize);

/// How an attempt ended.
#[derive(Debug)]
enum End {
    Status(Option<i32>),
    Error(Error),
}

/// The calls that new processes make up to their programs, by process.
#[derive(Debug, Default)]
struct Calls {
    processes: Vec<u32>,
    numbers: Vec<Vec<i64>>,
    executed: BTreeSet<u32>,
}

impl Calls {
    /// Where the call stands; `None` when it is none of a plan.
    fn add(&mut self, call: Call, own: u32) -> Option<Place> {
        if call.thread == own
            || self.executed.contains(&call.thread)
            || INFALLIBLE.contains(&call.number)
        {
            return None;
        }
        if call.number == libc::SYS_execve {
            self.executed.insert(call.thread);
        }
        let known = self.processes.iter().position(|pid| *pid == call.thread);
        let process = known.unwrap_or_else(|| {
            self.processes.push(call.thread);
            self.numbers.push(Vec::new());
            self.numbers.len() - 1
        });
        let numbers = &mut self.numbers[process];
        numbers.push(call.number);
        Some((process, numbers.len() - 1))
    }

    fn places(&self) -> Vec<Place> {
        let of = |(process, numbers): (usize, &Vec<i64>)| {
            (0..numbers.len()).map(move |index| (process, index))
        };
        self.numbers.iter().enumerate().flat_map(of).collect()
    }

    /// The name of the call, and whether its process has cloned the one that goes on before: as an
    /// init does, and what joins a pid namespace.
    fn name(&self, (process, index): Place) -> Option<String> {
        let numbers = self.numbers.get(process)?;
        let number = *numbers.get(index)?;
        let call = name(number).unwrap_or_else(|| panic!("call {number} has no name here"));
        let cloned = numbers[..index].contains(&libc::SYS_clone3);
        let prefix = if cloned { "behind: " } else { "" };
        Some(format!("{prefix}{call}"))
    }
}

/// Answers until the attempt has ended; lets the call at that place fail.
fn supervise(
    listener: &OwnedFd,
    own: u32,
    fail: Option<Place>,
    ended: &mpsc::Receiver<End>,
) -> (Calls, Option<End>) {
    let mut calls = Calls::default();
    while let Some(call) = sys::next(listener.as_fd()).expect("receive") {
        let place = calls.add(call, own);
        let errno = (place.is_some() && place == fail).then_some(libc::EIO);
        sys::answer(listener.as_fd(), call, errno).expect("answer");
    }
    // Every thread under the filter is gone, so it is there.
    (calls, ended.try_recv().ok())
}

/// Spawns what `plan` makes while the call of that index fails.
fn attempt(plan: &dyn Fn() -> Command, fail: Option<Place>) -> (Calls, End) {
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
    let end = end.unwrap_or_else(|| panic!("no result with call {fail:?}, {calls:?}"));
    (calls, end)
}

/// Lets the calls of what `plan` makes fail in turn; the program of the plan ends with 42.
fn fail_in_turn(plan: &dyn Fn() -> Command, least: usize) {
    // Once before, for what the image is missing is made the first time only.
    let (_, _) = attempt(plan, None);
    let (calls, end) = attempt(plan, None);
    assert!(matches!(end, End::Status(Some(42))), "{end:?}");
    let places = calls.places();
    assert!(places.len() > least, "{} calls", places.len());
    // All of them, unless the number of cases of a property is given, to be quick.
    let cases = std::env::var("PROPTEST_CASES").ok();
    let most = cases.and_then(|cases| cases.parse::<usize>().ok());
    let step = most.map_or(1, |cases| places.len().div_ceil(cases.max(1) * 5));
    let mut spared = BTreeSet::new();
    let mut failed = 0;
    for place in places.into_iter().step_by(step) {
        let (calls, end) = attempt(plan, Some(place));
        // When the kernel says that something was mounted meanwhile, calls are made again: what is
        // at this place now counts, if anything.
        let Some(call) = calls.name(place) else {
            assert!(matches!(end, End::Status(Some(42))), "{end:?}");
            continue;
        };
        failed += 1;
        match end {
            End::Status(Some(125)) if FATAL.contains(&call.as_str()) => {}
            // The same, before the program was executed.
            End::Error(Error::Died { status }) if FATAL.contains(&call.as_str()) => {
                assert_eq!(status.code(), Some(125), "{call}");
            }
            End::Status(status) => {
                assert_eq!(status, Some(42), "call {place:?}, {call}");
                spared.insert(call);
            }
            End::Error(Error::Step(error)) => {
                let named =
                    error.operation() == call && error.io_error().raw_os_error() == Some(libc::EIO);
                // What is looked up again in another way fails there, if it does.
                assert!(named, "call {place:?}, {call}: {error}");
                assert!(error.undone().len() < error.total());
            }
            End::Error(Error::NotExecutable { source, .. }) => {
                assert_eq!((&*call, source.raw_os_error()), ("execve", Some(libc::EIO)));
            }
            End::Error(error) => panic!("call {place:?}, {call}: {error}"),
        }
    }
    println!("{failed} calls failed in turn; without harm: {spared:?}");
    for call in spared {
        assert!(
            SPARED.contains(&call.as_str()),
            "{call} failed and nobody was told"
        );
    }
}

/// Set in the process that does it, among mounts of its own.
const INSIDE: &str = "COFFERDAM_EVERY_CALL";

/// One test: what is left is counted.
#[test]
fn every_call_that_fails_is_named_and_leaves_nothing() {
    if std::env::var_os(INSIDE).is_none() {
        let mut inside = common::among_own_mounts("/proc/self/exe");
        inside
            .args([
                "--exact",
                "every_call_that_fails_is_named_and_leaves_nothing",
            ])
            .arg("--nocapture")
            .env(INSIDE, "1");
        println!("{}", common::stdout(&mut inside));
        return;
    }
    let rootfs = Rootfs::new();
    fail_in_turn(
        &|| {
            let mut command = everything(&rootfs);
            command.arg0("sh");
            command
        },
        100,
    );
    fail_in_turn(
        &|| {
            let mut command = container(&rootfs, "exit 42");
            command.init(true).new_session(true).current_dir("/bin");
            command
        },
        30,
    );
    let mut command = container(&rootfs, "cat");
    let living = command.stdin(Stdio::piped()).spawn().expect("spawn");
    fail_in_turn(
        &|| {
            let mut command = Command::new("/bin/sh");
            command
                .args(["-c", "exit 42"])
                .enter(&living)
                .current_dir("/bin")
                .no_new_privs(true);
            command
        },
        15,
    );
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
