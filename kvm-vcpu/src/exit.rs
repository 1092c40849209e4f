use std::fmt;

use crate::sys::EXIT_UNION;
use crate::{Hypercall, MmioRead, MmioWrite, MsrRead, MsrWrite, PortIn, PortOut};

/// Why a vCPU came out of the guest, with everything the kernel says about it.
///
/// An exit owns its data: the vCPU is free for whatever handling it needs. Exits that the guest
/// waits on for an answer make a [`Reply`](crate::Reply), which
/// [`Vcpu::reply`](crate::Vcpu::reply) takes. What nobody answers ends as on hardware where nobody
/// listens: reads of ports and memory give all ones, and accesses to model-specific registers a `#GP`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exit {
    /// The guest wrote to an I/O port (`out`).
    #[doc(alias = "KVM_EXIT_IO")]
    PortOut(PortOut),
    /// The guest reads from an I/O port (`in`).
    #[doc(alias = "KVM_EXIT_IO")]
    PortIn(PortIn),
    /// The guest wrote to an address that has no memory, or read-only memory.
    #[doc(alias = "KVM_EXIT_MMIO")]
    MmioWrite(MmioWrite),
    /// The guest reads from an address that has no memory.
    #[doc(alias = "KVM_EXIT_MMIO")]
    MmioRead(MmioRead),
    /// The guest halted (`hlt`) and the kernel has no interrupt controller that could wake it.
    #[doc(alias = "KVM_EXIT_HLT")]
    Halt,
    /// The guest shut down: as a rule a triple fault, an exception that it could not handle.
    #[doc(alias = "KVM_EXIT_SHUTDOWN")]
    Shutdown,
    /// [`VcpuHandle::kick`](crate::VcpuHandle::kick) stopped it.
    Kicked,
    /// The deadline of [`Vcpu::run_until`](crate::Vcpu::run_until) passed.
    TimedOut,
    /// A signal was handled on this thread. Run it again if the signal asked for nothing else.
    /// It may also come without a visible cause, like any interrupted system call.
    #[doc(alias = "EINTR")]
    Interrupted,
    /// The guest can take an interrupt now, as was asked for.
    #[doc(alias = "KVM_EXIT_IRQ_WINDOW_OPEN")]
    InterruptWindow,
    /// An exception that the kernel passes on.
    #[doc(alias = "KVM_EXIT_EXCEPTION")]
    Exception {
        /// The vector.
        vector: u32,
        /// The error code.
        error_code: u32,
    },
    /// A single step, breakpoint or watchpoint, as
    /// [`Vcpu::set_debugging`](crate::Vcpu::set_debugging) asked for.
    #[doc(alias = "KVM_EXIT_DEBUG")]
    Debug {
        /// The exception's vector: 1 for `#DB`, 3 for `#BP`.
        exception: u32,
        /// The linear address of the instruction.
        pc: u64,
        /// Debug status: bits 0 to 3 say which hardware breakpoint or watchpoint it was, bit 14 that
        /// it was a single step.
        dr6: u64,
        /// Debug control.
        dr7: u64,
    },
    /// A hypercall that the kernel does not handle itself.
    #[doc(alias = "KVM_EXIT_HYPERCALL")]
    Hypercall(Hypercall),
    /// The guest reads a model-specific register that user space answers for.
    #[doc(alias = "KVM_EXIT_X86_RDMSR")]
    MsrRead(MsrRead),
    /// The guest writes a model-specific register that user space answers for.
    #[doc(alias = "KVM_EXIT_X86_WRMSR")]
    MsrWrite(MsrWrite),
    /// The guest acknowledged a level-triggered interrupt of a user-space IOAPIC.
    #[doc(alias = "KVM_EXIT_IOAPIC_EOI")]
    IoapicEoi {
        /// The vector.
        vector: u8,
    },
    /// The task priority was changed, with the interrupt controller in user space.
    #[doc(alias = "KVM_EXIT_SET_TPR")]
    SetTpr,
    /// The local APIC's task priority register was accessed, as was asked to be reported.
    #[doc(alias = "KVM_EXIT_TPR_ACCESS")]
    TprAccess {
        /// The instruction that did.
        rip: u64,
        /// Whether it wrote.
        is_write: bool,
    },
    /// The guest asks for a shutdown, reset or the like through the kernel.
    #[doc(alias = "KVM_EXIT_SYSTEM_EVENT")]
    SystemEvent(SystemEvent),
    /// The kernel cannot go on with this guest.
    #[doc(alias = "KVM_EXIT_INTERNAL_ERROR")]
    InternalError(InternalError),
    /// The hardware refused to enter the guest: its state is not valid.
    #[doc(alias = "KVM_EXIT_FAIL_ENTRY")]
    FailEntry {
        /// The hardware's reason.
        reason: u64,
        /// The host CPU it happened on.
        cpu: u32,
    },
    /// An access that the kernel cannot resolve, such as one to private memory that is missing.
    #[doc(alias = "KVM_EXIT_MEMORY_FAULT")]
    MemoryFault {
        /// What kind (`KVM_MEMORY_EXIT_FLAG_…`).
        flags: u64,
        /// The first guest-physical address.
        address: u64,
        /// How many bytes.
        size: u64,
    },
    /// The ring of dirty pages is full: harvest it.
    #[doc(alias = "KVM_EXIT_DIRTY_RING_FULL")]
    DirtyRingFull,
    /// The guest locked the memory bus, and that was asked to be reported.
    #[doc(alias = "KVM_EXIT_X86_BUS_LOCK")]
    BusLock,
    /// The guest let no event in for longer than allowed.
    #[doc(alias = "KVM_EXIT_NOTIFY")]
    Notify {
        /// Flags (`KVM_NOTIFY_CONTEXT_INVALID`).
        flags: u32,
    },
    /// A vCPU of an encrypted guest (SEV-ES) waits for another to start it.
    #[doc(alias = "KVM_EXIT_AP_RESET_HOLD")]
    ApResetHold,
    /// An NMI of the host.
    #[doc(alias = "KVM_EXIT_NMI")]
    Nmi,
    /// A Hyper-V or Xen event; its payload as it came.
    #[doc(alias = "KVM_EXIT_HYPERV")]
    #[doc(alias = "KVM_EXIT_XEN")]
    Enlightenment {
        /// The kernel's number of the reason.
        reason: u32,
        /// The payload.
        payload: Box<[u8; EXIT_UNION]>,
    },
    /// The kernel does not know what the hardware meant.
    #[doc(alias = "KVM_EXIT_UNKNOWN")]
    Unknown {
        /// The hardware's reason.
        hardware_reason: u64,
    },
    /// A reason that is newer than this library.
    Other {
        /// The kernel's number of the reason.
        reason: u32,
        /// The payload.
        payload: Box<[u8; EXIT_UNION]>,
    },
}

