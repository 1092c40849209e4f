//! What the vCPUs are wired to: ports, and addresses that are no memory.

use std::io::{self, Stdout};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::acpi::virtio_place;
use crate::error::Error;
use crate::event::Event;
use crate::layout::{
    EXIT_PORT, KEYBOARD, PANIC_PORT, RESET_PORT, RESTART, SERIAL, SLEEP_PORT, VIRTIO, VIRTIO_SIZE,
};
use crate::serial::Serial;
use crate::stats::Stats;
use crate::virtio::transport::Transport;
use crate::virtio::worker::lock;

/// How a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The guest switched it off, or halted for good.
    Off,
    /// The guest asked for a restart.
    Restart,
    /// The guest's kernel panicked.
    Panic,
    /// The guest gave this status through the exit port.
    Status(u8),
    /// Someone outside ended it.
    Stopped,
}

impl End {
    /// The process's exit status.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Off => 0,
            Self::Restart => 12,
            Self::Panic => 14,
            Self::Stopped => 16,
            Self::Status(status) => status,
        }
    }
}

/// Writing this to the keyboard controller pulses the CPU's reset line.
const PULSE_RESET: u8 = 0xfe;
/// ACPI's sleep enable bit, and the sleep state 5 in its place.
const SLEEP_OFF: u8 = 1 << 5 | 5 << 2;
/// What a driver of pvpanic is told that there is, and says: a panic, and a crash kernel that runs.
const PANICKED: u8 = 1;

/// The devices that vCPUs reach.
pub(crate) struct Board {
    serial: Mutex<Serial<Stdout>>,
    /// The serial port's interrupt, in a machine that has interrupts.
    pub(crate) serial_line: Option<Event>,
    pub(crate) virtio: Vec<Arc<Mutex<Transport>>>,
    pub(crate) stats: Stats,
}

impl Board {
    pub(crate) fn new(
        serial_line: Option<Event>,
        virtio: Vec<Arc<Mutex<Transport>>>,
        stats: Stats,
    ) -> Self {
        Self {
            serial: Mutex::new(Serial::new(io::stdout())),
            serial_line,
            virtio,
            stats,
        }
    }

    /// The serial port; registers are whole between two accesses.
    pub(crate) fn serial(&self) -> MutexGuard<'_, Serial<Stdout>> {
        self.serial.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Raises the serial port's line if it has become due.
    pub(crate) fn interrupt_for(&self, serial: &mut Serial<Stdout>) {
        if let Some(line) = &self.serial_line
            && serial.take_interrupt()
        {
            line.signal();
        }
    }

    /// The guest writes to a port.
    pub(crate) fn port_out(&self, port: u16, data: &[u8]) -> Result<Option<End>, Error> {
        let first = data.first().copied().unwrap_or(0);
        match port {
            _ if SERIAL.contains(&port) => {
                let mut serial = self.serial();
                for byte in data {
                    let went_out = serial
                        .write(port - SERIAL.start, *byte)
                        .map_err(|source| Error::Output { source })?;
                    if went_out {
                        self.stats.output();
                    }
                }
                self.interrupt_for(&mut serial);
                Ok(None)
            }
            EXIT_PORT => Ok(Some(End::Status(first << 1 | 1))),
            // A guest without interrupts has none of these.
            _ if self.serial_line.is_none() => Ok(None),
            RESET_PORT if first == RESTART => Ok(Some(End::Restart)),
            SLEEP_PORT if first & SLEEP_OFF == SLEEP_OFF => Ok(Some(End::Off)),
            PANIC_PORT if first & PANICKED != 0 => Ok(Some(End::Panic)),
            KEYBOARD if first == PULSE_RESET => Ok(Some(End::Restart)),
            _ => Ok(None),
        }
    }

    /// The guest reads a port; `None` is an empty bus.
    pub(crate) fn port_in(&self, port: u16, len: usize) -> Option<Vec<u8>> {
        match port {
            _ if SERIAL.contains(&port) => {
                let mut serial = self.serial();
                let bytes = (0..len).map(|_| serial.read(port - SERIAL.start)).collect();
                self.interrupt_for(&mut serial);
                Some(bytes)
            }
            PANIC_PORT if self.serial_line.is_some() => Some(vec![PANICKED; len]),
            // It takes commands at once: who restarts by it does not wait for long.
            KEYBOARD if self.serial_line.is_some() => Some(vec![0; len]),
            _ => None,
        }
    }

    fn device(&self, address: u64) -> Option<(MutexGuard<'_, Transport>, u64)> {
        let offset = address.checked_sub(VIRTIO)?;
        let index = usize::try_from(offset / VIRTIO_SIZE).ok()?;
        Some((lock(self.virtio.get(index)?), offset % VIRTIO_SIZE))
    }

    /// The guest writes to an address without memory.
    pub(crate) fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some((mut device, offset)) = self.device(address) {
            let before = device.is_active();
            device.write(offset, data);
            let ready = device.is_active();
            if ready != before {
                let kind = device.device.id();
                tracing::info!(kind, at = format_args!("{address:#x}"), ready, "driver");
            }
        }
    }

    /// The guest reads an address without memory; `None` is an empty bus.
    pub(crate) fn memory_read(&self, address: u64, len: usize) -> Option<u64> {
        let (mut device, offset) = self.device(address)?;
        let mut bytes = [0; 8];
        device.read(offset, &mut bytes[..len.min(8)]);
        Some(u64::from_le_bytes(bytes))
    }

    /// Each virtio device with its address and interrupt line.
    pub(crate) fn placed(&self) -> impl Iterator<Item = (u64, u32, &Arc<Mutex<Transport>>)> {
        self.virtio.iter().zip(0..).map(|(device, index)| {
            let (at, line) = virtio_place(index);
            (at, line, device)
        })
    }
}
