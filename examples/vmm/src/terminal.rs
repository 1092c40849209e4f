//! The person's terminal while the guest has it: raw, and as before whatever happens.

use std::io;
use std::sync::Mutex;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Ctrl-], which takes the terminal back and ends the machine, as telnet and the lab have it.
pub(crate) const DETACH: u8 = 0x1d;

/// What the terminal was like, for those who end the process without unwinding.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// The terminal in raw mode; as before when dropped.
pub(crate) struct Raw(());

impl Raw {
    /// Makes standard input raw if it is a terminal.
    pub(crate) fn set() -> io::Result<Option<Self>> {
        if !isatty(io::stdin()) {
            return Ok(None);
        }
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        // Output is processed as before, so that this program's own messages stay readable.
        raw.output_modes = before.output_modes;
        *BEFORE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(before);
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        // A panic aborts in a release build: nothing is dropped then.
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        Ok(Some(Self(())))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Puts the terminal back as it was, once.
pub(crate) fn restore() {
    let before = BEFORE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    if let Some(before) = before {
        // Nothing better can be done about a terminal that is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}
