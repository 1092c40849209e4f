//! What the fuzzer calls: each function takes anything, and panics where something does not hold.
#![allow(clippy::missing_panics_doc, reason = "that is what they are for")]

use std::sync::LazyLock;

use kvm_vcpu::{GuestMemory, Region};

use crate::config::{Machine, Mode};
use crate::control;
use crate::image::{self, Image};
use crate::serial::Serial;
use crate::snapshot::Description;
use crate::virtio::mock::{MEMORY, Mock, SIZE, Step, any_device};

/// Bytes that become numbers.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// The next byte; `None` at the end.
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// A number of so many bytes, or of those that are left.
    fn number(&mut self, len: usize) -> u64 {
        (0..len).fold(0, |n, _| n << 8 | u64::from(self.byte().unwrap_or(0)))
    }

    fn small(&mut self, below: u16) -> u16 {
        u16::try_from(self.number(2) % u64::from(below)).unwrap_or(0)
    }

    fn bytes(&mut self, most: u16) -> Vec<u8> {
        let len = usize::from(self.small(most) + 1).min(self.0.len());
        let (bytes, rest) = self.0.split_at(len);
        self.0 = rest;
        bytes.to_vec()
    }

    /// An address that is mostly in the guest's memory.
    fn address(&mut self) -> u64 {
        match self.byte() {
            Some(0) => self.number(8),
            _ => self.number(3) % (MEMORY + 16),
        }
    }

    fn step(&mut self) -> Option<Step> {
        let kind = self.byte()?;
        let queue = usize::from(kind >> 4);
        Some(match kind & 7 {
            0 => Step::Register(self.number(2) % 0x200, self.bytes(8)),
            1 => Step::Read(self.number(2) % 0x200, usize::from(self.small(9))),
            2 | 3 => {
                let (index, address) = (self.small(SIZE), self.address());
                let len = u32::try_from(self.number(3)).unwrap_or(0);
                let parts = (address, len, self.small(8), self.small(SIZE + 2));
                Step::Descriptor(queue, index, parts)
            }
            4 => Step::Offer(queue, self.small(SIZE + 1)),
            5 => Step::Available(queue, self.small(u16::MAX)),
            6 => Step::Scribble(0x1000 + self.number(2) % 0x3000, self.bytes(64)),
            _ => Step::Process,
        })
    }
}

/// A virtio device, whose registers, queues and memory are driven by someone with malice.
pub fn device(bytes: &[u8]) {
    let mut input = Input(bytes);
    let Some(kind) = input.byte() else { return };
    let mut mock = any_device(kind.into());
    while let Some(step) = input.step() {
        mock.take(step);
    }
    mock.check();
}

/// The serial port's registers, and what comes on its line.
pub fn serial(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut port = Serial::new(Vec::new());
    while let Some(what) = input.byte() {
        let register = u16::from(what & 7);
        match what >> 3 & 3 {
            0 => port.receive(&input.bytes(100)),
            1 => {
                port.read(register);
            }
            _ => {
                let value = input.byte().unwrap_or(0);
                assert!(port.write(register, value).is_ok(), "memory takes all");
            }
        }
        port.take_interrupt();
    }
    let saved = port.save();
    let mut other = Serial::new(Vec::new());
    other.restore(&saved);
    assert_eq!(other.save(), saved);
}

static GUEST: LazyLock<GuestMemory> = LazyLock::new(|| {
    let regions = [Region::anonymous(0, 32 << 20)];
    GuestMemory::new(&regions).unwrap_or_else(|e| panic!("memory for the fuzzer: {e}"))
});

/// A kernel's file, of any kind, with the protocol that its first byte chooses.
pub fn kernel(bytes: &[u8]) {
    let Some((choice, image)) = bytes.split_first() else {
        return;
    };
    let modes = [
        Mode::Auto,
        Mode::Linux,
        Mode::Pvh,
        Mode::Multiboot,
        Mode::Protected,
        Mode::Long,
        Mode::Real,
    ];
    let mode = image::mode(modes[usize::from(*choice) % modes.len()], image);
    let _ = crate::boot::linux::version(image);
    if let Ok(machine) = Machine::parse(r#"{"kernel": "k", "command_line": "console=ttyS0"}"#)
        && let Ok(entry) = image::load(&machine, &Image::whole(image), mode, None, &GUEST)
    {
        assert!(!format!("{entry:?}").is_empty());
    }
}

/// A machine file: what is read is written and read the same.
pub fn machine(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    for option in text.lines() {
        let _ = option.parse::<crate::config::Disk>();
        let _ = option.parse::<crate::config::Network>();
        let _ = option.parse::<crate::config::Vsock>();
    }
    let Ok(machine) = Machine::parse(text) else {
        return;
    };
    let _ = machine.check();
    // Paths that are no text cannot come from JSON.
    let again = serde_json::to_string(&machine).map(|t| Machine::parse(&t));
    assert!(matches!(again, Ok(Ok(again)) if again == machine));
}

/// What comes on the control socket.
pub fn request(mut bytes: &[u8]) {
    if let Err((status, problem)) = control::read_request(&mut bytes) {
        assert!((400..500).contains(&status) && !problem.is_empty());
    }
}

/// A snapshot's description: the devices in it are brought to life and work.
pub fn snapshot(bytes: &[u8]) {
    let Ok(description) = Description::parse(bytes) else {
        return;
    };
    for (saved, kind) in description.devices().iter().zip(0..) {
        let mut mock: Mock = any_device(kind);
        if mock.transport.restore(saved).is_ok() {
            mock.check();
        }
    }
}
