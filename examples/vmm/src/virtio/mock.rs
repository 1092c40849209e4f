//! A driver in this process: it drives a device through its registers and its rings in memory, as it
//! should be or with malice.
#![cfg_attr(not(test), allow(dead_code, reason = "the fuzzer only has malice"))]

use std::fs::File;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use kvm_vcpu::{GuestMemory, Region};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::Device;
use super::balloon::Balloon;
use super::block::Block;
use super::console::Console;
use super::entropy::Entropy;
use super::net::Net;
use super::rate::{Limiter, Rate};
use super::transport::Transport;
use super::vsock::Vsock;

/// Memory of the pretended guest.
pub(crate) const MEMORY: u64 = 1 << 20;
pub(crate) const SIZE: u16 = 16;
/// Each queue has a page: descriptors, then the available ring, then the used ring.
pub(crate) const QUEUES: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// Where buffers begin.
pub(crate) const BUFFERS: u64 = 0x1_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A device and its driver.
pub(crate) struct Mock {
    pub(crate) transport: Transport,
    pub(crate) memory: GuestMemory,
    available: Vec<u16>,
    used: Vec<u16>,
}

impl Mock {
    /// Sets a device up as a driver does that accepts everything but the EVENT_IDX feature.
    pub(crate) fn new(device: impl Device + 'static) -> Self {
        Self::with_features(device, !(1 << 29))
    }

    pub(crate) fn with_features(device: impl Device + 'static, mask: u64) -> Self {
        let memory = GuestMemory::new(&[Region::anonymous(0, MEMORY)]).unwrap();
        let queues = device.queues().len();
        let mut this = Self {
            transport: Transport::new(Box::new(device), memory.clone()).unwrap(),
            memory,
            available: vec![0; queues],
            used: vec![0; queues],
        };
        this.set(0x70, 1 | 2);
        for half in 0..2 {
            this.set(0x14, half);
            let offered = this.get(0x10);
            this.set(0x24, half);
            let mask = (mask >> (32 * half)) & 0xffff_ffff;
            this.set(0x20, offered & u32::try_from(mask).unwrap());
        }
        this.set(0x70, 1 | 2 | 8);
        assert_eq!(this.get(0x70), 11);
        for (queue, at) in (0..u32::try_from(queues).unwrap()).zip((QUEUES..).step_by(0x1000)) {
            let at = u32::try_from(at).unwrap();
            this.set(0x30, queue);
            this.set(0x38, SIZE.into());
            this.set(0x80, at);
            this.set(0x90, at + u32::try_from(AVAILABLE).unwrap());
            this.set(0xa0, at + u32::try_from(USED).unwrap());
            this.set(0x44, 1);
        }
        this.set(0x70, 15);
        this
    }

    pub(crate) fn set(&mut self, register: u64, value: u32) {
        self.transport.write(register, &value.to_le_bytes());
    }

    pub(crate) fn get(&mut self, register: u64) -> u32 {
        let mut bytes = [0; 4];
        self.transport.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn page(queue: usize) -> u64 {
        QUEUES + 0x1000 * queue as u64
    }

    /// Writes a descriptor.
    pub(crate) fn descriptor(
        &self,
        queue: usize,
        index: u16,
        (at, len, flags, next): (u64, u32, u16, u16),
    ) {
        let to = Self::page(queue) + 16 * u64::from(index);
        self.memory.write_value(to, at).unwrap();
        self.memory.write_value(to + 8, len).unwrap();
        self.memory.write_value(to + 12, flags).unwrap();
        self.memory.write_value(to + 14, next).unwrap();
    }

    /// Makes the chain that begins with this descriptor available.
    pub(crate) fn offer(&mut self, queue: usize, head: u16) {
        let ring = Self::page(queue) + AVAILABLE;
        let slot = u64::from(self.available[queue] % SIZE);
        self.memory.write_value(ring + 4 + 2 * slot, head).unwrap();
        self.available[queue] = self.available[queue].wrapping_add(1);
        self.memory
            .write_value(ring + 2, self.available[queue])
            .unwrap();
    }

    /// Sets the index of the available ring, whatever is in it.
    pub(crate) fn set_available(&mut self, queue: usize, index: u16) {
        self.available[queue] = index;
        let ring = Self::page(queue) + AVAILABLE;
        self.memory.write_value(ring + 2, index).unwrap();
    }

    /// The chains that the device gave back since this was asked last, each with how much was written.
    pub(crate) fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let ring = Self::page(queue) + USED;
        let index: u16 = self.memory.read_value(ring + 2).unwrap();
        let mut used = Vec::new();
        while self.used[queue] != index {
            let at = ring + 4 + 8 * u64::from(self.used[queue] % SIZE);
            let [head, len] = [at, at + 4].map(|at| self.memory.read_value(at).unwrap());
            used.push((head, len));
            self.used[queue] = self.used[queue].wrapping_add(1);
        }
        used
    }

