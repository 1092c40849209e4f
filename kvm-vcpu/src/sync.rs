//! What the protocol of stopping is made of; a model checker has its own.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering, fence};
pub(crate) use std::sync::{Condvar, Mutex, PoisonError};

use std::sync::MutexGuard;
use std::thread;
use std::time::Duration;

/// Lets others run, the longer the more often it was in vain.
pub(crate) fn wait_a_little(tries: u32) {
    if tries < 100 {
        thread::yield_now();
    } else {
        thread::sleep(Duration::from_micros(50));
    }
}

pub(crate) fn wait_timeout<'a, T>(
    changed: &Condvar,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    let waited = changed.wait_timeout(guard, time);
    waited.unwrap_or_else(PoisonError::into_inner).0
}
