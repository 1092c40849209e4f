use crate::regs::bits;
use crate::{Registers, Segment, SystemRegisters};

/// The state in which a vCPU runs its first instruction.
///
/// Each mode leaves a CPU as a correct boot loader would: interrupts off, direction flag clear,
/// all segments usable.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mode {
    /// As the CPU is after power-on: in real mode at f000:fff0, the last 16 bytes below 4 GiB. With
    /// interrupt controllers in the kernel, vCPUs other than number 0 wait there until the guest
    /// starts them.
    Reset,
    /// 16-bit real mode. All segments are `segment`; the stack grows down from `segment:stack`.
    Real {
        /// Where code, data and stack are, in units of 16 bytes.
        segment: u16,
        /// The first instruction's offset.
        offset: u16,
        /// The first stack pointer.
        stack: u16,
    },
    /// 32-bit protected mode with segments over all addresses and paging off.
    Protected {
        /// The first instruction's address.
        entry: u32,
        /// The first stack pointer.
        stack: u32,
    },
    /// 64-bit long mode.
    Long(LongMode),
}

impl Mode {
    /// Real mode at `segment:offset`, with the stack just below the code.
    pub fn real(segment: u16, offset: u16) -> Self {
        Self::Real {
            segment,
            offset,
            stack: offset & !1,
        }
    }

    /// Flat 32-bit protected mode, with the stack just below the code.
    pub fn protected(entry: u32) -> Self {
        Self::Protected {
            entry,
            stack: entry & !0xf,
        }
    }

    /// Long mode with these page tables ([`PageTables::install`](crate::PageTables::install)), and the
    /// stack just below the code.
    pub fn long(entry: u64, page_table_root: u64) -> Self {
        Self::Long(LongMode {
            entry,
            stack: entry & !0xf,
            page_table_root,
        })
    }

    /// The same mode with another first stack pointer; bits that the mode lacks are cut off.
    pub fn with_stack(mut self, pointer: u64) -> Self {
        match &mut self {
            Self::Reset => {}
            Self::Real { stack, .. } => *stack = pointer as u16,
            Self::Protected { stack, .. } => *stack = pointer as u32,
            Self::Long(long) => long.stack = pointer,
        }
        self
    }

    /// The state after power-on; returns the general registers.
    fn reset(sregs: &mut SystemRegisters) -> Registers {
        sregs.cs = Segment {
            base: 0xffff_0000,
            ..Segment::real(0xf000, 0xb)
        };
        set_data(sregs, Segment::real(0, 0x3));
        sregs.cr0 = bits::CR0_ET;
        sregs.cr4 = 0;
        sregs.efer = 0;
        Registers {
            rip: 0xfff0,
            rflags: bits::RFLAGS_FIXED,
            ..Registers::default()
        }
    }

    /// Puts the mode into registers that came from the kernel (and so have the fields that no mode
    /// sets, such as the APIC's base).
    pub(crate) fn apply(&self, sregs: &mut SystemRegisters) -> Registers {
        let mut regs = Registers {
            rflags: bits::RFLAGS_FIXED,
            ..Registers::default()
        };
        match *self {
            Self::Reset => regs = Self::reset(sregs),
            Self::Real {
                segment,
                offset,
                stack,
            } => {
                sregs.cs = Segment::real(segment, 0xb);
                set_data(sregs, Segment::real(segment, 0x3));
                sregs.cr0 = bits::CR0_ET;
                sregs.cr4 = 0;
                sregs.efer = 0;
                sregs.idt = crate::DescriptorTable {
                    base: 0,
                    limit: 0x3ff,
                };
                regs.rip = offset.into();
                regs.rsp = stack.into();
            }
            Self::Protected { entry, stack } => {
                sregs.cs = Segment::flat_code(0x8, false);
                set_data(sregs, Segment::flat_data(0x10));
                sregs.cr0 = bits::CR0_PE | bits::CR0_ET | bits::CR0_NE;
                sregs.cr4 = 0;
                sregs.efer = 0;
                regs.rip = entry.into();
                regs.rsp = stack.into();
            }
            Self::Long(long) => {
                sregs.cs = Segment::flat_code(0x8, true);
                set_data(sregs, Segment::flat_data(0x10));
                sregs.cr0 =
                    bits::CR0_PE | bits::CR0_ET | bits::CR0_NE | bits::CR0_WP | bits::CR0_PG;
                sregs.cr3 = long.page_table_root;
                sregs.cr4 = bits::CR4_PAE | bits::CR4_OSFXSR | bits::CR4_OSXMMEXCPT;
                sregs.efer = bits::EFER_LME | bits::EFER_LMA | bits::EFER_NXE;
                regs.rip = long.entry;
                regs.rsp = long.stack;
            }
        }
        regs
    }
}

fn set_data(sregs: &mut SystemRegisters, segment: Segment) {
    sregs.ds = segment;
    sregs.es = segment;
    sregs.fs = segment;
    sregs.gs = segment;
    sregs.ss = segment;
}

/// How a vCPU starts in long mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LongMode {
    /// The first instruction's virtual address.
    pub entry: u64,
    /// The first stack pointer, a virtual address.
    pub stack: u64,
    /// The guest-physical address of the topmost page table.
    pub page_table_root: u64,
}
