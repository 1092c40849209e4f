//! What comes from outside: keys for the serial port, and signals.

use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::board::End;
use crate::error::Error;
use crate::filter::Work;
use crate::machine::{Assembled, Happening};
use crate::terminal::DETACH;

/// Ends the machine in order when this process is told to end.
pub(crate) fn catch_signals(happens: Sender<Happening>, jailed: bool) -> Result<(), Error> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM]).map_err(|source| Error::Host {
        what: "catch signals",
        source,
    })?;
    thread::spawn(move || {
        if jailed && Work::Signals.hold().is_err() {
            return;
        }
        for _ in signals.forever() {
            if happens
                .send(Happening::Ended(Ok(Some(End::Stopped))))
                .is_err()
            {
                return;
            }
        }
    });
    Ok(())
}

/// Gives the guest's serial port what comes on standard input, and ends the machine at the detach key.
pub(crate) fn pass_to_serial(machine: &Arc<Assembled>, happens: Sender<Happening>, jailed: bool) {
    let machine = Arc::downgrade(machine);
    let is_terminal = rustix::termios::isatty(io::stdin().as_fd());
    thread::spawn(move || {
        if jailed && Work::Input.hold().is_err() {
            return;
        }
        let mut bytes = [0; 64];
        while let Ok(n @ 1..) = io::stdin().lock().read(&mut bytes) {
            let mut rest = &bytes[..n];
            if is_terminal && rest.contains(&DETACH) {
                let _ = happens.send(Happening::Ended(Ok(Some(End::Stopped))));
                return;
            }
            while !rest.is_empty() {
                let Some(machine) = machine.upgrade() else {
                    return;
                };
                let mut serial = machine.board.serial();
                let now = serial.room().min(rest.len());
                serial.receive(&rest[..now]);
                machine.board.interrupt_for(&mut serial);
                drop(serial);
                rest = &rest[now..];
                if !rest.is_empty() {
                    // The guest has not read yet what came before.
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
    });
}
