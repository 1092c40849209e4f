//! A 16550 serial port whose line is a `Write`.

use std::collections::VecDeque;
use std::io::{self, Write};

/// Interrupt enable register, and with DLAB set the divisor's upper half.
const IER: u16 = 1;
/// Interrupt identification when read, FIFO control when written.
const IIR: u16 = 2;
/// Line control; its top bit is DLAB.
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

const DLAB: u8 = 0x80;
const LOOPBACK: u8 = 0x10;
/// The transmitter is empty, in both of the ways that the register can say so.
const TRANSMITTER_EMPTY: u8 = 0x60;
const DATA_READY: u8 = 0x01;
const NO_INTERRUPT: u8 = 0x01;
const FIFOS_ON: u8 = 0xc0;

const IER_RECEIVED: u8 = 0x01;
const IER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_EMPTY: u8 = 0x02;
/// A part of MCR: without it a PC's port cannot interrupt.
const INTERRUPTS_OUT: u8 = 0x08;

/// What the port receives ahead of the guest, at most.
const FIFO: usize = 64;

/// The port's registers. It is always ready to send.
#[derive(Debug)]
pub(crate) struct Serial<W> {
    line: W,
    divisor: [u8; 2],
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    received: VecDeque<u8>,
    /// The guest has not been told yet that the transmitter became empty.
    emptied: bool,
    /// An interrupt is due.
    interrupt: bool,
}

/// The registers of a port, for a snapshot: divisor, enable, FIFO, line, modem and scratch; what was
/// received; and whether an empty transmitter is to be told of.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Saved {
    registers: [u8; 7],
    received: Vec<u8>,
    emptied: bool,
}

impl<W: Write> Serial<W> {
    pub(crate) fn new(line: W) -> Self {
        Self {
            line,
            // 9600 baud, what a PC's firmware leaves.
            divisor: [12, 0],
            interrupt_enable: 0,
            fifo_control: 0,
            line_control: 3,
            modem_control: 0,
            scratch: 0,
            received: VecDeque::new(),
            emptied: false,
            interrupt: false,
        }
    }

    fn dlab(&self) -> bool {
        self.line_control & DLAB != 0
    }

    /// How many more bytes can be received.
    pub(crate) fn room(&self) -> usize {
        FIFO - self.received.len().min(FIFO)
    }

    /// Bytes come in on the line; those that do not fit are lost.
    pub(crate) fn receive(&mut self, bytes: &[u8]) {
        let room = self.room();
        self.received.extend(bytes.iter().take(room));
        self.update();
    }

    /// Whether an interrupt has become due since this was asked last: the line's edge.
    pub(crate) fn take_interrupt(&mut self) -> bool {
        std::mem::take(&mut self.interrupt)
            && self.modem_control & (INTERRUPTS_OUT | LOOPBACK) == INTERRUPTS_OUT
    }

    /// Why the port interrupts now, the most urgent reason first.
    fn reason(&self) -> Option<u8> {
        if self.interrupt_enable & IER_RECEIVED != 0 && !self.received.is_empty() {
            Some(IIR_RECEIVED)
        } else if self.interrupt_enable & IER_EMPTY != 0 && self.emptied {
            Some(IIR_EMPTY)
        } else {
            None
        }
    }

    fn update(&mut self) {
        if self.reason().is_some() {
            self.interrupt = true;
        }
    }

