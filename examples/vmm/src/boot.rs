//! How kernels are started: each protocol puts what it hands over into memory and says in which
//! state the first CPU begins.

pub(crate) mod linux;
pub(crate) mod multiboot;
pub(crate) mod pvh;

use std::fs::File;
use std::path::{Path, PathBuf};

use kvm_vcpu::vm_memory::{Bytes as _, GuestAddress};
use kvm_vcpu::{GuestMemory, Mode, PAGE_SIZE, Vcpu};

use crate::error::Error;
use crate::layout::{COMMAND_LINE, HIGH_START, HOLE};

/// The state in which the first CPU begins: a mode, and the registers that the protocol fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) mode: Mode,
    pub(crate) rax: u64,
    pub(crate) rbx: u64,
    pub(crate) rsi: u64,
}

impl Entry {
    pub(crate) fn new(mode: Mode) -> Self {
        Self {
            mode,
            rax: 0,
            rbx: 0,
            rsi: 0,
        }
    }

    /// Fills the registers of a vCPU that is in the mode already.
    pub(crate) fn apply(&self, vcpu: &Vcpu) -> kvm_vcpu::Result<()> {
        let mut regs = vcpu.registers()?;
        (regs.rax, regs.rbx, regs.rsi) = (self.rax, self.rbx, self.rsi);
        vcpu.set_registers(&regs)
    }
}

/// An initial RAM disk in the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ramdisk {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// Puts the command line, with the zero that ends it, into memory.
pub(crate) fn put_command_line(memory: &GuestMemory, line: &str, limit: u64) -> Result<(), Error> {
    let limit = limit.min(COMMAND_LINE.end - COMMAND_LINE.start - 1);
    if line.len() as u64 > limit || line.contains('\0') {
        return Err(Error::CommandLine {
            len: line.len(),
            limit,
        });
    }
    memory.write(COMMAND_LINE.start, line.as_bytes())?;
    memory.write(COMMAND_LINE.start + line.len() as u64, &[0])?;
    Ok(())
}

/// Reads an initial RAM disk straight into the guest's memory, as high as it may be.
pub(crate) fn put_ramdisk(
    memory: &GuestMemory,
    (path, file): (&Path, &mut File),
    highest: u64,
    kernel_end: u64,
) -> Result<Ramdisk, Error> {
    let error = |source| Error::ReadInitrd {
        path: path.to_owned(),
        source,
    };
    let len = file.metadata().map_err(error)?.len();
    let low_end = memory.size().min(HOLE.start);
    let top = low_end.min(highest.saturating_add(1));
    let start = top
        .checked_sub(len)
        .map(|s| s / PAGE_SIZE * PAGE_SIZE)
        .filter(|s| *s >= kernel_end.max(HIGH_START))
        .ok_or_else(|| Error::InitrdTooBig {
            path: PathBuf::from(path),
            len,
            room: top.saturating_sub(kernel_end.max(HIGH_START)),
        })?;
    memory.prefer_huge_pages(start, len)?;
    let count = usize::try_from(len).unwrap_or(usize::MAX);
    memory
        .as_vm_memory()
        .read_exact_volatile_from(GuestAddress(start), file, count)
        .map_err(|e| error(std::io::Error::other(e)))?;
    Ok(Ramdisk { start, len })
}
