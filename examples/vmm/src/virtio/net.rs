//! A network card (device 1) on a tap interface of the host.
//!
//! Packets pass with the offload header of the tap, so that checksums and the cutting of large
//! packets are left to whoever can do them: host and guest exchange up to 64 KiB at once.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::io::{Errno, readv, writev};

use super::rate::Limiter;
use super::{Device, Next, Ring, Source};
use crate::filter::call;

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;

/// The header in front of each packet: the guest's has two bytes more, for the count of buffers that
/// the packet is spread over.
const TAP_HEADER: usize = 10;
const GUEST_HEADER: usize = 12;
const NEEDS_CHECKSUM: u8 = 1;
/// The largest packet, cut by nobody yet, with its Ethernet header.
const PACKET: usize = 65535 + 18;

const RX: usize = 0;
const TX: usize = 1;

pub(crate) struct Net {
    tap: Arc<OwnedFd>,
    mac: [u8; 6],
    mtu: Option<u16>,
    features: u64,
    receive: Limiter,
    send: Limiter,
    /// A packet from the host that found no buffer.
    held: Option<usize>,
    buffer: Box<[u8]>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    received: u64,
    received_bytes: u64,
    sent: u64,
    sent_bytes: u64,
    dropped: u64,
}

/// Attaches to a tap interface, which is made if this process may and there is none.
pub(crate) fn open_tap(name: &str) -> io::Result<OwnedFd> {
    let tap = tun_rs::DeviceBuilder::new()
        .name(name)
        .layer(tun_rs::Layer::L2)
        .offload(true)
        .inherit_enable_state()
        .build_sync()?;
    let fd = tap.as_fd().try_clone_to_owned()?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}

impl Net {
    pub(crate) fn new(
        tap: OwnedFd,
        mac: [u8; 6],
        mtu: Option<u16>,
        (receive, send): (Limiter, Limiter),
    ) -> Self {
        Self {
            tap: Arc::new(tap),
            mac,
            mtu,
            features: 0,
            receive,
            send,
            held: None,
            buffer: vec![0; GUEST_HEADER + PACKET].into(),
            counts: Counts::default(),
        }
    }

    /// Reads a packet from the host into the buffer, after a header as the guest has it.
    fn fetch(&mut self) -> Option<usize> {
        if let Some(len) = self.held {
            return Some(len);
        }
        loop {
            let (header, packet) = self.buffer.split_at_mut(GUEST_HEADER);
            let mut into = [
                IoSliceMut::new(&mut header[..TAP_HEADER]),
                IoSliceMut::new(packet),
            ];
            let len = match readv(&*self.tap, &mut into) {
                Ok(n) => n.checked_sub(TAP_HEADER)?,
                Err(Errno::INTR) => continue,
                Err(_) => return None,
            };
            self.buffer[TAP_HEADER..GUEST_HEADER].copy_from_slice(&1u16.to_le_bytes());
            let is_large = self.buffer[1] != 0;
            if self.features & F_GUEST_CSUM == 0 && !is_large {
                finish_checksum(&mut self.buffer[..GUEST_HEADER + len]);
            }
            if is_large && self.features & (F_GUEST_TSO4 | F_GUEST_TSO6) == 0 {
                self.counts.dropped += 1;
                continue;
            }
            self.held = Some(len);
            return self.held;
        }
    }

    fn receive(&mut self, ring: &mut Ring) -> Next {
        let mut budget = 256;
        while ring.has_chain() {
            let Some(len) = self.fetch() else {
                return Next::Wait;
            };
            if budget == 0 {
                return Next::More;
            }
            budget -= 1;
            if let Err(time) = self.receive.take(len as u64) {
                return Next::After(time);
            }
            let buffer = &mut self.buffer[..GUEST_HEADER + len];
            let mut fits = true;
            let taken = if self.features & F_MRG_RXBUF == 0 {
                ring.one(|chain| {
                    fits = chain.room() >= buffer.len();
                    if fits {
                        chain.write(buffer);
                    }
                })
            } else {
                ring.several(buffer.len(), |chains| {
                    let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
                    buffer[TAP_HEADER..GUEST_HEADER].copy_from_slice(&count.to_le_bytes());
                    let mut rest = &buffer[..];
                    for taken in chains {
                        rest = &rest[taken.chain.write(rest)..];
                    }
                })
            };
            if !taken {
                return Next::Wait;
            }
            if fits {
                self.counts.received += 1;
                self.counts.received_bytes += len as u64;
            } else {
                self.counts.dropped += 1;
            }
            self.held = None;
        }
        Next::Wait
    }