/// What a guest asks for through the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemEvent {
    /// The kind (`KVM_SYSTEM_EVENT_…`): 1 shutdown, 2 reset, 3 crash, 4 wake-up, 5 suspend.
    pub kind: u32,
    /// Data of the kind.
    pub data: Vec<u64>,
}

/// Why the kernel cannot go on with a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum InternalError {
    /// An instruction that the kernel had to emulate, and cannot.
    #[doc(alias = "KVM_INTERNAL_ERROR_EMULATION")]
    Emulation(EmulationFailure),
    /// An exception came while another was being delivered.
    #[doc(alias = "KVM_INTERNAL_ERROR_SIMUL_EX")]
    SimultaneousExceptions {
        /// What the kernel adds.
        data: Vec<u64>,
    },
    /// Delivering an event to the guest went wrong.
    #[doc(alias = "KVM_INTERNAL_ERROR_DELIVERY_EV")]
    Delivery {
        /// What the kernel adds.
        data: Vec<u64>,
    },
    /// The hardware exited for a reason that the kernel does not know.
    #[doc(alias = "KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON")]
    UnexpectedExit {
        /// What the kernel adds.
        data: Vec<u64>,
    },
    /// A suberror that is newer than this library.
    Other {
        /// Its number.
        suberror: u32,
        /// What the kernel adds.
        data: Vec<u64>,
    },
}

/// An instruction that the kernel could not emulate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulationFailure {
    pub(crate) bytes: [u8; 15],
    pub(crate) len: u8,
}

impl EmulationFailure {
    /// The instruction's bytes and what follows, up to 15; empty when the kernel could not read
    /// them or is older than 5.14.
    pub fn instruction(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Display for EmulationFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.len == 0 {
            return f.write_str("an instruction that KVM could not read");
        }
        f.write_str("the instruction that begins with")?;
        for byte in self.instruction() {
            write!(f, " {byte:02x}")?;
        }
        Ok(())
    }
}
