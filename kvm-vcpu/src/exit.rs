use std::fmt;

use kvm_bindings as k;

use crate::sys::EXIT_UNION;

/// Why a vCPU came out of the guest, with everything the kernel says about it.
///
/// An exit owns its data: the vCPU is free for whatever handling it needs. Exits that the guest
/// waits on for an answer make a [`Reply`], which [`Vcpu::reply`](crate::Vcpu::reply) takes. What
/// nobody answers ends as on hardware where nobody listens: reads of ports and memory give all ones,
/// and accesses to model-specific registers a `#GP`.
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

/// The width of one access in bytes: 1, 2, 4 or 8.
pub type Access = u8;

/// A write to an I/O port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOut {
    /// The port.
    pub port: u16,
    /// How many bytes each write has: 1, 2 or 4.
    pub size: Access,
    data: Data,
}

impl PortOut {
    /// The bytes written, in order. More than `size` of them come from a string instruction.
    pub fn data(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// The value of a single write (of the first, for a string instruction).
    pub fn value(&self) -> u32 {
        let mut bytes = [0; 4];
        let n = usize::from(self.size).min(4).min(self.data().len());
        bytes[..n].copy_from_slice(&self.data()[..n]);
        u32::from_le_bytes(bytes)
    }
}

/// A read from an I/O port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortIn {
    /// The port.
    pub port: u16,
    /// How many bytes each read has: 1, 2 or 4.
    pub size: Access,
    /// How many reads a string instruction makes; 1 for others.
    pub count: u32,
    token: u64,
    offset: usize,
}

impl PortIn {
    /// How many bytes an answer has.
    pub fn len(&self) -> usize {
        usize::from(self.size) * self.count as usize
    }

    /// Whether nothing is read.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Answers with a value for each read.
    pub fn reply(&self, value: u32) -> Reply {
        let one = &value.to_le_bytes()[..usize::from(self.size).min(4)];
        self.reply_bytes(&one.repeat(self.count as usize))
    }

    /// Answers with these bytes, as many as [`PortIn::len`].
    pub fn reply_bytes(&self, bytes: &[u8]) -> Reply {
        Reply {
            token: self.token,
            expected: self.len(),
            place: Place::Page(self.offset),
            data: Data::new(bytes),
        }
    }
}

/// A write to an address without memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MmioWrite {
    /// The guest-physical address.
    pub address: u64,
    data: Data,
}

impl MmioWrite {
    /// The bytes written: 1 to 8.
    pub fn data(&self) -> &[u8] {
        self.data.as_slice()
    }

    /// The value written.
    pub fn value(&self) -> u64 {
        let mut bytes = [0; 8];
        bytes[..self.data().len()].copy_from_slice(self.data());
        u64::from_le_bytes(bytes)
    }
}

/// A read from an address without memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioRead {
    /// The guest-physical address.
    pub address: u64,
    /// How many bytes: 1 to 8.
    pub size: Access,
    token: u64,
}

impl MmioRead {
    /// Answers with a value.
    pub fn reply(&self, value: u64) -> Reply {
        let size = usize::from(self.size).min(8);
        Reply {
            token: self.token,
            expected: size,
            place: Place::Payload(MMIO_DATA),
            data: Data::new(&value.to_le_bytes()[..size]),
        }
    }
}

/// A hypercall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hypercall {
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub args: [u64; 6],
    token: u64,
}

impl Hypercall {
    /// Answers with the value for the guest's `rax`.
    pub fn reply(&self, value: u64) -> Reply {
        Reply::word(self.token, HYPERCALL_RET, value)
    }
}

/// Why an access to a model-specific register came to user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MsrReason {
    /// The kernel does not know the register.
    Unknown,
    /// The kernel knows it, and the access is not valid.
    Invalid,
    /// A filter denies it.
    Filtered,
    /// Another reason, by the kernel's number.
    Other(u32),
}

/// A read of a model-specific register (`rdmsr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrRead {
    /// The register.
    pub index: u32,
    /// Why it came here.
    pub reason: MsrReason,
    raw_reason: u32,
    token: u64,
}

impl MsrRead {
    /// Answers with a value.
    pub fn reply(&self, value: u64) -> Reply {
        let mut bytes = [0; MSR_DATA + 8];
        // The error byte, zero; then the reason and the index as the kernel gave them; the value.
        bytes[8..12].copy_from_slice(&self.raw_reason.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.index.to_le_bytes());
        bytes[MSR_DATA..].copy_from_slice(&value.to_le_bytes());
        Reply {
            token: self.token,
            expected: bytes.len(),
            place: Place::Payload(MSR_ERROR),
            data: Data::new(&bytes),
        }
    }

    /// Answers that there is no such register: the guest gets `#GP`.
    pub fn refuse(&self) -> Reply {
        Reply::msr_error(self.token, 1)
    }
}

/// A write of a model-specific register (`wrmsr`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrWrite {
    /// The register.
    pub index: u32,
    /// The value.
    pub value: u64,
    /// Why it came here.
    pub reason: MsrReason,
    token: u64,
}

