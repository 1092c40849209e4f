//! Every order of events in which a vCPU can be stopped, tried by a model checker: no kick is lost or
//! doubled, no signal comes after the run that it was for, and no instruction of a paused guest is executed.
//!
//! The protocol is the library's own source, on loom's primitives. What stands for the kernel is
//! `Cpu`: a guest that never exits by itself, and a run that ends when the thread is signalled.
//!
//! Under Miri (`cargo +nightly miri test -p cofferdam-kvm-vcpu --test model`) they are the library's own, on threads
//! that Miri switches at random: `MIRIFLAGS=-Zmiri-many-seeds` tries more.

use std::sync::Arc;

#[cfg(not(miri))]
use loom::thread;
#[cfg(miri)]
use std::thread;

#[cfg(miri)]
#[path = "../src/sync.rs"]
mod sync;

#[cfg(not(miri))]
mod sync {
    pub(crate) use loom::hint::spin_loop;
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering, fence};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;

    pub(crate) fn wait_a_little(_tries: u32) {
        loom::thread::yield_now();
    }

    pub(crate) fn wait_timeout<'a, T>(
        changed: &Condvar,
        guard: MutexGuard<'a, T>,
        _time: std::time::Duration,
    ) -> MutexGuard<'a, T> {
        changed.wait(guard).unwrap()
    }
}

#[allow(dead_code)]
#[path = "../src/protocol.rs"]
mod protocol;

use protocol::Shared;
use sync::{AtomicBool, Condvar, Mutex, Ordering};

const TID: i32 = 7;

/// The run of a vCPU's thread in the kernel.
#[derive(Default)]
struct Cpu {
    /// Whether the thread is between entering and leaving, where signals reach it.
    is_armed: AtomicBool,
    /// What the handler sets and the kernel looks at (`immediate_exit`).
    is_signalled: Mutex<bool>,
    changed: Condvar,
    /// Whether an instruction of the guest may be executed.
    in_guest: AtomicBool,
}

type Vcpu = Shared<Box<dyn Fn(i32) + Send + Sync>>;

fn vcpu() -> (Arc<Vcpu>, Arc<Cpu>) {
    let cpu = Arc::new(Cpu::default());
    let signalled = cpu.clone();
    let signal = move |tid| {
        assert_eq!(tid, TID);
        assert!(
            signalled.is_armed.load(Ordering::SeqCst),
            "a signal to a thread that is not in a run"
        );
        *signalled.is_signalled.lock().unwrap() = true;
        signalled.changed.notify_one();
    };
    (Arc::new(Shared::new(Box::new(signal) as Box<_>)), cpu)
}

/// As `Vcpu::run`: comes back when it is kicked.
fn run(shared: &Vcpu, cpu: &Cpu) {
    loop {
        *cpu.is_signalled.lock().unwrap() = false;
        cpu.is_armed.store(true, Ordering::SeqCst);
        if !shared.enter(TID) {
            let mut signalled = cpu.is_signalled.lock().unwrap();
            if !*signalled {
                cpu.in_guest.store(true, Ordering::SeqCst);
                while !*signalled {
                    signalled = cpu.changed.wait(signalled).unwrap();
                }
                cpu.in_guest.store(false, Ordering::SeqCst);
            }
        }
        shared.leave();
        cpu.is_armed.store(false, Ordering::SeqCst);
        if shared.wait_while_paused(None) {
            continue;
        }
        if shared.take() {
            return;
        }
    }
}

/// Tries every order with no more than two switches of threads that were not forced; most faults show
/// with fewer, and all orders would take hours.
#[cfg(not(miri))]
fn every_order(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.max_branches = 100_000;
    builder.check(model);
}

#[cfg(miri)]
fn every_order(model: impl Fn() + Send + Sync + 'static) {
    (0..20).for_each(|_| model());
}

#[cfg(not(miri))]
const PREEMPTIONS: usize = 2;

#[test]
fn a_kick_ends_one_run_and_one_alone() {
    every_order(|| {
        let (shared, cpu) = vcpu();
        let kicked = shared.clone();
        let kicker = thread::spawn(move || kicked.kick());
        run(&shared, &cpu);
        kicker.join().unwrap();
        assert!(!shared.take(), "a kick was doubled");
    });
}

#[test]
fn a_paused_guest_stands_still_until_it_is_resumed() {
    every_order(|| {
        let (shared, cpu) = vcpu();
        let (other, seen) = (shared.clone(), cpu.clone());
        let controller = thread::spawn(move || {
            other.pause();
            assert!(!seen.in_guest.load(Ordering::SeqCst), "it still runs");
            other.resume();
            other.kick();
        });
        run(&shared, &cpu);
        controller.join().unwrap();
    });
}
