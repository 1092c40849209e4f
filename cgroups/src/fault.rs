//! Makes the nth write of a thread fail, so that tests reach every state in between.

use std::cell::Cell;

use rustix::io::Errno;

#[derive(Clone, Copy)]
enum Fault {
    None,
    /// After so many successes one failure.
    After(usize),
    /// After so many successes failures only.
    From(usize),
}

thread_local! {
    static FAULT: Cell<Fault> = const { Cell::new(Fault::None) };
}

/// Lets `successes` writes of this thread pass and fails the one after it.
pub(crate) fn after(successes: usize) {
    FAULT.set(Fault::After(successes));
}

/// Lets `successes` writes of this thread pass and fails all after it, until [`disarm`].
pub(crate) fn from(successes: usize) {
    FAULT.set(Fault::From(successes));
}

/// Whether a single failure is still to come.
pub(crate) fn disarm() -> bool {
    matches!(FAULT.replace(Fault::None), Fault::After(_))
}

pub(crate) fn check() -> Result<(), Errno> {
    match FAULT.get() {
        Fault::None => return Ok(()),
        Fault::After(0) => FAULT.set(Fault::None),
        Fault::From(0) => {}
        Fault::After(remaining) => {
            FAULT.set(Fault::After(remaining - 1));
            return Ok(());
        }
        Fault::From(remaining) => {
            FAULT.set(Fault::From(remaining - 1));
            return Ok(());
        }
    }
    Err(Errno::IO)
}