impl MsrWrite {
    /// Answers that the value is written.
    pub fn accept(&self) -> Reply {
        Reply::msr_error(self.token, 0)
    }

    /// Answers that the value cannot be written: the guest gets `#GP`.
    pub fn refuse(&self) -> Reply {
        Reply::msr_error(self.token, 1)
    }
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
    bytes: [u8; 15],
    len: u8,
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

/// An answer to an exit, for [`Vcpu::reply`](crate::Vcpu::reply).
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a reply reaches the guest through `Vcpu::reply`"]
pub struct Reply {
    pub(crate) token: u64,
    pub(crate) expected: usize,
    pub(crate) place: Place,
    data: Data,
}

impl Reply {
    fn word(token: u64, offset: usize, value: u64) -> Self {
        Self {
            token,
            expected: 8,
            place: Place::Payload(offset),
            data: Data::new(&value.to_le_bytes()),
        }
    }

    fn msr_error(token: u64, error: u8) -> Self {
        Self {
            token,
            expected: 1,
            place: Place::Payload(MSR_ERROR),
            data: Data::new(&[error]),
        }
    }

    pub(crate) fn data(&self) -> &[u8] {
        self.data.as_slice()
    }
}

/// What the guest gets when nobody answers: where it stands in the run pages or the payload.
pub(crate) fn default_reply(exit: &Exit) -> Option<Reply> {
    match exit {
        Exit::PortIn(read) => {
            let len = read.len().min(crate::PAGE_SIZE as usize);
            let ones = if len <= 8 {
                Data::Few([0xff; 8], len as u8)
            } else {
                Data::Many(vec![0xff; len].into())
            };
            Some(Reply {
                token: read.token,
                expected: len,
                place: Place::Page(read.offset),
                data: ones,
            })
        }
        Exit::MmioRead(read) => Some(read.reply(u64::MAX)),
        Exit::MsrRead(read) => Some(read.refuse()),
        Exit::MsrWrite(write) => Some(write.refuse()),
        _ => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Into the exit's payload.
    Payload(usize),
    /// Into the run pages.
    Page(usize),
}

/// Bytes that need no allocation as long as they are few.
#[derive(Debug, Clone)]
enum Data {
    Few([u8; 8], u8),
    Many(Box<[u8]>),
}

impl Data {
    fn new(bytes: &[u8]) -> Self {
        let mut few = [0; 8];
        match u8::try_from(bytes.len()) {
            Ok(len) if len <= 8 => {
                few[..bytes.len()].copy_from_slice(bytes);
                Self::Few(few, len)
            }
            _ => Self::Many(bytes.into()),
        }
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Few(bytes, len) => &bytes[..usize::from(*len)],
            Self::Many(bytes) => bytes,
        }
    }
}

impl PartialEq for Data {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl Eq for Data {}

// Where the fields of `struct kvm_run`'s union begin; fixed by the interface (linux/kvm.h).
const MMIO_DATA: usize = 8;
const HYPERCALL_RET: usize = 56;
const MSR_ERROR: usize = 0;
const MSR_DATA: usize = 16;

/// The payload of an exit, read field by field.
struct Payload<'a>(&'a [u8; EXIT_UNION]);

impl Payload<'_> {
    fn u8(&self, at: usize) -> u8 {
        self.0[at]
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        out.copy_from_slice(&self.0[at..at + N]);
        out
    }

    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes(at))
    }

    /// As many 64-bit words as a count says, and the space allows.
    fn words(&self, count: u32, at: usize, max: usize) -> Vec<u64> {
        (0..(count as usize).min(max))
            .map(|i| self.u64(at + 8 * i))
            .collect()
    }
}

