//! Spawning from a program with threads, an allocator in use, and a handler for SIGCHLD.

mod common;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use namespaces::{Command, Namespace, UserMapping};

/// How many processes are spawned: ten thousand, unless the number of cases of a property is given,
/// to be quick or to go deep.
fn count() -> usize {
    std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|cases| cases.parse::<usize>().ok())
        .map_or(10_000, |cases| cases * 50)
}

fn children() -> String {
    fs::read_dir("/proc/self/task")
        .expect("read")
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok())
        .collect()
}

#[test]
fn many_processes_from_many_threads() {
    const THREADS: usize = 8;
    let _alone = common::alone();
    let seen = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGCHLD, Arc::clone(&seen))
        .expect("install a handler");
    let fds = || fs::read_dir("/proc/self/fd").expect("read").count();
    let before = fds();
    let stop = AtomicBool::new(false);
    let started = Instant::now();
    std::thread::scope(|scope| {
        // Whenever a child is cloned, somebody holds the allocator's locks.
        for _ in 0..2 {
            scope.spawn(|| {
                let mut kept = Vec::new();
                let mut size = 1;
                while !stop.load(Ordering::Relaxed) {
                    size = (size * 7 + 3) % 100_000;
                    kept.push(vec![1_u8; size]);
                    if kept.len() > 100 {
                        kept.clear();
                    }
                }
            });
        }
        let spawners: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    for round in 0..count() / THREADS {
                        let mut command = Command::new("true");
                        match (thread + round) % 4 {
                            0 => {}
                            1 => {
                                command.arg0("x").env("A", "B").current_dir("/");
                            }
                            2 => {
                                command
                                    .unshare([Namespace::Uts, Namespace::Pid, Namespace::Mount])
                                    .user_namespace(UserMapping::CallerAsRoot)
                                    .hostname("many");
                            }
                            _ => {
                                command.current_dir("/no/such/directory");
                                assert!(command.spawn().is_err());
                                continue;
                            }
                        }
                        let mut child = command.spawn().expect("spawn");
                        let status = child
                            .wait_timeout(Duration::from_mins(1))
                            .expect("wait")
                            .expect("it ends");
                        assert!(status.success());
                    }
                })
            })
            .collect();
        let results: Vec<_> = spawners
            .into_iter()
            .map(std::thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::Relaxed);
        for result in results {
            assert!(result.is_ok(), "a thread failed");
        }
    });
    println!("{} processes in {:?}", count(), started.elapsed());
    assert!(seen.load(Ordering::Relaxed), "the handler was never called");
    assert_eq!(children(), "", "a process is left");
    assert_eq!(fds(), before, "a file descriptor is left");
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