    /// The guest reads the register at this offset (0 to 7).
    pub(crate) fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 if self.dlab() => self.divisor[0],
            0 => {
                let byte = self.received.pop_front().unwrap_or(0);
                self.update();
                byte
            }
            IER if self.dlab() => self.divisor[1],
            IER => self.interrupt_enable,
            IIR => {
                let reason = self.reason();
                if reason == Some(IIR_EMPTY) {
                    self.emptied = false;
                }
                let fifos = if self.fifo_control & 1 != 0 {
                    FIFOS_ON
                } else {
                    0
                };
                reason.unwrap_or(NO_INTERRUPT) | fifos
            }
            LCR => self.line_control,
            MCR => self.modem_control,
            LSR => {
                let ready = !self.received.is_empty();
                TRANSMITTER_EMPTY | if ready { DATA_READY } else { 0 }
            }
            // In loopback the outputs come back as inputs; otherwise: carrier, ready, clear to send.
            MSR if self.modem_control & LOOPBACK != 0 => {
                let out = self.modem_control;
                (out & 0x0c) << 4 | (out & 0x02) << 3 | (out & 0x01) << 5
            }
            MSR => 0xb0,
            SCR => self.scratch,
            _ => 0xff,
        }
    }

    /// The guest writes the register at this offset; says whether a byte went out on the line.
    pub(crate) fn write(&mut self, offset: u16, value: u8) -> io::Result<bool> {
        match offset {
            0 if self.dlab() => self.divisor[0] = value,
            0 if self.modem_control & LOOPBACK != 0 => self.receive(&[value]),
            0 => {
                self.emptied = true;
                self.update();
                self.line.write_all(&[value])?;
                self.line.flush()?;
                return Ok(true);
            }
            IER if self.dlab() => self.divisor[1] = value,
            IER => {
                // Who begins to listen is told that the transmitter is empty.
                if value & !self.interrupt_enable & IER_EMPTY != 0 {
                    self.emptied = true;
                }
                self.interrupt_enable = value & 0x0f;
                self.update();
            }
            IIR => {
                // Bit 1 empties what was received.
                if value & 2 != 0 {
                    self.received.clear();
                }
                self.fifo_control = value & 0xc9;
            }
            LCR => self.line_control = value,
            MCR => {
                self.modem_control = value & 0x1f;
                self.update();
            }
            SCR => self.scratch = value,
            _ => {}
        }
        Ok(false)
    }

    pub(crate) fn save(&self) -> Saved {
        Saved {
            registers: [
                self.divisor[0],
                self.divisor[1],
                self.interrupt_enable,
                self.fifo_control,
                self.line_control,
                self.modem_control,
                self.scratch,
            ],
            received: self.received.iter().copied().collect(),
            emptied: self.emptied,
        }
    }

    pub(crate) fn restore(&mut self, saved: &Saved) {
        let r = saved.registers;
        self.divisor = [r[0], r[1]];
        self.interrupt_enable = r[2] & 0x0f;
        self.fifo_control = r[3];
        self.line_control = r[4];
        self.modem_control = r[5] & 0x1f;
        self.scratch = r[6];
        self.received = saved.received.iter().copied().take(FIFO).collect();
        self.emptied = saved.emptied;
        self.update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_go_out_and_the_divisor_does_not() {
        let mut out = Vec::new();
        let mut port = Serial::new(&mut out);
        assert_eq!(port.read(LSR) & TRANSMITTER_EMPTY, TRANSMITTER_EMPTY);
        port.write(LCR, 0x83).unwrap();
        assert!(!port.write(0, 1).unwrap());
        assert_eq!((port.read(0), port.read(IER)), (1, 0));
        port.write(LCR, 3).unwrap();
        assert!(port.write(0, b'x').unwrap());
        assert_eq!(out, b"x");
    }

    #[test]
    fn a_driver_that_probes_finds_a_16550() {
        let mut port = Serial::new(Vec::new());
        port.write(SCR, 0x5a).unwrap();
        assert_eq!(port.read(SCR), 0x5a);
        port.write(IIR, 1).unwrap();
        assert_eq!(port.read(IIR), 0xc1);
        port.write(MCR, LOOPBACK | 0x0a).unwrap();
        assert_eq!(port.read(MSR), 0x90);
        assert!(!port.write(0, 7).unwrap());
        assert_eq!(port.read(LSR) & DATA_READY, DATA_READY);
        assert_eq!(port.read(0), 7);
        assert_eq!(port.read(LSR) & DATA_READY, 0);
    }

    #[test]
    fn it_interrupts_for_what_comes_and_for_what_went() {
        let mut port = Serial::new(Vec::new());
        port.receive(b"a");
        assert!(!port.take_interrupt());
        port.write(MCR, INTERRUPTS_OUT).unwrap();
        port.write(IER, IER_RECEIVED).unwrap();
        assert!(port.take_interrupt() && !port.take_interrupt());
        assert_eq!(port.read(IIR), IIR_RECEIVED);
        assert_eq!(port.read(0), b'a');
        assert_eq!(port.read(IIR), NO_INTERRUPT);
        port.write(IER, IER_EMPTY).unwrap();
        assert!(port.take_interrupt());
        assert_eq!((port.read(IIR), port.read(IIR)), (IIR_EMPTY, NO_INTERRUPT));
        port.write(0, b'b').unwrap();
        assert!(port.take_interrupt());
        port.receive(&[0; FIFO + 9]);
        assert_eq!(port.room(), 0);
        let mut other = Serial::new(Vec::new());
        other.restore(&port.save());
        assert_eq!(other.save(), port.save());
    }
}
