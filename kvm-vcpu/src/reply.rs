use crate::Exit;

// Where the fields of `struct kvm_run`'s union begin; fixed by the interface (linux/kvm.h).
pub(crate) const MMIO_DATA: usize = 8;
pub(crate) const HYPERCALL_RET: usize = 56;
pub(crate) const MSR_ERROR: usize = 0;
pub(crate) const MSR_DATA: usize = 16;

/// An answer to an exit, for [`Vcpu::reply`](crate::Vcpu::reply).
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a reply reaches the guest through `Vcpu::reply`"]
pub struct Reply {
    pub(crate) token: u64,
    pub(crate) expected: usize,
    pub(crate) place: Place,
    pub(crate) data: Data,
}

impl Reply {
    pub(crate) fn word(token: u64, offset: usize, value: u64) -> Self {
        Self {
            token,
            expected: 8,
            place: Place::Payload(offset),
            data: Data::new(&value.to_le_bytes()),
        }
    }

    pub(crate) fn msr_error(token: u64, error: u8) -> Self {
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
            Some(Reply {
                token: read.token,
                expected: len,
                place: Place::Page(read.offset),
                data: Data::repeat(&[0xff], len),
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

/// Bytes that need no allocation as long as they are few, as those of a single access are.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    Few([u8; Self::FEW], u8),
    Many(Box<[u8]>),
}

impl Data {
    /// As many as the answer to a read of a model-specific register has.
    const FEW: usize = MSR_DATA + 8;

    pub(crate) fn new(bytes: &[u8]) -> Self {
        Self::repeat(bytes, 1)
    }

    /// These bytes so many times.
    pub(crate) fn repeat(bytes: &[u8], count: usize) -> Self {
        let len = bytes.len().saturating_mul(count);
        if len > Self::FEW {
            return Self::Many(bytes.repeat(count).into());
        }
        let mut few = [0; Self::FEW];
        for (to, from) in few.iter_mut().zip(bytes.iter().cycle().take(len)) {
            *to = *from;
        }
        Self::Few(few, len as u8)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MmioRead, MsrRead, MsrReason, PortIn};

    #[test]
    fn answers_to_single_accesses_are_not_allocated() {
        let port = |size, count| PortIn {
            port: 0x60,
            size,
            count,
            token: 0,
            offset: 0,
        };
        let memory = MmioRead {
            address: 0,
            size: 8,
            token: 0,
        };
        let register = MsrRead {
            index: 1,
            reason: MsrReason::Unknown,
            raw_reason: 2,
            token: 0,
        };
        for reply in [
            port(4, 1).reply(1),
            memory.reply(1),
            register.reply(1),
            register.refuse(),
        ] {
            assert!(matches!(reply.data, Data::Few(..)), "{reply:?}");
        }
        assert_eq!(port(2, 3).reply(0x0201).data(), [1, 2, 1, 2, 1, 2]);
        assert_eq!(port(2, 300).reply(0x0201).data(), [1, 2].repeat(300));
    }
}
