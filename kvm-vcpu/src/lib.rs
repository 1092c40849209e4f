#![doc = include_str!("../README.md")]
// The crate is for x86-64 alone, where `usize` has 64 bits; what is cut off elsewhere was checked or
// masked before, or is meant to be.
#![allow(clippy::cast_possible_truncation)]

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
compile_error!(
    "kvm_vcpu is for Linux on x86-64: build with --target x86_64-unknown-linux-gnu or -musl"
);

// The only place where `unsafe` stands: ioctls that kvm-ioctls leaves to its callers, the shared
// run page, and the signal that stops a running vCPU.
#[allow(unsafe_code)]
mod sys;

mod accesses;
mod asm;
mod capabilities;
mod clock;
mod coalesced;
mod console;
mod cpuid;
mod crash;
mod debug;
mod descriptors;
mod dirty;
mod dirty_ring;
mod effective;
mod error;
mod exit;
mod exit_parse;
mod extra_exits;
#[cfg(feature = "gdb")]
mod gdb;
#[cfg(feature = "gdb")]
mod gdb_target;
mod irq;
mod kick;
mod kvm;
mod level;
mod load;
mod memory;
mod mode;
mod msrs;
mod multiboot;
mod pagemap;
mod paging;
mod protocol;
mod region;
mod regs;
mod reply;
mod snapshot;
mod snapshot_file;
mod state;
mod stats;
mod sync;
mod synced;
mod thread;
mod topology;
mod vcpu;
mod vm;
mod walk;

pub use accesses::{
    Access, Hypercall, MmioRead, MmioWrite, MsrRead, MsrReason, MsrWrite, PortIn, PortOut,
};
pub use asm::{Asm, Bits, Cond, Label, Reg};
pub use capabilities::Capability;
pub use clock::Clock;
pub use console::Console;
pub use cpuid::{CpuidLeaf, CpuidRegister, CpuidTable, Feature};
pub use crash::CrashReport;
pub use debug::{Breakpoints, Debugging, Watch};
pub use descriptors::{DescriptorTables, Descriptors};
pub use dirty::DirtyPages;
pub use effective::EffectiveDebugging;
pub use error::{
    Error, ImageProblem, PageTableProblem, RegionList, RegionProblem, Result, SnapshotProblem,
};
pub use exit::{EmulationFailure, Exit, InternalError, SystemEvent};
pub use extra_exits::IdleInstructions;
#[cfg(feature = "gdb")]
pub use gdb::GdbEnd;
pub use irq::{Gsi, IoAddress, IoEvent, IrqChip, Msi, Route};
pub use kick::{VcpuHandle, set_kick_signal};
pub use kvm::Kvm;
pub use level::CpuidLevel;
pub use load::{Loaded, load_elf64, load_flat};
pub use memory::{GuestMemory, HostLog, PAGE_SIZE, Pod, VmMemory};
pub use mode::{LinuxBoot, LongMode, Mode};
pub use msrs::{MsrAccess, MsrExits, MsrFilter, msr};
pub use multiboot::load_multiboot;
pub use paging::{MapFlags, PageSize, PageTables, Translation};
pub use region::Region;
pub use regs::{CpuMode, DescriptorTable, Registers, Segment, SystemRegisters};
pub use reply::Reply;
pub use snapshot::Snapshot;
pub use state::{DebugRegisters, FpuRegisters};
pub use stats::{Statistic, StatisticKind, StatisticUnit, Statistics};
pub use synced::Synced;
pub use thread::{VcpuThread, VcpuThreadBuilder};
pub use topology::Topology;
pub use vcpu::Vcpu;
pub use vm::Vm;
pub use walk::{PageWalk, WalkStep};

/// The types of `vm-memory` that this crate's memory is made of.
pub use vm_memory;
