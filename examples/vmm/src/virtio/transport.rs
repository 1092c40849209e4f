//! The registers between driver and device: virtio over MMIO, version 2.
//!
//! See the Virtual I/O Device specification 1.2, section 4.2.

use std::io;

use kvm_vcpu::GuestMemory;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueT as _};

use super::{Device, Next, Ring, ring};
use crate::event::Event;

mod register {
    pub(super) const MAGIC: u64 = 0x00;
    pub(super) const VERSION: u64 = 0x04;
    pub(super) const DEVICE: u64 = 0x08;
    pub(super) const VENDOR: u64 = 0x0c;
    pub(super) const DEVICE_FEATURES: u64 = 0x10;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(super) const DRIVER_FEATURES: u64 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(super) const QUEUE_SEL: u64 = 0x30;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x34;
    pub(super) const QUEUE_NUM: u64 = 0x38;
    pub(super) const QUEUE_READY: u64 = 0x44;
    pub(super) const QUEUE_NOTIFY: u64 = 0x50;
    pub(super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(super) const INTERRUPT_ACK: u64 = 0x64;
    pub(super) const STATUS: u64 = 0x70;
    pub(super) const QUEUE_DESC: u64 = 0x80;
    pub(super) const QUEUE_DRIVER: u64 = 0x90;
    pub(super) const QUEUE_DEVICE: u64 = 0xa0;
    pub(super) const CONFIG_GENERATION: u64 = 0xfc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// The register whose writes the kernel turns into signals.
pub(crate) const NOTIFY: u64 = register::QUEUE_NOTIFY;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VENDOR: u32 = u32::from_le_bytes(*b"cffr");

const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 0x40;
const FAILED: u32 = 0x80;
const ALL_STATUS: u32 = 1 | 2 | DRIVER_OK | FEATURES_OK | NEEDS_RESET | FAILED;

const USED_BUFFER: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;

/// What all devices here can do.
const COMMON_FEATURES: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;

/// A device with its registers.
pub(crate) struct Transport {
    pub(crate) device: Box<dyn Device>,
    pub(crate) rings: Vec<Ring>,
    memory: GuestMemory,
    /// Interrupts the guest.
    pub(crate) interrupt: Event,
    /// Wakes the worker.
    pub(crate) wake: Event,
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    interrupt_status: u32,
    config_generation: u32,
    /// Nothing is done while the machine is paused.
    pub(crate) paused: bool,
    pub(crate) stopped: bool,
}

impl Transport {
    pub(crate) fn new(device: Box<dyn Device>, memory: GuestMemory) -> io::Result<Self> {
        let mut this = Self {
            device,
            rings: Vec::new(),
            memory,
            interrupt: Event::new()?,
            wake: Event::new()?,
            status: 0,
            driver_features: 0,
            device_features_sel: 0,
            driver_features_sel: 0,
            queue_sel: 0,
            interrupt_status: 0,
            config_generation: 0,
            paused: false,
            stopped: false,
        };
        this.rings = this.fresh_rings()?;
        Ok(this)
    }

    fn fresh_rings(&self) -> io::Result<Vec<Ring>> {
        let ring = |size: &u16| {
            let queue = Queue::new(*size).map_err(io::Error::other)?;
            Ok(Ring::new(queue, self.memory.clone()))
        };
        self.device.queues().iter().map(ring).collect()
    }

    fn offered(&self) -> u64 {
        COMMON_FEATURES | self.device.features()
    }

    /// Whether the driver is ready and nothing has gone wrong.
    pub(crate) fn is_active(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// The driver reads a register.
    pub(crate) fn read(&mut self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            let config = self.device.config();
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            for (byte, value) in out.iter_mut().zip(config.iter().skip(at)) {
                *byte = *value;
            }
            return;
        }
        // All others are read whole.
        if out.len() == 4 && offset.is_multiple_of(4) {
            out.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn read_register(&mut self, offset: u64) -> u32 {
        match offset {
            register::MAGIC => MAGIC,
            register::VERSION => 2,
            register::DEVICE => self.device.id(),
            register::VENDOR => VENDOR,
            register::DEVICE_FEATURES => half(self.offered(), self.device_features_sel),
            register::QUEUE_NUM_MAX => self.ring().map_or(0, |r| r.queue.max_size().into()),
            register::QUEUE_READY => self.ring().map_or(0, |r| r.queue.ready().into()),
            register::INTERRUPT_STATUS => self.interrupt_status,
            register::STATUS => self.status,
            register::CONFIG_GENERATION => self.config_generation,
            _ => 0,
        }
    }

    fn ring(&mut self) -> Option<&mut Ring> {
        self.rings.get_mut(self.queue_sel as usize)
    }

    /// The driver writes a register.
    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) {
        if let Some(at) = offset.checked_sub(register::CONFIG) {
            if self.status & FEATURES_OK != 0 {
                self.device
                    .write_config(usize::try_from(at).unwrap_or(usize::MAX), bytes);
                self.wake.signal();
            }
            return;
        }
        let Ok(value) = bytes.try_into().map(u32::from_le_bytes) else {
            return;
        };
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::DRIVER_FEATURES if self.status & FEATURES_OK == 0 => {
                let shift = match self.driver_features_sel {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                let mask = u64::from(u32::MAX) << shift;
                self.driver_features = self.driver_features & !mask | u64::from(value) << shift;
            }
            register::QUEUE_SEL => self.queue_sel = value,
            register::QUEUE_NOTIFY => self.wake.signal(),
            register::INTERRUPT_ACK => self.interrupt_status &= !value,
            register::STATUS => self.set_status(value),
            _ => self.set_up_queue(offset, value),
        }
    }

    /// The registers of the selected queue, which can be set only before it is used.
    fn set_up_queue(&mut self, offset: u64, value: u32) {
        let negotiated = self.status & (FEATURES_OK | DRIVER_OK) == FEATURES_OK;
        let active = self.status & DRIVER_OK != 0;
        let Some(ring) = self.ring() else { return };
        let queue = &mut ring.queue;
        if offset == register::QUEUE_READY {
            if negotiated || active && value == 0 {
                queue.set_ready(value == 1);
            }
            return;
        }
        if !negotiated || queue.ready() {
            return;
        }
        match offset {
            register::QUEUE_NUM => {
                if let Ok(size) = u16::try_from(value) {
                    queue.set_size(size);
                }
            }
            register::QUEUE_DESC => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            register::QUEUE_DRIVER => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            register::QUEUE_DEVICE => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        // Bits are only ever added; that a reset is needed is the device's to say.
        let added = value & ALL_STATUS & !NEEDS_RESET & !self.status;
        self.status |= added;
        if added & FEATURES_OK != 0 {
            let accepted = self.driver_features;
            if accepted & VERSION_1 == 0 || accepted & !self.offered() != 0 {
                self.status &= !FEATURES_OK;
            }
        }
        if added & DRIVER_OK != 0 {
            if self.status & FEATURES_OK == 0 {
                self.status &= !DRIVER_OK;
                return;
            }
            for ring in &mut self.rings {
                ring.queue
                    .set_event_idx(self.driver_features & EVENT_IDX != 0);
            }
            self.device.activate(self.driver_features);
            self.wake.signal();
        }
    }

    fn reset(&mut self) {
        self.device.reset();
        if let Ok(rings) = self.fresh_rings() {
            self.rings = rings;
        }
        self.status = 0;
        self.driver_features = 0;
        self.queue_sel = 0;
        self.interrupt_status = 0;
        self.wake.signal();
    }

    /// Lets the device do what there is to do, and tells the driver of it.
    pub(crate) fn process(&mut self) -> Next {
        if !self.is_active() || self.paused {
            return Next::Wait;
        }
        let next = self.device.process(&mut self.rings);
        let mut reasons = 0;
        for ring in &mut self.rings {
            if ring.take_interrupt() {
                reasons |= USED_BUFFER;
            }
            if ring.broken && self.status & NEEDS_RESET == 0 {
                self.status |= NEEDS_RESET;
                tracing::warn!(kind = self.device.id(), "driver broke its queue");
                reasons |= CONFIG_CHANGED;
            }
        }
        if self.device.config_changed() {
            self.config_generation = self.config_generation.wrapping_add(1);
            reasons |= CONFIG_CHANGED;
        }
        if reasons != 0 {
            self.interrupt_status |= reasons;
            self.interrupt.signal();
        }
        next
    }

    pub(crate) fn save(&self) -> Saved {
        Saved {
            device: self.device.id(),
            status: self.status,
            driver_features: self.driver_features,
            device_features_sel: self.device_features_sel,
            driver_features_sel: self.driver_features_sel,
            queue_sel: self.queue_sel,
            interrupt_status: self.interrupt_status,
            config_generation: self.config_generation,
            rings: self.rings.iter().map(Ring::save).collect(),
            state: self.device.save(),
        }
    }

    /// Takes up a saved state; the error says what does not fit.
    pub(crate) fn restore(&mut self, saved: &Saved) -> Result<(), &'static str> {
        if saved.device != self.device.id() || saved.rings.len() != self.rings.len() {
            return Err("a virtio device of another kind");
        }
        if saved.driver_features & !self.offered() != 0 {
            return Err("virtio features that the device has not now");
        }
        for (ring, saved) in self.rings.iter_mut().zip(&saved.rings) {
            if !ring.restore(saved) {
                return Err("a virtio queue that cannot be");
            }
        }
        self.status = saved.status & ALL_STATUS;
        self.driver_features = saved.driver_features;
        self.device_features_sel = saved.device_features_sel;
        self.driver_features_sel = saved.driver_features_sel;
        self.queue_sel = saved.queue_sel;
        self.interrupt_status = saved.interrupt_status;
        self.config_generation = saved.config_generation;
        if self.is_active() {
            self.device.restore(&saved.state, saved.driver_features);
            // An interrupt that was on its way is sent once more; one too many does no harm.
            if self.interrupt_status != 0 {
                self.interrupt.signal();
            }
        }
        self.wake.signal();
        Ok(())
    }
}

fn half(features: u64, select: u32) -> u32 {
    let shifted = match select {
        0 => features,
        1 => features >> 32,
        _ => 0,
    };
    u32::try_from(shifted & u64::from(u32::MAX)).unwrap_or(0)
}

/// A device's registers and state in a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    device: u32,
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    interrupt_status: u32,
    config_generation: u32,
    rings: Vec<ring::Saved>,
    state: serde_json::Value,
}
