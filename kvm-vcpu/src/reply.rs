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
pub(crate) enum Data {
    Few([u8; 8], u8),
    Many(Box<[u8]>),
}

impl Data {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut few = [0; 8];
        match u8::try_from(bytes.len()) {
            Ok(len) if len <= 8 => {
                few[..bytes.len()].copy_from_slice(bytes);
                Self::Few(few, len)
            }
            _ => Self::Many(bytes.into()),
        }
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
