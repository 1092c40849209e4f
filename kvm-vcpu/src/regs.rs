use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

/// Bits of control registers and of `EFER` that modes are made of.
pub(crate) mod bits {
    pub(crate) const CR0_PE: u64 = 1;
    pub(crate) const CR0_ET: u64 = 1 << 4;
    pub(crate) const CR0_NE: u64 = 1 << 5;
    pub(crate) const CR0_WP: u64 = 1 << 16;
    pub(crate) const CR0_NW: u64 = 1 << 29;
    pub(crate) const CR0_CD: u64 = 1 << 30;
    pub(crate) const CR0_PG: u64 = 1 << 31;
    pub(crate) const CR4_PAE: u64 = 1 << 5;
    pub(crate) const CR4_LA57: u64 = 1 << 12;
    pub(crate) const CR4_VMXE: u64 = 1 << 13;
    pub(crate) const CR4_OSFXSR: u64 = 1 << 9;
    pub(crate) const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub(crate) const EFER_LME: u64 = 1 << 8;
    pub(crate) const EFER_LMA: u64 = 1 << 10;
    pub(crate) const EFER_NXE: u64 = 1 << 11;
    pub(crate) const EFER_SVME: u64 = 1 << 12;
    pub(crate) const RFLAGS_FIXED: u64 = 2;
    pub(crate) const RFLAGS_VM: u64 = 1 << 17;
}

/// The general registers, the instruction pointer and the flags.
#[doc(alias = "kvm_regs")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

macro_rules! convert_registers {
    ($($name:ident)*) => {
        impl From<kvm_regs> for Registers {
            fn from(r: kvm_regs) -> Self {
                Self { $($name: r.$name),* }
            }
        }
        impl From<Registers> for kvm_regs {
            fn from(r: Registers) -> Self {
                Self { $($name: r.$name),* }
            }
        }
    };
}

convert_registers!(rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags);

/// A segment register with the part that the CPU caches from its descriptor.
#[doc(alias = "kvm_segment")]
// The hardware has this many flags.
#[allow(clippy::struct_excessive_bools)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Segment {
    /// Linear address of its first byte.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u32,
    /// The selector.
    pub selector: u16,
    /// The descriptor's type (4 bits).
    pub kind: u8,
    /// Whether it is present.
    pub present: bool,
    /// Descriptor privilege level, 0 to 3.
    pub dpl: u8,
    /// 32-bit default operands (the D or B bit).
    pub default_big: bool,
    /// Code or data (true), or a system segment (false).
    pub code_or_data: bool,
    /// 64-bit code.
    pub long: bool,
    /// The limit counts pages of 4 KiB.
    pub granularity: bool,
    /// Free for software.
    pub available: bool,
    /// Whether it cannot be used.
    pub unusable: bool,
}

impl Segment {
    /// A code segment over all addresses: 64-bit, or else 32-bit.
    pub(crate) fn flat_code(selector: u16, long: bool) -> Self {
        Self {
            limit: u32::MAX,
            selector,
            kind: 0xb,
            present: true,
            default_big: !long,
            code_or_data: true,
            long,
            granularity: true,
            ..Self::default()
        }
    }

    /// A writable data segment over all addresses.
    pub(crate) fn flat_data(selector: u16) -> Self {
        Self {
            limit: u32::MAX,
            selector,
            kind: 0x3,
            present: true,
            default_big: true,
            code_or_data: true,
            granularity: true,
            ..Self::default()
        }
    }

    /// A segment as real mode has them: 64 KiB from 16 times the selector.
    pub(crate) fn real(selector: u16, kind: u8) -> Self {
        Self {
            base: u64::from(selector) << 4,
            limit: 0xffff,
            selector,
            kind,
            present: true,
            code_or_data: true,
            ..Self::default()
        }
    }
}

