use std::fmt;

use crate::{CpuMode, PageWalk, Registers, Result, SystemRegisters, Vcpu};

/// Where and how a guest ended: what to print after [`Exit::Shutdown`](crate::Exit::Shutdown) or
/// [`Exit::InternalError`](crate::Exit::InternalError).
///
/// With the feature `disassemble` its text has the instructions as an assembler writes them. On AMD
/// CPUs a triple fault leaves a vCPU as after a reset, and so the report; single steps
/// ([`Vcpu::set_single_step`]) show the way there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrashReport {
    /// The CPU's mode.
    pub mode: CpuMode,
    /// The general registers.
    pub registers: Registers,
    /// The segment, control and table registers.
    pub system_registers: SystemRegisters,
    /// The linear address of the next instruction.
    pub pc: u64,
    /// The bytes from there on, as many as there are, up to 32.
    pub code: Vec<u8>,
    /// The page tables' view of the address that faulted last (`cr2`), in long mode, unless it is 0.
    pub fault: Option<PageWalk>,
}

/// How many bytes of code a report has.
const CODE: usize = 32;

impl Vcpu {
    /// Describes the state that it is in.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not tell the registers.
    pub fn crash_report(&self) -> Result<CrashReport> {
        let registers = self.registers()?;
        let system_registers = self.system_registers()?;
        let mode = CpuMode::of(&system_registers, registers.rflags);
        let pc = match mode {
            CpuMode::Long => registers.rip,
            _ => system_registers.cs.base.wrapping_add(registers.rip),
        };
        let cr2 = system_registers.cr2;
        let fault = if cr2 == 0 { None } else { self.page_walk(cr2)? };
        Ok(CrashReport {
            mode,
            registers,
            system_registers,
            pc,
            code: self.read_virtual(pc, CODE)?,
            fault,
        })
    }

    /// Bytes at a virtual address of the guest, up to `len`; fewer when not all are mapped to memory.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not translate the address.
    pub fn read_virtual(&self, virt: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let at = virt.wrapping_add(bytes.len() as u64);
            let in_page = (crate::PAGE_SIZE - at % crate::PAGE_SIZE) as usize;
            let mut chunk = vec![0; in_page.min(len - bytes.len())];
            let Some(physical) = self.translate(at)? else {
                break;
            };
            if self.memory().read(physical, &mut chunk).is_err() {
                break;
            }
            bytes.append(&mut chunk);
        }
        Ok(bytes)
    }
}

impl CrashReport {
    /// The instructions: address and text of each.
    #[cfg(feature = "disassemble")]
    pub fn instructions(&self) -> Vec<(u64, String)> {
        use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter};
        let bits = match self.mode {
            CpuMode::Long => 64,
            CpuMode::Protected32 => 32,
            CpuMode::Compatibility if self.system_registers.cs.default_big => 32,
            _ => 16,
        };
        let decoder = Decoder::with_ip(bits, &self.code, self.registers.rip, DecoderOptions::NONE);
        let mut formatter = IntelFormatter::new();
        decoder
            .into_iter()
            .take_while(|instruction| !instruction.is_invalid())
            .map(|instruction| {
                let mut text = String::new();
                formatter.format(&instruction, &mut text);
                (instruction.ip(), text)
            })
            .collect()
    }

    #[cfg(feature = "disassemble")]
    fn write_code(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instructions = self.instructions();
        for (address, text) in instructions.iter().take(6) {
            writeln!(f, "  {address:#x}: {text}")?;
        }
        Ok(())
    }

    #[cfg(not(feature = "disassemble"))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn write_code(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (r, s) = (&self.registers, &self.system_registers);
        writeln!(f, "{} at {:04x}:{:x}", self.mode, s.cs.selector, r.rip)?;
        for (names, values) in [
            (["rax", "rbx", "rcx", "rdx"], [r.rax, r.rbx, r.rcx, r.rdx]),
            (["rsi", "rdi", "rsp", "rbp"], [r.rsi, r.rdi, r.rsp, r.rbp]),
            (["r8 ", "r9 ", "r10", "r11"], [r.r8, r.r9, r.r10, r.r11]),
            (["r12", "r13", "r14", "r15"], [r.r12, r.r13, r.r14, r.r15]),
            (["cr0", "cr2", "cr3", "cr4"], [s.cr0, s.cr2, s.cr3, s.cr4]),
        ] {
            let line = names.iter().zip(values);
            let line: Vec<String> = line.map(|(n, v)| format!("{n} {v:016x}")).collect();
            writeln!(f, "{}", line.join("  "))?;
        }
        writeln!(f, "rflags {:x}, efer {:x}", r.rflags, s.efer)?;
        if self.code.is_empty() {
            write!(f, "no code at {:#x}", self.pc)?;
        } else {
            write!(f, "code at {:#x}:", self.pc)?;
            for byte in &self.code {
                write!(f, " {byte:02x}")?;
            }
            writeln!(f)?;
            self.write_code(f)?;
        }
        if let Some(walk) = &self.fault {
            write!(f, "{walk}")?;
        }
        Ok(())
    }
}
