//! The caller's terminal, while a command in the lab has it.

use std::io;

use rustix::termios::{OptionalActions, Termios};

/// The byte that Ctrl-] sends: it ends a lab whose command has the terminal.
pub(crate) const ESCAPE: u8 = 0x1d;

/// The terminal in raw mode, so that every key reaches the lab; as before when dropped.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    pub(crate) fn set() -> io::Result<Raw> {
        let before = rustix::termios::tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Raw { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing better can be done about a terminal that is gone.
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Rows and columns of the terminal.
pub(crate) fn size() -> (u16, u16) {
    rustix::termios::tcgetwinsize(io::stdin()).map_or((24, 80), |s| (s.ws_row, s.ws_col))
}
