use kvm_bindings as k;

use crate::reply::{Data, MMIO_DATA, MSR_DATA};
use crate::sys::EXIT_UNION;
use crate::{
    EmulationFailure, Exit, Hypercall, InternalError, MmioRead, MmioWrite, MsrRead, MsrReason,
    MsrWrite, PortIn, PortOut, SystemEvent,
};

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