/// Makes an exit of what the kernel left in the run pages.
///
/// `read_page` copies bytes out of the pages at an offset, for port data.
pub(crate) fn parse(
    reason: u32,
    payload: &[u8; EXIT_UNION],
    token: u64,
    read_page: impl FnOnce(usize, &mut [u8]) -> bool,
) -> Exit {
    let p = Payload(payload);
    match reason {
        k::KVM_EXIT_IO => {
            let (direction, size, port, count) = (p.u8(0), p.u8(1), p.u16(2), p.u32(4));
            let offset = usize::try_from(p.u64(8)).unwrap_or(usize::MAX);
            if u32::from(direction) == k::KVM_EXIT_IO_IN {
                return Exit::PortIn(PortIn {
                    port,
                    size,
                    count,
                    token,
                    offset,
                });
            }
            let len = usize::from(size).saturating_mul(count as usize);
            let mut few = [0; 8];
            let data = if len <= few.len() {
                read_page(offset, &mut few[..len]);
                Data::new(&few[..len])
            } else {
                // The kernel batches at most one page of data; never allocate for more.
                let mut many = vec![0; len.min(crate::PAGE_SIZE as usize)];
                read_page(offset, &mut many);
                Data::Many(many.into())
            };
            Exit::PortOut(PortOut { port, size, data })
        }
        k::KVM_EXIT_MMIO => {
            let (address, len) = (p.u64(0), p.u32(16).min(8));
            if p.u8(20) == 0 {
                Exit::MmioRead(MmioRead {
                    address,
                    size: len as u8,
                    token,
                })
            } else {
                Exit::MmioWrite(MmioWrite {
                    address,
                    data: Data::new(&p.bytes::<8>(MMIO_DATA)[..len as usize]),
                })
            }
        }
        k::KVM_EXIT_HLT => Exit::Halt,
        k::KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        k::KVM_EXIT_IRQ_WINDOW_OPEN => Exit::InterruptWindow,
        k::KVM_EXIT_INTR => Exit::Interrupted,
        k::KVM_EXIT_EXCEPTION => Exit::Exception {
            vector: p.u32(0),
            error_code: p.u32(4),
        },
        k::KVM_EXIT_DEBUG => Exit::Debug {
            exception: p.u32(0),
            pc: p.u64(8),
            dr6: p.u64(16),
            dr7: p.u64(24),
        },
        k::KVM_EXIT_HYPERCALL => Exit::Hypercall(Hypercall {
            number: p.u64(0),
            args: std::array::from_fn(|i| p.u64(8 + 8 * i)),
            token,
        }),
        k::KVM_EXIT_X86_RDMSR | k::KVM_EXIT_X86_WRMSR => {
            let msr_reason = match p.u32(8) {
                1 => MsrReason::Invalid,
                2 => MsrReason::Unknown,
                4 => MsrReason::Filtered,
                other => MsrReason::Other(other),
            };
            let index = p.u32(12);
            if reason == k::KVM_EXIT_X86_RDMSR {
                Exit::MsrRead(MsrRead {
                    index,
                    reason: msr_reason,
                    raw_reason: p.u32(8),
                    token,
                })
            } else {
                Exit::MsrWrite(MsrWrite {
                    index,
                    value: p.u64(MSR_DATA),
                    reason: msr_reason,
                    token,
                })
            }
        }
        k::KVM_EXIT_IOAPIC_EOI => Exit::IoapicEoi { vector: p.u8(0) },
        k::KVM_EXIT_SET_TPR => Exit::SetTpr,
        k::KVM_EXIT_TPR_ACCESS => Exit::TprAccess {
            rip: p.u64(0),
            is_write: p.u32(8) != 0,
        },
        k::KVM_EXIT_SYSTEM_EVENT => Exit::SystemEvent(SystemEvent {
            kind: p.u32(0),
            data: p.words(p.u32(4), 8, 16),
        }),
        k::KVM_EXIT_INTERNAL_ERROR => Exit::InternalError(internal_error(&p)),
        k::KVM_EXIT_FAIL_ENTRY => Exit::FailEntry {
            reason: p.u64(0),
            cpu: p.u32(8),
        },
        k::KVM_EXIT_MEMORY_FAULT => Exit::MemoryFault {
            flags: p.u64(0),
            address: p.u64(8),
            size: p.u64(16),
        },
        k::KVM_EXIT_DIRTY_RING_FULL => Exit::DirtyRingFull,
        k::KVM_EXIT_X86_BUS_LOCK => Exit::BusLock,
        k::KVM_EXIT_NOTIFY => Exit::Notify { flags: p.u32(0) },
        k::KVM_EXIT_NMI => Exit::Nmi,
        k::KVM_EXIT_UNKNOWN => Exit::Unknown {
            hardware_reason: p.u64(0),
        },
        k::KVM_EXIT_HYPERV | k::KVM_EXIT_XEN => Exit::Enlightenment {
            reason,
            payload: Box::new(*payload),
        },
        _ => Exit::Other {
            reason,
            payload: Box::new(*payload),
        },
    }
}

/// A write that the kernel collected instead of exiting.
pub(crate) fn write(is_port: bool, address: u64, bytes: &[u8]) -> Exit {
    let data = Data::new(bytes);
    if is_port {
        Exit::PortOut(PortOut {
            port: address as u16,
            size: bytes.len() as u8,
            data,
        })
    } else {
        Exit::MmioWrite(MmioWrite { address, data })
    }
}

fn internal_error(p: &Payload<'_>) -> InternalError {
    let (suberror, count) = (p.u32(0), p.u32(4));
    let data = || p.words(count, 8, 16);
    match suberror {
        k::KVM_INTERNAL_ERROR_EMULATION => {
            // flags at 8, then the size and the bytes; present when the kernel says so by giving
            // at least the flags word, with the bit set.
            let has_bytes = count >= 1
                && p.u64(8) & u64::from(k::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
                    != 0;
            let len = if has_bytes { p.u8(16).min(15) } else { 0 };
            InternalError::Emulation(EmulationFailure {
                bytes: p.bytes(17),
                len,
            })
        }
        k::KVM_INTERNAL_ERROR_SIMUL_EX => InternalError::SimultaneousExceptions { data: data() },
        k::KVM_INTERNAL_ERROR_DELIVERY_EV => InternalError::Delivery { data: data() },
        k::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
            InternalError::UnexpectedExit { data: data() }
        }
        suberror => InternalError::Other {
            suberror,
            data: data(),
        },
    }
}
