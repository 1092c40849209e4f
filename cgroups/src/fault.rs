//! Makes the nth write of a thread fail, so that tests reach every state in between.

use std::cell::Cell;

use rustix::io::Errno;

thread_local! {
    static REMAINING: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Lets `successes` writes of this thread pass and fails the one after it.
pub(crate) fn after(successes: usize) {
    REMAINING.set(Some(successes));
}

/// Whether the failure is still to come.
pub(crate) fn disarm() -> bool {
    REMAINING.take().is_some()
}

pub(crate) fn check() -> Result<(), Errno> {
    match REMAINING.get() {
        None => Ok(()),
        Some(0) => {
            REMAINING.set(None);
            Err(Errno::IO)
        }
        Some(remaining) => {
            REMAINING.set(Some(remaining - 1));
            Ok(())
        }
    }
}