    /// Puts a chain together from what the device may read and how much it may write, lets the device
    /// work, and gives what it wrote; `None` when it did not give the chain back.
    pub(crate) fn request(
        &mut self,
        queue: usize,
        read: &[&[u8]],
        write: &[u32],
    ) -> Option<Vec<u8>> {
        let mut at = BUFFERS;
        let mut parts = Vec::new();
        for bytes in read {
            self.memory.write(at, bytes).unwrap();
            parts.push((at, u32::try_from(bytes.len()).unwrap(), 0));
            at += bytes.len() as u64;
        }
        let writable = at;
        for len in write {
            parts.push((at, *len, WRITE));
            at += u64::from(*len);
        }
        let count = u16::try_from(parts.len()).unwrap();
        for (index, (at, len, flags)) in (0..count).zip(parts) {
            let more = if index + 1 < count { NEXT } else { 0 };
            self.descriptor(queue, index, (at, len, flags | more, index + 1));
        }
        self.offer(queue, 0);
        self.transport.process();
        let (_, len) = *self.used(queue).first()?;
        let mut out = vec![0; usize::try_from(at - writable).unwrap()];
        self.memory.read(writable, &mut out).unwrap();
        assert!(
            len as usize <= out.len(),
            "the device says that it wrote more than it may"
        );
        Some(out)
    }
}

/// What a malicious driver does next.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Writes a register.
    Register(u64, Vec<u8>),
    /// Reads so many bytes of one.
    Read(u64, usize),
    /// Writes a descriptor of a queue: its number, address, length, flags and next.
    Descriptor(usize, u16, (u64, u32, u16, u16)),
    /// Makes a chain available.
    Offer(usize, u16),
    /// Says that chains are available.
    Available(usize, u16),
    /// Writes anything into the queues' memory.
    Scribble(u64, Vec<u8>),
    /// Lets the device work.
    Process,
}

impl Mock {
    /// Does what a malicious driver does.
    pub(crate) fn take(&mut self, step: Step) {
        let queues = self.transport.rings.len();
        match step {
            Step::Register(r, bytes) => self.transport.write(r, &bytes),
            Step::Read(r, n) => self.transport.read(r, &mut vec![0; n]),
            Step::Descriptor(q, index, parts) => self.descriptor(q % queues, index, parts),
            Step::Offer(q, h) => self.offer(q % queues, h),
            Step::Available(q, i) => self.set_available(q % queues, i),
            Step::Scribble(a, bytes) => self.memory.write(a, &bytes).unwrap(),
            Step::Process => {
                self.transport.process();
            }
        }
    }

    /// What holds whatever a driver did: the device's work ends, a reset makes it as new, and its
    /// state stays small.
    pub(crate) fn check(&mut self) {
        let begin = Instant::now();
        self.transport.process();
        assert!(begin.elapsed().as_secs() < 10, "it works for too long");
        self.set(0x70, 0);
        assert_eq!(self.get(0x70), 0);
        let saved = serde_json::to_string(&self.transport.save()).unwrap();
        assert!(saved.len() < 64 << 10, "it has grown");
    }
}

/// How many kinds of devices there are for [`any_device`].
pub(crate) const KINDS: usize = 8;

/// A device of each kind, for a driver with malice.
pub(crate) fn any_device(kind: usize) -> Mock {
    let unlimited = || Limiter::new(Rate::default());
    let file = || {
        let memfd = rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(memfd);
        file.set_len(64 * 512).unwrap();
        file
    };
    match kind % KINDS {
        0 => Mock::new(Block::new(file(), false, "", unlimited()).unwrap()),
        1 => Mock::with_features(Block::new(file(), true, "", unlimited()).unwrap(), u64::MAX),
        2 => Mock::with_features(Entropy::new(unlimited()), u64::MAX),
        3 | 4 => {
            let (tap, _gone) = rustix::net::socketpair(
                AddressFamily::UNIX,
                SocketType::DGRAM,
                SocketFlags::NONBLOCK,
                None,
            )
            .unwrap();
            let net = Net::new(tap, [2; 6], None, (unlimited(), unlimited()));
            // With all that it offers, or without buffers that are merged.
            let mask = if kind % KINDS == 3 {
                u64::MAX
            } else {
                !(1 << 15)
            };
            Mock::with_features(net, mask)
        }
        5 => Mock::new(Console::new(None, file()).unwrap()),
        6 => Mock::new(Balloon::new(
            GuestMemory::new(&[Region::anonymous(0, MEMORY)]).unwrap(),
        )),
        _ => {
            static NUMBER: AtomicUsize = AtomicUsize::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            // A socket without a file.
            let name = format!("cofferdam-vmm-{}-{number}", std::process::id());
            let address = SocketAddr::from_abstract_name(name).unwrap();
            let listener = UnixListener::bind_addr(&address).unwrap();
            listener.set_nonblocking(true).unwrap();
            Mock::with_features(Vsock::new(3, "/nonexistent/v".into(), listener), u64::MAX)
        }
    }
}
