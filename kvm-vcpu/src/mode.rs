use crate::error::PageTableProblem;
use crate::regs::bits;
use crate::{
    Descriptors, Error, GuestMemory, PageTables, Registers, Result, Segment, SystemRegisters,
};

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
    /// Where Linux's 64-bit boot protocol enters a kernel: [`Mode::linux64`].
    Linux64(LinuxBoot),
    /// Where Xen's PVH protocol enters a kernel: 32-bit, paging off, `ebx` at the start info.
    ///
    /// See `docs/misc/pvh.pandoc` of Xen.
    Pvh {
        /// The entry point that the kernel's ELF note (`XEN_ELFNOTE_PHYS32_ENTRY`) names.
        entry: u32,
        /// Where `struct hvm_start_info` is.
        start_info: u32,
    },
    /// Where a multiboot loader enters a kernel: 32-bit, paging off, `eax` with the loader's magic
    /// number and `ebx` at its information.
    ///
    /// See the Multiboot Specification, "Machine state".
    Multiboot {
        /// The first instruction's address.
        entry: u32,
        /// Where the boot information is.
        info: u32,
        /// The magic number: [`Mode::MULTIBOOT_MAGIC`] or [`Mode::MULTIBOOT2_MAGIC`].
        magic: u32,
    },
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
            descriptors: None,
        })
    }

    /// What a loader of Multiboot leaves in `eax`.
    pub const MULTIBOOT_MAGIC: u32 = 0x2bad_b002;
    /// What a loader of Multiboot2 leaves in `eax`.
    pub const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;

    /// How many bytes [`Mode::linux64`] writes.
    pub const LINUX64_TABLES: u64 = 0x7000;

    /// The entry of Linux's 64-bit boot protocol: long mode with the first 4 GiB mapped to themselves,
    /// flat segments `__BOOT_CS` (0x10) and `__BOOT_DS` (0x18), interrupts off, and `rsi` at the boot
    /// parameters (the "zero page").
    ///
    /// `entry` is the kernel's first 64-bit instruction: 0x200 into the protected-mode part of a
    /// bzImage, or an ELF kernel's own. Page tables and the GDT go to `tables`, which is a multiple of
    /// 4096, as [`Mode::LINUX64_TABLES`] bytes that the guest's memory map must not call free before the
    /// kernel has tables of its own (it copies nothing of them).
    ///
    /// See `Documentation/arch/x86/boot.rst` of Linux, "64-bit Boot Protocol".
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest has no memory at `tables`, and [`Error::PageTable`] when an
    /// address is beyond 4 GiB, or `tables` not aligned.
    pub fn linux64(
        memory: &GuestMemory,
        entry: u64,
        boot_params: u64,
        tables: u64,
    ) -> Result<Self> {
        const MAPPED: u64 = 4 << 30;
        for virt in [entry, boot_params] {
            if virt >= MAPPED {
                let problem = PageTableProblem::Beyond;
                return Err(Error::PageTable { virt, problem });
            }
        }
        let mut pages = PageTables::new(tables, Self::LINUX64_TABLES - crate::PAGE_SIZE);
        pages.identity(MAPPED)?;
        let page_table_root = pages.install(memory)?;
        let gdt = tables + pages.len();
        // Null, unused, code and data: present, ring 0, 4 GiB in pages.
        let code = 0x00af_9b00_0000_ffff_u64;
        let data = 0x00cf_9300_0000_ffff_u64;
        for (at, descriptor) in (gdt..).step_by(8).zip([0, 0, code, data]) {
            memory.write_value(at, descriptor)?;
        }
        Ok(Self::Linux64(LinuxBoot {
            entry,
            boot_params,
            page_table_root,
            gdt: crate::DescriptorTable {
                base: gdt,
                limit: 4 * 8 - 1,
            },
        }))
    }

    /// The entry of the PVH protocol.
    pub fn pvh(entry: u32, start_info: u32) -> Self {
        Self::Pvh { entry, start_info }
    }

    /// The entry of the Multiboot protocol.
    pub fn multiboot(entry: u32, info: u32) -> Self {
        Self::Multiboot {
            entry,
            info,
            magic: Self::MULTIBOOT_MAGIC,
        }
    }

    /// The same mode with tables of segments, interrupts and tasks that
    /// [`DescriptorTables::install`](crate::DescriptorTables::install) has put into memory. Modes other
    /// than [`Mode::Long`] stay as they are.
    pub fn with_descriptors(mut self, descriptors: Descriptors) -> Self {
        if let Self::Long(long) = &mut self {
            long.descriptors = Some(descriptors);
        }
        self
    }

    /// The same mode with another first stack pointer; bits that the mode lacks are cut off. The modes
    /// that a boot protocol defines leave the stack to the kernel, and stay as they are.
    pub fn with_stack(mut self, pointer: u64) -> Self {
        match &mut self {
            Self::Reset | Self::Linux64(_) | Self::Pvh { .. } | Self::Multiboot { .. } => {}
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
        let all = crate::DescriptorTable {
            base: 0,
            limit: 0xffff,
        };
        (sregs.gdt, sregs.idt) = (all, all);
        sregs.ldt = Segment {
            code_or_data: false,
            ..Segment::real(0, 0x2)
        };
        sregs.tr = Segment {
            code_or_data: false,
            ..Segment::real(0, 0xb)
        };
        sregs.cr0 = bits::CR0_ET | bits::CR0_NW | bits::CR0_CD;
        (sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8) = (0, 0, 0, 0);
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
                set_protected(sregs, bits::CR0_NE);
                regs.rip = entry.into();
                regs.rsp = stack.into();
            }
            Self::Pvh { entry, start_info } => {
                // Of CR0 the protocol allows no bit but PE and ET.
                set_protected(sregs, 0);
                regs.rip = entry.into();
                regs.rbx = start_info.into();
            }
            Self::Multiboot { entry, info, magic } => {
                set_protected(sregs, 0);
                regs.rip = entry.into();
                regs.rax = magic.into();
                regs.rbx = info.into();
            }
            Self::Linux64(boot) => {
                sregs.cs = Segment::flat_code(0x10, true);
                set_data(sregs, Segment::flat_data(0x18));
                sregs.gdt = boot.gdt;
                sregs.cr0 = bits::CR0_PE | bits::CR0_ET | bits::CR0_PG;
                sregs.cr3 = boot.page_table_root;
                sregs.cr4 = bits::CR4_PAE;
                sregs.efer = bits::EFER_LME | bits::EFER_LMA;
                regs.rip = boot.entry;
                regs.rsi = boot.boot_params;
            }
            Self::Long(long) => {
                sregs.cs = Segment::flat_code(0x8, true);
                set_data(sregs, Segment::flat_data(0x10));
                sregs.cr0 =
                    bits::CR0_PE | bits::CR0_ET | bits::CR0_NE | bits::CR0_WP | bits::CR0_PG;
                sregs.cr3 = long.page_table_root;
                sregs.cr4 = bits::CR4_PAE | bits::CR4_OSFXSR | bits::CR4_OSXMMEXCPT;
                sregs.efer = bits::EFER_LME | bits::EFER_LMA | bits::EFER_NXE;
                if let Some(tables) = long.descriptors {
                    sregs.gdt = tables.gdt;
                    sregs.idt = tables.idt;
                    sregs.tr = tables.task;
                }
                regs.rip = long.entry;
                regs.rsp = long.stack;
            }
        }
        regs
    }
}

fn set_protected(sregs: &mut SystemRegisters, more_cr0: u64) {
    sregs.cs = Segment::flat_code(0x8, false);
    set_data(sregs, Segment::flat_data(0x10));
    sregs.cr0 = bits::CR0_PE | bits::CR0_ET | more_cr0;
    sregs.cr4 = 0;
    sregs.efer = 0;
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
    /// The tables of segments, interrupts and tasks; without them an exception ends the guest.
    pub descriptors: Option<Descriptors>,
}

/// How a vCPU enters Linux by its 64-bit boot protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinuxBoot {
    /// The kernel's first 64-bit instruction.
    pub entry: u64,
    /// The guest-physical address of `struct boot_params`.
    pub boot_params: u64,
    /// The guest-physical address of the topmost page table, which maps the kernel, the boot
    /// parameters and the command line to themselves.
    pub page_table_root: u64,
    /// Where `__BOOT_CS` and `__BOOT_DS` are.
    pub gdt: crate::DescriptorTable,
}
