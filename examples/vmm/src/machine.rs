//! The machine: memory, one vCPU, a serial port, an exit port.

use std::io;
use std::time::Instant;

use kvm_vcpu::{Exit, InternalError, Kvm, PortOut, Region, Vcpu};

use crate::cli::BootArgs;
use crate::error::{Crash, Error, Place};
use crate::image;
use crate::serial::Serial;
use crate::stats::{Clock, Stats};

const SERIAL: u16 = 0x3f8;
const SERIAL_END: u16 = SERIAL + 7;
/// As QEMU's isa-debug-exit.
const EXIT_PORT: u16 = 0xf4;

/// Devices are between 3 and 4 GiB on a PC, and so no memory is.
const HOLE: std::ops::Range<u64> = 3 << 30..4 << 30;
const INTERRUPTS_ON: u64 = 1 << 9;

/// Runs a guest; returns the exit status that it asked for.
pub(crate) fn boot(args: &BootArgs, clock: Clock) -> Result<u8, Error> {
    let mut stats = Stats::new(clock);
    let bytes = image::read(&args.kernel, args.memory)?;
    let vm = Kvm::open()?.create_vm(&layout(args.memory << 20))?;
    let mode = image::load(&args.kernel, &bytes, args.mode, vm.memory())?;
    drop(bytes);
    let vcpu = vm.create_vcpu(0, &mode)?;
    let name = match mode {
        kvm_vcpu::Mode::Real { .. } => "real",
        kvm_vcpu::Mode::Protected { .. } => "protected",
        _ => "long",
    };
    let ended = run(vcpu, args, &mut stats);
    // A guest that crashed was measured all the same.
    if let Some(to) = &args.stats {
        let written = stats.write(to, name, vm.memory());
        let status = ended?;
        return written.map(|()| status);
    }
    ended
}

/// The regions for this many bytes.
fn layout(memory: u64) -> Vec<Region> {
    let mut regions = vec![Region::anonymous(0, memory.min(HOLE.start))];
    if memory > HOLE.start {
        regions.push(Region::anonymous(HOLE.end, memory - HOLE.start));
    }
    regions
}

fn run(mut vcpu: Vcpu, args: &BootArgs, stats: &mut Stats) -> Result<u8, Error> {
    let mut serial = Serial::new(io::stdout());
    let deadline = args.timeout.map(|t| (Instant::now() + t, t));
    stats.first_run();
    loop {
        let exit = match deadline {
            Some((deadline, _)) => vcpu.run_until(deadline)?,
            None => vcpu.run()?,
        };
        stats.exit(&exit);
        match exit {
            Exit::PortOut(out) if (SERIAL..=SERIAL_END).contains(&out.port) => {
                send(&mut serial, &out, stats)?;
            }
            Exit::PortIn(read) if (SERIAL..=SERIAL_END).contains(&read.port) => {
                let bytes: Vec<u8> = (0..read.len())
                    .map(|_| serial.read(read.port - SERIAL))
                    .collect();
                vcpu.reply(read.reply_bytes(&bytes))?;
            }
            Exit::PortOut(out) if out.port == EXIT_PORT => {
                return Ok(out.data().first().map_or(1, |value| value << 1 | 1));
            }
            // Nobody is there: writes go nowhere, and reads see the empty bus by default.
            Exit::PortOut(_)
            | Exit::PortIn(_)
            | Exit::MmioWrite(_)
            | Exit::MmioRead(_)
            | Exit::Interrupted => {}
            Exit::Halt => {
                return if vcpu.registers()?.rflags & INTERRUPTS_ON == 0 {
                    Ok(0)
                } else {
                    Err(Error::HaltedForever {
                        place: place(&vcpu)?,
                    })
                };
            }
            Exit::TimedOut => {
                return Err(Error::TimedOut {
                    after: args.timeout.unwrap_or_default(),
                    place: place(&vcpu)?,
                });
            }
            Exit::Shutdown => return Err(crashed(&vcpu, Crash::TripleFault)?),
            Exit::InternalError(InternalError::Emulation(failure)) => {
                return Err(crashed(&vcpu, Crash::Emulation(failure))?);
            }
            other => return Err(crashed(&vcpu, Crash::Exit(Box::new(other)))?),
        }
    }
}

fn send(
    serial: &mut Serial<impl io::Write>,
    out: &PortOut,
    stats: &mut Stats,
) -> Result<(), Error> {
    for byte in out.data() {
        let went_out = serial
            .write(out.port - SERIAL, *byte)
            .map_err(|source| Error::Output { source })?;
        if went_out {
            stats.output();
        }
    }
    Ok(())
}

fn crashed(vcpu: &Vcpu, what: Crash) -> Result<Error, Error> {
    Ok(Error::Crashed {
        what,
        place: place(vcpu)?,
    })
}

fn place(vcpu: &Vcpu) -> Result<Place, Error> {
    let cs = vcpu.system_registers()?.cs;
    Ok(Place {
        mode: vcpu.mode()?,
        cs: cs.selector,
        cs_base: cs.base,
        rip: vcpu.registers()?.rip,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        let ranges = |memory| -> Vec<(u64, u64)> {
            let regions = layout(memory);
            regions.iter().map(|r| (r.start(), r.len())).collect()
        };
        assert_eq!(ranges(16 << 20), [(0, 16 << 20)]);
        assert_eq!(ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }
}
