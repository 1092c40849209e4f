use crate::Reply;
use crate::reply::{Data, HYPERCALL_RET, MMIO_DATA, MSR_DATA, MSR_ERROR, Place};

/// The width of one access in bytes: 1, 2, 4 or 8.
pub type Access = u8;

/// A write to an I/O port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOut {
    /// The port.
    pub port: u16,
    /// How many bytes each write has: 1, 2 or 4.
    pub size: Access,
    pub(crate) data: Data,
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
    pub(crate) token: u64,
    pub(crate) offset: usize,
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
        self.reply_data(Data::repeat(one, self.count as usize))
    }

    /// Answers with these bytes, as many as [`PortIn::len`].
    pub fn reply_bytes(&self, bytes: &[u8]) -> Reply {
        self.reply_data(Data::new(bytes))
    }

    fn reply_data(&self, data: Data) -> Reply {
        Reply {
            token: self.token,
            expected: self.len(),
            place: Place::Page(self.offset),
            data,
        }
    }
}

/// A write to an address without memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MmioWrite {
    /// The guest-physical address.
    pub address: u64,
    pub(crate) data: Data,
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
    pub(crate) token: u64,
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
    pub(crate) token: u64,
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
    pub(crate) raw_reason: u32,
    pub(crate) token: u64,
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
    pub(crate) token: u64,
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
