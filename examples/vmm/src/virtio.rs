//! Virtio devices: what every device is, behind one small trait.
//!
//! A device sees [`Ring`]s of [`Chain`]s: it reads what the driver gave, writes what it may fill, and
//! gives the chain back. Registers, interrupts, threads and snapshots are the work of the
//! [`transport`] and the [`worker`], the same for all devices.

pub(crate) mod balloon;
pub(crate) mod block;
pub(crate) mod chain;
pub(crate) mod console;
pub(crate) mod entropy;
pub(crate) mod net;
pub(crate) mod rate;
pub(crate) mod ring;
pub(crate) mod transport;
pub(crate) mod vsock;
pub(crate) mod worker;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod mock;
#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::PollFlags;

pub(crate) use chain::Chain;
pub(crate) use ring::Ring;

/// Something else than the driver that a device waits for.
pub(crate) struct Source {
    pub(crate) fd: Arc<OwnedFd>,
    pub(crate) events: PollFlags,
}

impl Source {
    pub(crate) fn readable(fd: &Arc<OwnedFd>) -> Self {
        Self {
            fd: fd.clone(),
            events: PollFlags::IN,
        }
    }
}

/// What a device wants after it has done what it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// To be called when the driver or a source has something.
    Wait,
    /// To be called at once: there is more, and others are let in between.
    More,
    /// As `Wait`, but after this time at the latest.
    After(Duration),
}

/// A virtio device.
///
/// Its methods are called by one thread at a time, under a lock.
pub(crate) trait Device: Send {
    /// Its number in the specification.
    fn id(&self) -> u32;

    /// The most entries that each of its queues may have: powers of two.
    fn queues(&self) -> &'static [u16];

    /// What it offers, beyond what all devices do.
    fn features(&self) -> u64 {
        0
    }

    /// Its configuration space.
    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    /// The driver writes into the configuration space.
    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        let _ = (offset, bytes);
    }

    /// The driver is ready, and has accepted these features.
    fn activate(&mut self, features: u64) {
        let _ = features;
    }

    /// Does whatever there is to do: the driver may have put chains into any ring, and any source may
    /// be ready.
    fn process(&mut self, rings: &mut [Ring]) -> Next;

    /// What else than the driver it waits for.
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    /// Whether the configuration space has changed since the last call.
    fn config_changed(&mut self) -> bool {
        false
    }

    /// Forgets the driver.
    fn reset(&mut self) {}

    /// The state that a snapshot needs, beyond the registers and rings.
    fn save(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Takes up the state that [`Device::save`] gave; the driver is as it was.
    fn restore(&mut self, state: &serde_json::Value, features: u64) {
        let _ = state;
        self.activate(features);
    }

    /// The system calls that it makes beside those of every thread: in the jail it can make no others.
    fn calls(&self) -> &'static [i64] {
        &[]
    }

    /// Counters for the metrics.
    fn metrics(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Asks a balloon to become so big; false when it is none.
    fn set_balloon(&mut self, mib: u32) -> bool {
        let _ = mib;
        false
    }
}
