use std::collections::BTreeMap;

use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP,
    kvm_guest_debug, kvm_guest_debug_arch,
};

use crate::error::ioctl;
use crate::{Error, GuestMemory, Result, Vcpu};

/// Where and when a guest is to stop with [`Exit::Debug`](crate::Exit::Debug), for
/// [`Vcpu::set_debugging`]. Single steps work everywhere; a KVM that emulates the guest, or runs on an
/// emulated CPU, may not honour the others: [`Kvm::effective_debugging`](crate::Kvm::effective_debugging) tells.
///
/// ```
/// use kvm_vcpu::{Debugging, Watch};
///
/// let debugging = Debugging::default()
///     .breakpoint(0x1000)
///     .watch(0x8000, 4, Watch::Write);
/// ```
#[doc(alias = "kvm_guest_debug")]
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Debugging {
    single_step: bool,
    software: bool,
    hardware: Vec<Hardware>,
}

/// One of the CPU's debug registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Hardware {
    address: u64,
    len: u8,
    /// What it stops at; `None` for execution.
    watch: Option<Watch>,
}

/// Which accesses a watchpoint stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watch {
    /// Writes.
    Write,
    /// Reads and writes. The CPU has none for reads alone.
    Access,
}

/// How many debug registers hold addresses.
const HARDWARE: usize = 4;

impl Debugging {
    /// After each instruction.
    pub fn single_step(mut self, on: bool) -> Self {
        self.single_step = on;
        self
    }

    /// At each `int3`, which the guest then does not see: [`Breakpoints`] puts them in.
    pub fn software_breakpoints(mut self, on: bool) -> Self {
        self.software = on;
        self
    }

    /// Before the instruction at this linear address. Breakpoints and watchpoints of this kind are four
    /// together.
    pub fn breakpoint(mut self, address: u64) -> Self {
        self.hardware.push(Hardware {
            address,
            len: 1,
            watch: None,
        });
        self
    }

    /// After an access to any of the `len` bytes at this linear address: 1, 2, 4 or 8, to which it has
    /// to be aligned.
    pub fn watch(mut self, address: u64, len: u8, accesses: Watch) -> Self {
        self.hardware.push(Hardware {
            address,
            len,
            watch: Some(accesses),
        });
        self
    }

    /// The registers that make the CPU do so.
    fn registers(&self) -> Result<[u64; 8]> {
        if self.hardware.len() > HARDWARE {
            return Err(Error::TooMany {
                what: "hardware breakpoints and watchpoints",
                given: self.hardware.len(),
                max: HARDWARE,
            });
        }
        let mut registers = [0; 8];
        // Bit 10 is always one; bits 8 and 9 ask for exact stops.
        let mut control = 1 << 10 | 3 << 8;
        for (i, hardware) in self.hardware.iter().enumerate() {
            let refuse = Error::Watchpoint {
                address: hardware.address,
                len: hardware.len,
            };
            let len: u64 = match hardware.len {
                1 => 0,
                2 => 1,
                4 => 3,
                8 => 2,
                _ => return Err(refuse),
            };
            if !hardware.address.is_multiple_of(hardware.len.into()) {
                return Err(refuse);
            }
            let kind: u64 = match hardware.watch {
                None => 0,
                Some(Watch::Write) => 1,
                Some(Watch::Access) => 3,
            };
            registers[i] = hardware.address;
            control |= 2 << (2 * i) | kind << (16 + 4 * i) | len << (18 + 4 * i);
        }
        registers[7] = control;
        Ok(registers)
    }
}

impl Vcpu {
    /// Stops the guest where this says, and nowhere else.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] for more than four hardware breakpoints and watchpoints;
    /// [`Error::Watchpoint`] for one that is not aligned; [`Error::Ioctl`] when the kernel cannot.
    #[doc(alias = "KVM_SET_GUEST_DEBUG")]
    pub fn set_debugging(&self, debugging: &Debugging) -> Result<()> {
        let debugreg = debugging.registers()?;
        self.note_software_breakpoints(debugging.software);
        let mut control = 0;
        for (wanted, flag) in [
            (debugging.single_step, KVM_GUESTDBG_SINGLESTEP),
            (debugging.software, KVM_GUESTDBG_USE_SW_BP),
            (!debugging.hardware.is_empty(), KVM_GUESTDBG_USE_HW_BP),
        ] {
            if wanted {
                control |= KVM_GUESTDBG_ENABLE | flag;
            }
        }
        self.fd()
            .set_guest_debug(&kvm_guest_debug {
                control,
                arch: kvm_guest_debug_arch { debugreg },
                ..Default::default()
            })
            .map_err(ioctl("KVM_SET_GUEST_DEBUG (debugging the guest)"))
    }

    /// Stops the guest with [`Exit::Debug`](crate::Exit::Debug) after each instruction, or no longer.
    /// Breakpoints that were set are gone.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel cannot.
    #[doc(alias = "KVM_SET_GUEST_DEBUG")]
    pub fn set_single_step(&self, on: bool) -> Result<()> {
        self.set_debugging(&Debugging::default().single_step(on))
    }

    /// Where a virtual address of the guest leads; `None` when nothing is mapped there.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not tell.
    #[doc(alias = "KVM_TRANSLATE")]
    pub fn translate(&self, virt: u64) -> Result<Option<u64>> {
        let there = self
            .fd()
            .translate_gva(virt)
            .map_err(ioctl("KVM_TRANSLATE (translating an address)"))?;
        Ok((there.valid != 0).then_some(there.physical_address))
    }
}

/// Breakpoints in a guest's code, any number of them: each an `int3` in place of an instruction's first
/// byte. [`Debugging::software_breakpoints`] makes them stop the guest, which is then at the
/// breakpoint's address; take it out before going on.
#[derive(Debug, Clone, Default)]
pub struct Breakpoints {
    /// By guest-physical address, the byte that was there.
    replaced: BTreeMap<u64, u8>,
}

const INT3: u8 = 0xcc;

impl Breakpoints {
    /// Puts one at a guest-physical address ([`Vcpu::translate`]); says whether there was none yet.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest has no memory there.
    pub fn insert(&mut self, memory: &GuestMemory, physical: u64) -> Result<bool> {
        if self.replaced.contains_key(&physical) {
            return Ok(false);
        }
        let byte = memory.read_value(physical)?;
        memory.write_value(physical, INT3)?;
        self.replaced.insert(physical, byte);
        Ok(true)
    }

    /// Takes one out; says whether there was one.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest has no memory there.
    pub fn remove(&mut self, memory: &GuestMemory, physical: u64) -> Result<bool> {
        let Some(byte) = self.replaced.get(&physical) else {
            return Ok(false);
        };
        memory.write_value(physical, *byte)?;
        self.replaced.remove(&physical);
        Ok(true)
    }

    /// Where they are, as guest-physical addresses.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.replaced.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_register_is_as_the_manuals_have_it() {
        let debugging = Debugging::default()
            .breakpoint(0x1000)
            .watch(0x2000, 4, Watch::Write)
            .watch(0x3000, 8, Watch::Access)
            .watch(0x4002, 2, Watch::Access);
        let registers = debugging.registers().unwrap();
        assert_eq!(registers[..4], [0x1000, 0x2000, 0x3000, 0x4002]);
        // From the top: length and kind of each, exact stops and the fixed bit, and the four enabled.
        assert_eq!(
            registers[7],
            0b0111_1011_1101_0000 << 16 | 0x700 | 0b1010_1010
        );
    }
}
