//! Whose memory a new process runs in before it executes its program: where nothing speaks against
//! it, the caller's, so that it does not count how large the caller is.

mod common;

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;

use common::{Rootfs, sys};
use namespaces::{Command, IdMap, Mount, Namespace, UserMapping};

/// Changed while the process is about to execute its program.
static MARK: AtomicU8 = AtomicU8::new(0);

/// What the process finds at the mark, as somebody else sees it.
fn mark_of(pid: u32) -> u8 {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("open its memory");
    let mut byte = [0];
    let address = MARK.as_ptr().addr().try_into().expect("an address");
    memory.read_exact_at(&mut byte, address).expect("read");
    byte[0]
}

/// Spawns, and tells whether the process is in this one's memory when it executes its program.
fn shares(mut command: Command) -> bool {
    MARK.store(1, Ordering::SeqCst);
    let (listens, listener) = mpsc::channel();
    std::thread::scope(|scope| {
        let spawner = scope.spawn(move || {
            let own = rustix::thread::gettid().as_raw_nonzero().get();
            listens
                .send((sys::answer_for_me().expect("a filter"), own.unsigned_abs()))
                .expect("send");
            command.spawn().expect("spawn").wait().expect("wait")
        });
        let (listener, own) = listener.recv().expect("a listener");
        let mut shared = None;
        while let Some(call) = sys::next(listener.as_fd()).expect("receive") {
            if call.number == libc::SYS_execve && call.thread != own && shared.is_none() {
                MARK.store(2, Ordering::SeqCst);
                shared = Some(mark_of(call.thread) == 2);
            }
            sys::answer(listener.as_fd(), call, None).expect("answer");
        }
        assert!(spawner.join().expect("join").success());
        shared.expect("it executed a program")
    })
}

fn can_be_looked_into() -> bool {
    rustix::process::dumpable_behavior().expect("ask")
        == rustix::process::DumpableBehavior::Dumpable
}

/// One test: the mark is everybody's.
#[test]
#[ignore = "needs root"]
fn memory_is_shared_where_that_is_sound() {
    let rootfs = Rootfs::new();
    let plain = || Command::new("/bin/true");
    let container = |kinds: &[Namespace]| {
        let mut command = common::container(&rootfs, "true");
        command
            .unshare(kinds.iter().copied())
            .mounts(Mount::standard());
        command
    };
    let with = |change: &dyn Fn(&mut Command)| {
        let mut command = plain();
        change(&mut command);
        command
    };
    let newer = |major, minor| {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        let mut numbers = release.split('.').map(str::parse::<u32>);
        let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
        (next(), next()) >= (major, minor)
    };
    let exact = |outside| UserMapping::Exact {
        uids: IdMap::single(0, outside),
        gids: IdMap::single(0, 0),
    };
    for (what, command, expected) in [
        ("nothing", plain(), true),
        (
            "no user namespace",
            with(&|command| {
                command.unshare([Namespace::Mount, Namespace::Pid]);
            }),
            true,
        ),
        ("a user namespace", container(&[]), true),
        (
            "a time namespace",
            container(&[Namespace::Time]),
            newer(6, 6),
        ),
        (
            "the caller's own id",
            with(&|command| {
                command.user_namespace(exact(0));
            }),
            true,
        ),
        (
            "another's id",
            with(&|command| {
                command.user_namespace(exact(1000));
            }),
            false,
        ),
        (
            "another user",
            with(&|command| {
                command.uid(1000);
            }),
            false,
        ),
        (
            "an OOM score, which would be ours",
            with(&|command| {
                command.oom_score_adj(500);
            }),
            false,
        ),
        (
            "an init, which stays",
            with(&|command| {
                command.init(true);
            }),
            false,
        ),
        (
            "joining",
            with(&|command| {
                command.join_path(Namespace::Uts, "/proc/self/ns/uts");
            }),
            false,
        ),
    ] {
        assert_eq!(shares(command), expected, "{what}");
        assert!(can_be_looked_into(), "{what}");
        let score = std::fs::read_to_string("/proc/self/oom_score_adj").expect("read");
        assert_ne!(score.trim(), "500", "{what}");
    }
}