    fn send(&mut self, ring: &mut Ring) -> Next {
        let mut wait = None;
        let mut bytes = vec![0; PACKET];
        let more = ring.each(|chain| {
            let len = chain.to_read().saturating_sub(GUEST_HEADER);
            if let Err(time) = self.send.take(len as u64) {
                wait = Some(time);
                return ControlFlow::Break(());
            }
            let Some(header) = chain.read_array::<GUEST_HEADER>() else {
                self.counts.dropped += 1;
                return ControlFlow::Continue(());
            };
            if len > bytes.len() {
                self.counts.dropped += 1;
                return ControlFlow::Continue(());
            }
            let packet = &mut bytes[..len];
            chain.read(packet);
            let parts = [IoSlice::new(&header[..TAP_HEADER]), IoSlice::new(packet)];
            // A host that does not take it loses it, as a network may.
            match writev(&*self.tap, &parts) {
                Ok(_) => {
                    self.counts.sent += 1;
                    self.counts.sent_bytes += len as u64;
                }
                Err(_) => self.counts.dropped += 1,
            }
            ControlFlow::Continue(())
        });
        match wait {
            Some(time) => Next::After(time),
            None if more => Next::More,
            None => Next::Wait,
        }
    }
}

/// Computes the checksum that the sender left to its network card (RFC 1071).
fn finish_checksum(buffer: &mut [u8]) {
    let (header, packet) = buffer.split_at_mut(GUEST_HEADER);
    if header[0] & NEEDS_CHECKSUM == 0 {
        return;
    }
    let start = usize::from(u16::from_le_bytes([header[6], header[7]]));
    let at = start + usize::from(u16::from_le_bytes([header[8], header[9]]));
    if at + 2 > packet.len() {
        return;
    }
    // The field holds the sum of the pseudo header, and is part of what is summed.
    let mut sum = 0u64;
    for pair in packet[start..].chunks(2) {
        sum += u64::from(u16::from_be_bytes([
            pair[0],
            pair.get(1).copied().unwrap_or(0),
        ]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let value = match !u16::try_from(sum).unwrap_or(0) {
        // Zero would mean that there is none.
        0 => 0xffff,
        n => n,
    };
    packet[at..at + 2].copy_from_slice(&value.to_be_bytes());
    header[0] &= !NEEDS_CHECKSUM;
}

impl Device for Net {
    fn id(&self) -> u32 {
        1
    }

    fn queues(&self) -> &'static [u16] {
        &[256, 256]
    }

    fn features(&self) -> u64 {
        let offloads =
            F_CSUM | F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_HOST_TSO4 | F_HOST_TSO6;
        let mtu = self.mtu.map_or(0, |_| F_MTU);
        F_MAC | F_STATUS | F_MRG_RXBUF | offloads | mtu
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.mac.to_vec();
        // The link is up; one pair of queues.
        config.extend(1u16.to_le_bytes());
        config.extend(1u16.to_le_bytes());
        config.extend(self.mtu.unwrap_or(0).to_le_bytes());
        config
    }

    fn activate(&mut self, features: u64) {
        self.features = features;
    }

    fn process(&mut self, rings: &mut [Ring]) -> Next {
        let received = self.receive(&mut rings[RX]);
        let sent = self.send(&mut rings[TX]);
        match (received, sent) {
            (Next::More, _) | (_, Next::More) => Next::More,
            (Next::After(a), Next::After(b)) => Next::After(a.min(b)),
            (Next::After(a), Next::Wait) | (Next::Wait, Next::After(a)) => Next::After(a),
            (Next::Wait, Next::Wait) => Next::Wait,
        }
    }

    fn sources(&self) -> Vec<Source> {
        // A packet that is held waits for the driver or for time, and those behind it too.
        match self.held {
            Some(_) => Vec::new(),
            None => vec![Source::readable(&self.tap)],
        }
    }

    fn reset(&mut self) {
        self.features = 0;
        self.held = None;
    }

    fn calls(&self) -> &'static [i64] {
        &[call::READV, call::WRITEV]
    }

    fn metrics(&self) -> serde_json::Value {
        let c = &self.counts;
        serde_json::json!({
            "kind": "net",
            "received": c.received,
            "received_bytes": c.received_bytes,
            "sent": c.sent,
            "sent_bytes": c.sent_bytes,
            "dropped": c.dropped,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_is_finished() {
        // The example of RFC 1071: 0001 f203 f4f5 f6f7 sums to ddf2.
        let mut buffer = vec![0; GUEST_HEADER];
        buffer[0] = NEEDS_CHECKSUM;
        buffer[8] = 8;
        buffer.extend([0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0]);
        finish_checksum(&mut buffer);
        assert_eq!(buffer[GUEST_HEADER + 8..], [0x22, 0x0d]);
        assert_eq!(buffer[0], 0);
        // Offsets that are nowhere change nothing.
        buffer[0] = NEEDS_CHECKSUM;
        buffer[6..10].fill(0xff);
        let before = buffer.clone();
        finish_checksum(&mut buffer);
        assert_eq!(buffer, before);
    }
}
