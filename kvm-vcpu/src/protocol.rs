//! How a running vCPU is stopped: what its thread and those that stop it say to one another.
//!
//! It knows neither signals nor KVM, so that a model checker can try every order of events
//! (`tests/model.rs`). What it synchronizes with is the caller's: `super::sync`.

use std::time::Instant;

use super::sync::{
    AtomicBool, AtomicI32, AtomicU8, Condvar, Mutex, Ordering, PoisonError, fence, spin_loop,
    wait_a_little, wait_timeout,
};

/// The vCPU is not in `run`.
const OUT: u8 = 0;
/// A thread is in `run`, and nobody has signalled it.
const IN: u8 = 1;
/// A kicker is about to signal the thread, which cannot leave `run` until it has.
const KICKING: u8 = 2;
/// The thread has been signalled in this run, which is enough for all who kick meanwhile.
const SIGNALLED: u8 = 3;

/// What a vCPU and its handles share.
///
/// A kick is `pending` until a run returns it. The signal only wakes the thread; it carries nothing.
/// Whoever kicks sets `pending` and then looks at `state`; whoever enters `run` sets `state` and then
/// looks at `pending`: with a fence between the two at least one of them sees the other.
#[derive(Debug)]
pub(crate) struct Shared<S> {
    /// Signals the thread with this number.
    signal: S,
    pending: AtomicBool,
    state: AtomicU8,
    tid: AtomicI32,
    paused: AtomicBool,
    /// Where a thread waits while the vCPU is paused.
    waiting: Mutex<()>,
    changed: Condvar,
}

impl<S: Fn(i32)> Shared<S> {
    pub(crate) fn new(signal: S) -> Self {
        Self {
            signal,
            pending: AtomicBool::new(false),
            state: AtomicU8::new(OUT),
            tid: AtomicI32::new(0),
            paused: AtomicBool::new(false),
            waiting: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn kick(&self) {
        self.pending.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.signal_if_running();
        if self.paused.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    pub(crate) fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        self.signal_if_running();
        // Whoever enters from here on sees `paused` and is out again before the guest's next
        // instruction.
        let mut tries = 0u32;
        while self.state.load(Ordering::SeqCst) != OUT {
            wait_a_little(tries);
            tries = tries.saturating_add(1);
        }
    }

    pub(crate) fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        // With the lock held, so that nobody is between looking and waiting.
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// Waits while the vCPU is paused, nobody kicks it, and the deadline has not passed; says whether it
    /// waited for any of them.
    pub(crate) fn wait_while_paused(&self, deadline: Option<Instant>) -> bool {
        let is_paused =
            || self.paused.load(Ordering::SeqCst) && !self.pending.load(Ordering::SeqCst);
        if !is_paused() || deadline.is_some_and(|d| Instant::now() >= d) {
            return false;
        }
        let mut guard = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while is_paused() {
            guard = match deadline {
                None => self
                    .changed
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    wait_timeout(&self.changed, guard, left)
                }
            };
        }
        true
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Whether a run has to end before the guest's next instruction.
    fn is_wanted(&self) -> bool {
        self.pending.load(Ordering::SeqCst) || self.paused.load(Ordering::SeqCst)
    }

    fn signal_if_running(&self) {
        loop {
            match self
                .state
                .compare_exchange(IN, KICKING, Ordering::SeqCst, Ordering::SeqCst)
            {
                Ok(_) => break,
                // Not in `run`: the next one sees `pending`.
                Err(OUT | SIGNALLED) => return,
                Err(_) => spin_loop(),
            }
        }
        // The thread stays in this run until `state` changes, and a kick that is no longer pending was
        // returned by the run before.
        let after = if self.is_wanted() {
            (self.signal)(self.tid.load(Ordering::SeqCst));
            SIGNALLED
        } else {
            IN
        };
        self.state.store(after, Ordering::SeqCst);
    }

    /// Marks this thread as running the vCPU; says whether it has to come back at once.
    pub(crate) fn enter(&self, tid: i32) -> bool {
        self.tid.store(tid, Ordering::Relaxed);
        // With the thread's number; the fence does the rest.
        self.state.store(IN, Ordering::Release);
        fence(Ordering::SeqCst);
        self.is_wanted()
    }

    /// Marks the vCPU as not running. No signal of a kick is sent to this thread from here on.
    pub(crate) fn leave(&self) {
        let mut seen = IN;
        while let Err(now) =
            self.state
                .compare_exchange(seen, OUT, Ordering::SeqCst, Ordering::SeqCst)
        {
            seen = if now == KICKING { IN } else { now };
            spin_loop();
        }
    }

    /// Takes the pending kick, if there is one.
    pub(crate) fn take(&self) -> bool {
        // An exchange that takes nothing is a store all the same, and one more for a kick to be ordered
        // with.
        self.pending.load(Ordering::SeqCst) && self.pending.swap(false, Ordering::SeqCst)
    }
}
