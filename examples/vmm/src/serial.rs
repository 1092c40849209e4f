//! A 16550 serial port whose line is a `Write`.

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

/// The port's registers. It is always ready to send; nothing is ever received, except what the guest
/// sends itself in loopback mode.
#[derive(Debug)]
pub(crate) struct Serial<W> {
    line: W,
    divisor: [u8; 2],
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    looped: Option<u8>,
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
            looped: None,
        }
    }

    fn dlab(&self) -> bool {
        self.line_control & DLAB != 0
    }

    /// The guest reads the register at this offset (0 to 7).
    pub(crate) fn read(&mut self, offset: u16) -> u8 {
        match offset {
            0 if self.dlab() => self.divisor[0],
            0 => self.looped.take().unwrap_or(0),
            IER if self.dlab() => self.divisor[1],
            IER => self.interrupt_enable,
            IIR if self.fifo_control & 1 != 0 => NO_INTERRUPT | FIFOS_ON,
            IIR => NO_INTERRUPT,
            LCR => self.line_control,
            MCR => self.modem_control,
            LSR => TRANSMITTER_EMPTY | self.looped.map_or(0, |_| DATA_READY),
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
            0 if self.modem_control & LOOPBACK != 0 => self.looped = Some(value),
            0 => {
                self.line.write_all(&[value])?;
                self.line.flush()?;
                return Ok(true);
            }
            IER if self.dlab() => self.divisor[1] = value,
            IER => self.interrupt_enable = value & 0x0f,
            IIR => self.fifo_control = value,
            LCR => self.line_control = value,
            MCR => self.modem_control = value & 0x1f,
            SCR => self.scratch = value,
            _ => {}
        }
        Ok(false)
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
}
