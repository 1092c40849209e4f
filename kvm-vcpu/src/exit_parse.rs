use kvm_bindings as k;

use crate::reply::{Data, MMIO_DATA, MSR_DATA};
use crate::sys::{EXIT_UNION, RunPage};
use crate::{
    EmulationFailure, Exit, Hypercall, InternalError, MmioRead, MmioWrite, MsrRead, MsrReason,
    MsrWrite, PortIn, PortOut, SystemEvent,
};

/// The payload of an exit, of which only the fields that are asked for are read.
struct Payload<'a>(&'a RunPage);

impl Payload<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        // Past the end there is nothing, and every field ends before.
        self.0.read_payload(at, &mut out);
        out
    }

    fn u8(&self, at: usize) -> u8 {
        self.bytes::<1>(at)[0]
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

    fn whole(&self) -> Box<[u8; EXIT_UNION]> {
        Box::new(self.bytes(0))
    }
}

/// Makes an exit of what the kernel left in the run pages.
pub(crate) fn parse(page: &RunPage, token: u64) -> Exit {
    let p = Payload(page);
    let reason = page.exit_reason();
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
                page.read(offset, &mut few[..len]);
                Data::new(&few[..len])
            } else {
                // The kernel batches at most one page of data; never allocate for more.
                let mut many = vec![0; len.min(crate::PAGE_SIZE as usize)];
                page.read(offset, &mut many);
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
        k::KVM_EXIT_AP_RESET_HOLD => Exit::ApResetHold,
        k::KVM_EXIT_NMI => Exit::Nmi,
        k::KVM_EXIT_UNKNOWN => Exit::Unknown {
            hardware_reason: p.u64(0),
        },
        k::KVM_EXIT_HYPERV | k::KVM_EXIT_XEN => Exit::Enlightenment {
            reason,
            payload: p.whole(),
        },
        _ => Exit::Other {
            reason,
            payload: p.whole(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_run__bindgen_ty_1 as Union;

    /// An exit with values at offsets, which are the kernel's own (its headers, through bindgen).
    fn exit(reason: u32, values: &[(usize, u64, usize)]) -> Exit {
        let mut page = RunPage::without_vcpu().unwrap();
        let at = std::mem::offset_of!(kvm_bindings::kvm_run, exit_reason);
        page.write(at, &reason.to_le_bytes());
        for (at, value, len) in values {
            assert!(page.write_payload(*at, &value.to_le_bytes()[..*len]));
        }
        parse(&page, 7)
    }

    macro_rules! at {
        ($($field:tt)*) => { std::mem::offset_of!(Union, $($field)*) };
    }

    #[test]
    fn payloads_are_read_where_the_kernel_puts_them() {
        let e = exit(
            k::KVM_EXIT_UNKNOWN,
            &[(at!(hw.hardware_exit_reason), 0x7b, 8)],
        );
        assert_eq!(
            e,
            Exit::Unknown {
                hardware_reason: 0x7b
            }
        );
        let (vector, code) = (at!(ex.exception), at!(ex.error_code));
        let e = exit(k::KVM_EXIT_EXCEPTION, &[(vector, 14, 4), (code, 6, 4)]);
        assert_eq!(
            e,
            Exit::Exception {
                vector: 14,
                error_code: 6
            }
        );
        let (reason, cpu) = (
            at!(fail_entry.hardware_entry_failure_reason),
            at!(fail_entry.cpu),
        );
        let e = exit(k::KVM_EXIT_FAIL_ENTRY, &[(reason, 1 << 40, 8), (cpu, 3, 4)]);
        assert_eq!(
            e,
            Exit::FailEntry {
                reason: 1 << 40,
                cpu: 3
            }
        );
        let values = [
            (at!(debug.arch.exception), 1, 4),
            (at!(debug.arch.pc), 0x1234, 8),
            (at!(debug.arch.dr6), 0x4ff0, 8),
            (at!(debug.arch.dr7), 0x400, 8),
        ];
        let (pc, dr6, dr7) = (0x1234, 0x4ff0, 0x400);
        let e = exit(k::KVM_EXIT_DEBUG, &values);
        assert_eq!(
            e,
            Exit::Debug {
                exception: 1,
                pc,
                dr6,
                dr7
            }
        );
        let (rip, is_write) = (at!(tpr_access.rip), at!(tpr_access.is_write));
        let e = exit(k::KVM_EXIT_TPR_ACCESS, &[(rip, 0x99, 8), (is_write, 1, 4)]);
        assert_eq!(
            e,
            Exit::TprAccess {
                rip: 0x99,
                is_write: true
            }
        );
        let e = exit(k::KVM_EXIT_IOAPIC_EOI, &[(at!(eoi.vector), 0x31, 1)]);
        assert_eq!(e, Exit::IoapicEoi { vector: 0x31 });
        let e = exit(k::KVM_EXIT_NOTIFY, &[(at!(notify.flags), 1, 4)]);
        assert_eq!(e, Exit::Notify { flags: 1 });
        let values = [
            (at!(memory_fault.flags), 8, 8),
            (at!(memory_fault.gpa), 0x5000, 8),
            (at!(memory_fault.size), 0x1000, 8),
        ];
        let (flags, address, size) = (8, 0x5000, 0x1000);
        let e = exit(k::KVM_EXIT_MEMORY_FAULT, &values);
        assert_eq!(
            e,
            Exit::MemoryFault {
                flags,
                address,
                size
            }
        );
        let values = [
            (at!(system_event.type_), 2, 4),
            (at!(system_event.ndata), 1, 4),
            (at!(system_event.__bindgen_anon_1.data), 5, 8),
        ];
        let e = exit(k::KVM_EXIT_SYSTEM_EVENT, &values);
        assert_eq!(
            e,
            Exit::SystemEvent(SystemEvent {
                kind: 2,
                data: vec![5]
            })
        );
        let values = [(at!(hypercall.nr), 12, 8), (at!(hypercall.args), 34, 8)];
        match exit(k::KVM_EXIT_HYPERCALL, &values) {
            Exit::Hypercall(call) => assert_eq!((call.number, call.args[0]), (12, 34)),
            other => panic!("{other:?}"),
        }
        for (reason, expected) in [
            (k::KVM_EXIT_INTR, Exit::Interrupted),
            (k::KVM_EXIT_IRQ_WINDOW_OPEN, Exit::InterruptWindow),
            (k::KVM_EXIT_SET_TPR, Exit::SetTpr),
            (k::KVM_EXIT_DIRTY_RING_FULL, Exit::DirtyRingFull),
            (k::KVM_EXIT_X86_BUS_LOCK, Exit::BusLock),
            (k::KVM_EXIT_AP_RESET_HOLD, Exit::ApResetHold),
            (k::KVM_EXIT_NMI, Exit::Nmi),
        ] {
            assert_eq!(exit(reason, &[]), expected);
        }
        match exit(9999, &[(0, 0xab, 1)]) {
            Exit::Other { reason, payload } => assert_eq!((reason, payload[0]), (9999, 0xab)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn internal_errors_are_told_apart() {
        let internal = |suberror: u32, count, data| {
            let values = [
                (at!(internal.suberror), suberror.into(), 4),
                (at!(internal.ndata), count, 4),
                (at!(internal.data), data, 8),
                (
                    at!(emulation_failure
                        .__bindgen_anon_1
                        .__bindgen_anon_1
                        .insn_size),
                    2,
                    1,
                ),
                (
                    at!(emulation_failure
                        .__bindgen_anon_1
                        .__bindgen_anon_1
                        .insn_bytes),
                    0x0b0f,
                    2,
                ),
            ];
            match exit(k::KVM_EXIT_INTERNAL_ERROR, &values) {
                Exit::InternalError(error) => error,
                other => panic!("{other:?}"),
            }
        };
        let instruction =
            |count, flags| match internal(k::KVM_INTERNAL_ERROR_EMULATION, count, flags) {
                InternalError::Emulation(failure) => failure.instruction().to_vec(),
                other => panic!("{other:?}"),
            };
        assert_eq!(instruction(3, 1), [0x0f, 0x0b]);
        // Bytes that the kernel does not say are there.
        assert!(instruction(0, 1).is_empty());
        assert!(instruction(3, 0).is_empty());
        let data = vec![9];
        assert_eq!(
            internal(k::KVM_INTERNAL_ERROR_DELIVERY_EV, 1, 9),
            InternalError::Delivery { data: data.clone() }
        );
        assert_eq!(
            internal(k::KVM_INTERNAL_ERROR_SIMUL_EX, 1, 9),
            InternalError::SimultaneousExceptions { data: data.clone() }
        );
        assert_eq!(
            internal(k::KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, 1, 9),
            InternalError::UnexpectedExit { data: data.clone() }
        );
        let other = internal(77, 1, 9);
        assert_eq!(other, InternalError::Other { suberror: 77, data });
        // More words than there is room for.
        match internal(77, u32::MAX.into(), 9) {
            InternalError::Other { data, .. } => assert_eq!(data.len(), 16),
            other => panic!("{other:?}"),
        }
    }
}
