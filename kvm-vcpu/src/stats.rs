use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use crate::{Error, Result, Vcpu, Vm, sys};

/// What the kernel counts about a machine or a vCPU.
///
/// The descriptor keeps neither alive, and can be read from any thread while the guest runs.
///
/// Minimum kernel: 5.14.
#[doc(alias = "KVM_GET_STATS_FD")]
#[derive(Debug)]
pub struct Statistics {
    file: File,
    descriptors: Vec<Descriptor>,
    data: u64,
}

/// One of the kernel's counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statistic {
    /// Its name, such as `exits` or `halt_wait_ns`.
    pub name: String,
    /// How it behaves.
    pub kind: StatisticKind,
    /// What it counts.
    pub unit: StatisticUnit,
    /// Its value; one for each bucket of a histogram.
    pub values: Vec<u64>,
}

/// How a statistic behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatisticKind {
    /// It only grows.
    Cumulative,
    /// It is what is now.
    Instant,
    /// It is the highest that was.
    Peak,
    /// A histogram whose buckets have this size.
    LinearHistogram {
        /// The size.
        bucket: u32,
    },
    /// A histogram whose buckets begin at powers of two.
    LogHistogram,
    /// One that is newer than this library.
    Other(u32),
}

/// What a statistic counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StatisticUnit {
    /// Events or things.
    Count,
    /// Bytes, times a power of two.
    Bytes {
        /// The exponent.
        exponent: i16,
    },
    /// Seconds, times a power of ten: -9 for nanoseconds.
    Seconds {
        /// The exponent.
        exponent: i16,
    },
    /// CPU cycles.
    Cycles,
    /// Yes (1) or no (0).
    Boolean,
    /// One that is newer than this library.
    Other(u32),
}

#[derive(Debug)]
struct Descriptor {
    name: String,
    kind: StatisticKind,
    unit: StatisticUnit,
    offset: u64,
    /// How many words it has.
    size: usize,
}

const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;
/// More than any kernel has; a file that says otherwise is not one of statistics.
const MOST: u32 = 4096;

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

impl Statistics {
    fn open(file: File) -> io::Result<Self> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let (name_size, count) = (word(&header, 4), word(&header, 8));
        if name_size > MOST || count > MOST {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let len = DESCRIPTOR + name_size as usize;
        let mut bytes = vec![0; len * count as usize];
        file.read_exact_at(&mut bytes, word(&header, 16).into())?;
        Ok(Self {
            descriptors: bytes.chunks_exact(len).map(Descriptor::parse).collect(),
            data: word(&header, 20).into(),
            file,
        })
    }

    /// What they are now.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not tell.
    pub fn read(&self) -> Result<Vec<Statistic>> {
        let read = |descriptor: &Descriptor| {
            let mut bytes = vec![0; descriptor.size * 8];
            self.file
                .read_exact_at(&mut bytes, self.data + descriptor.offset)?;
            let words = bytes.as_chunks::<8>().0;
            Ok(Statistic {
                name: descriptor.name.clone(),
                kind: descriptor.kind,
                unit: descriptor.unit,
                values: words.iter().map(|w| u64::from_le_bytes(*w)).collect(),
            })
        };
        let all: io::Result<_> = self.descriptors.iter().map(read).collect();
        all.map_err(|source| Error::Ioctl {
            operation: "pread (reading statistics)",
            source,
        })
    }

    /// The first value of the statistic with this name; `None` when the kernel has none.
    ///
    /// # Errors
    ///
    /// As [`Statistics::read`].
    pub fn get(&self, name: &str) -> Result<Option<u64>> {
        let all = self.read()?;
        let found = all.into_iter().find(|s| s.name == name);
        Ok(found.and_then(|s| s.values.first().copied()))
    }
}

impl Descriptor {
    fn parse(bytes: &[u8]) -> Self {
        let flags = word(bytes, 0);
        let exponent_and_size = word(bytes, 4);
        let exponent = (exponent_and_size as u16).cast_signed();
        let bucket = word(bytes, 12);
        let name = bytes[DESCRIPTOR..].split(|b| *b == 0).next();
        Self {
            name: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
            kind: match flags & 0xf {
                0 => StatisticKind::Cumulative,
                1 => StatisticKind::Instant,
                2 => StatisticKind::Peak,
                3 => StatisticKind::LinearHistogram { bucket },
                4 => StatisticKind::LogHistogram,
                other => StatisticKind::Other(other),
            },
            unit: match flags >> 4 & 0xf {
                0 => StatisticUnit::Count,
                1 => StatisticUnit::Bytes { exponent },
                2 => StatisticUnit::Seconds { exponent },
                3 => StatisticUnit::Cycles,
                4 => StatisticUnit::Boolean,
                other => StatisticUnit::Other(other),
            },
            offset: word(bytes, 8).into(),
            size: (exponent_and_size >> 16) as usize,
        }
    }
}

fn statistics(of: BorrowedFd<'_>) -> Result<Statistics> {
    sys::stats_file(of)
        .and_then(Statistics::open)
        .map_err(|source| match source.raw_os_error() {
            Some(libc::ENOTTY | libc::EINVAL) => Error::Unsupported {
                capability: "KVM_CAP_BINARY_STATS_FD",
                advice: "use a kernel of 5.14 or newer",
            },
            _ => Error::Ioctl {
                operation: "KVM_GET_STATS_FD (opening statistics)",
                source,
            },
        })
}

impl Vm {
    /// What the kernel counts about the machine.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] before kernel 5.14; [`Error::Ioctl`] when it fails otherwise.
    #[doc(alias = "KVM_GET_STATS_FD")]
    pub fn statistics(&self) -> Result<Statistics> {
        statistics(self.as_fd())
    }
}

impl Vcpu {
    /// What the kernel counts about the vCPU: exits of all kinds among them.
    ///
    /// # Errors
    ///
    /// As [`Vm::statistics`].
    #[doc(alias = "KVM_GET_STATS_FD")]
    pub fn statistics(&self) -> Result<Statistics> {
        statistics(self.as_fd())
    }
}
