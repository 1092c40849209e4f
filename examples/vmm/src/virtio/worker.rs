//! The thread of a device: it waits for the driver and for the device's own sources.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::transport::Transport;
use super::{Next, Source};

/// Serves a device until it is stopped.
pub(crate) fn run(slot: &Arc<Mutex<Transport>>) {
    let wake = lock(slot).wake.clone();
    let mut next = Next::More;
    loop {
        let mut sources = vec![Source::readable(&wake.fd())];
        {
            let transport = lock(slot);
            if transport.stopped {
                return;
            }
            if transport.is_active() && !transport.paused {
                sources.extend(transport.device.sources());
            } else {
                next = Next::Wait;
            }
        }
        let timeout = match next {
            Next::Wait => None,
            Next::More => Some(Duration::ZERO),
            Next::After(time) => Some(time),
        };
        wait(&sources, timeout);
        wake.take();
        next = lock(slot).process();
    }
}

fn wait(sources: &[Source], timeout: Option<Duration>) {
    let mut fds: Vec<PollFd<'_>> = sources
        .iter()
        .map(|s| PollFd::new(&*s.fd, s.events | PollFlags::empty()))
        .collect();
    let timeout = timeout.map(|t| Timespec {
        tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: t.subsec_nanos().into(),
    });
    // Interrupted by a signal, it looks around once too often; nothing else can go wrong.
    let _ = poll(&mut fds, timeout.as_ref());
}

/// A device is in a known state between two of its methods, even if one of them panicked.
pub(crate) fn lock(slot: &Mutex<Transport>) -> std::sync::MutexGuard<'_, Transport> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}