impl From<kvm_segment> for Segment {
    fn from(s: kvm_segment) -> Self {
        Self {
            base: s.base,
            limit: s.limit,
            selector: s.selector,
            kind: s.type_,
            present: s.present != 0,
            dpl: s.dpl,
            default_big: s.db != 0,
            code_or_data: s.s != 0,
            long: s.l != 0,
            granularity: s.g != 0,
            available: s.avl != 0,
            unusable: s.unusable != 0,
        }
    }
}

impl From<Segment> for kvm_segment {
    fn from(s: Segment) -> Self {
        Self {
            base: s.base,
            limit: s.limit,
            selector: s.selector,
            type_: s.kind,
            present: s.present.into(),
            dpl: s.dpl,
            db: s.default_big.into(),
            s: s.code_or_data.into(),
            l: s.long.into(),
            g: s.granularity.into(),
            avl: s.available.into(),
            unusable: s.unusable.into(),
            padding: 0,
        }
    }
}

/// Where a descriptor table (GDT or IDT) is.
#[doc(alias = "kvm_dtable")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DescriptorTable {
    /// Linear address of its first byte.
    pub base: u64,
    /// Offset of its last byte.
    pub limit: u16,
}

impl From<kvm_dtable> for DescriptorTable {
    fn from(t: kvm_dtable) -> Self {
        Self {
            base: t.base,
            limit: t.limit,
        }
    }
}

impl From<DescriptorTable> for kvm_dtable {
    fn from(t: DescriptorTable) -> Self {
        Self {
            base: t.base,
            limit: t.limit,
            padding: [0; 3],
        }
    }
}

/// The segment, control and table registers.
#[doc(alias = "kvm_sregs")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct SystemRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    /// The task register.
    pub tr: Segment,
    /// The local descriptor table.
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    /// Base and flags of the local APIC (`IA32_APIC_BASE`).
    pub apic_base: u64,
    /// A bit for each vector that waits to be injected.
    pub interrupt_bitmap: [u64; 4],
}

macro_rules! convert_system_registers {
    ($($into:ident)* ; $($same:ident)*) => {
        impl From<kvm_sregs> for SystemRegisters {
            fn from(r: kvm_sregs) -> Self {
                Self { $($into: r.$into.into(),)* $($same: r.$same),* }
            }
        }
        impl From<SystemRegisters> for kvm_sregs {
            fn from(r: SystemRegisters) -> Self {
                Self { $($into: r.$into.into(),)* $($same: r.$same),* }
            }
        }
    };
}

convert_system_registers!(
    cs ds es fs gs ss tr ldt gdt idt ;
    cr0 cr2 cr3 cr4 cr8 efer apic_base interrupt_bitmap
);

/// The mode that a CPU's registers put it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CpuMode {
    /// 16-bit real-address mode.
    Real,
    /// Virtual-8086 mode.
    Virtual8086,
    /// Protected mode with 16-bit code.
    Protected16,
    /// Protected mode with 32-bit code.
    Protected32,
    /// Long mode running 16- or 32-bit code.
    Compatibility,
    /// Long mode running 64-bit code.
    Long,
}

impl CpuMode {
    pub(crate) fn of(sregs: &SystemRegisters, rflags: u64) -> Self {
        if sregs.cr0 & bits::CR0_PE == 0 {
            Self::Real
        } else if sregs.efer & bits::EFER_LMA != 0 {
            if sregs.cs.long {
                Self::Long
            } else {
                Self::Compatibility
            }
        } else if rflags & bits::RFLAGS_VM != 0 {
            Self::Virtual8086
        } else if sregs.cs.default_big {
            Self::Protected32
        } else {
            Self::Protected16
        }
    }
}

impl std::fmt::Display for CpuMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Real => "real mode",
            Self::Virtual8086 => "virtual-8086 mode",
            Self::Protected16 => "16-bit protected mode",
            Self::Protected32 => "32-bit protected mode",
            Self::Compatibility => "compatibility mode",
            Self::Long => "64-bit long mode",
        })
    }
}
