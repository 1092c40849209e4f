//! What a group may do to block devices.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::bytes::Bytes;
use crate::error::ParseError;
use crate::max::Max;

/// The most that a group may read from and write to one device in a second.
///
/// v1: `blkio.throttle.{read,write}_{bps,iops}_device`.
#[doc(alias = "io.max")]
#[doc(alias = "blkio.throttle.read_bps_device")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct IoMax {
    /// Bytes read in a second; at least 1.
    #[doc(alias = "rbps")]
    pub read_bytes: Max<Bytes>,
    /// Bytes written in a second; at least 1.
    #[doc(alias = "wbps")]
    pub written_bytes: Max<Bytes>,
    /// Read operations in a second; at least 1.
    #[doc(alias = "riops")]
    pub reads: Max<u32>,
    /// Write operations in a second; at least 1.
    #[doc(alias = "wiops")]
    pub writes: Max<u32>,
}

impl IoMax {
    /// No limit.
    pub const UNLIMITED: Self = Self {
        read_bytes: Max::Unlimited,
        written_bytes: Max::Unlimited,
        reads: Max::Unlimited,
        writes: Max::Unlimited,
    };

    /// Limits the bytes read in a second.
    #[must_use]
    pub fn read_bytes(self, limit: impl Into<Max<Bytes>>) -> Self {
        Self {
            read_bytes: limit.into(),
            ..self
        }
    }

    /// Limits the bytes written in a second.
    #[must_use]
    pub fn written_bytes(self, limit: impl Into<Max<Bytes>>) -> Self {
        Self {
            written_bytes: limit.into(),
            ..self
        }
    }

    /// Limits the read operations in a second.
    #[must_use]
    pub fn reads(self, limit: impl Into<Max<u32>>) -> Self {
        Self {
            reads: limit.into(),
            ..self
        }
    }

    /// Limits the write operations in a second.
    #[must_use]
    pub fn writes(self, limit: impl Into<Max<u32>>) -> Self {
        Self {
            writes: limit.into(),
            ..self
        }
    }

    /// Whether one of them is 0, which no kernel accepts (v1 would take it for no limit).
    pub(crate) fn has_zero(self) -> bool {
        self.read_bytes == Max::At(Bytes::ZERO)
            || self.written_bytes == Max::At(Bytes::ZERO)
            || self.reads == Max::At(0)
            || self.writes == Max::At(0)
    }
}

impl Default for IoMax {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

impl fmt::Display for IoMax {
    /// As `io.max` has it, after the device.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "rbps={} wbps={} riops={} wiops={}",
            self.read_bytes.map(Bytes::get),
            self.written_bytes.map(Bytes::get),
            self.reads,
            self.writes
        )
    }
}

impl FromStr for IoMax {
    type Err = ParseError;

    /// Reads a line of `io.max` without its device. A key that is missing means no limit.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new("limits such as rbps=1048576 wiops=max", text);
        let mut max = Self::UNLIMITED;
        for pair in text.split_ascii_whitespace() {
            let (key, value) = pair.split_once('=').ok_or_else(fail)?;
            match key {
                "rbps" => max.read_bytes = number::<u64>(value).ok_or_else(fail)?.map(Bytes::new),
                "wbps" => {
                    max.written_bytes = number::<u64>(value).ok_or_else(fail)?.map(Bytes::new);
                }
                "riops" => max.reads = number(value).ok_or_else(fail)?,
                "wiops" => max.writes = number(value).ok_or_else(fail)?,
                // A newer kernel may limit something else as well.
                _ => {}
            }
        }
        Ok(max)
    }
}

fn number<T: FromStr>(text: &str) -> Option<Max<T>> {
    if text.starts_with('+') {
        return None;
    }
    text.parse().ok()
}

/// The latency to protect for a device: what a line of `io.latency` says, after the device. The
/// kernel counts in microseconds.
#[doc(alias = "io.latency")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatencyTarget(pub Max<Duration>);

impl fmt::Display for LatencyTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "target={}", self.0.map(|latency| latency.as_micros()))
    }
}

impl FromStr for LatencyTarget {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        text.strip_prefix("target=")
            .and_then(number::<u64>)
            .map(|target| Self(target.map(Duration::from_micros)))
            .ok_or_else(|| ParseError::new("target=<microseconds> or target=max", text))
    }
}

/// The most that a group may hold of an RDMA device.
#[doc(alias = "rdma.max")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct RdmaMax {
    /// Handles of the device.
    #[doc(alias = "hca_handle")]
    pub handles: Max<u32>,
    /// Objects of the device.
    #[doc(alias = "hca_object")]
    pub objects: Max<u32>,
}

impl RdmaMax {
    /// No limit.
    pub const UNLIMITED: Self = Self {
        handles: Max::Unlimited,
        objects: Max::Unlimited,
    };
}

impl Default for RdmaMax {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

impl fmt::Display for RdmaMax {
    /// As `rdma.max` has it, after the device.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hca_handle={} hca_object={}", self.handles, self.objects)
    }
}

impl FromStr for RdmaMax {
    type Err = ParseError;

    /// Reads a line of `rdma.max` without its device.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new("limits such as hca_handle=2 hca_object=max", text);
        let mut max = Self::UNLIMITED;
        for pair in text.split_ascii_whitespace() {
            let (key, value) = pair.split_once('=').ok_or_else(fail)?;
            match key {
                "hca_handle" => max.handles = number(value).ok_or_else(fail)?,
                "hca_object" => max.objects = number(value).ok_or_else(fail)?,
                _ => {}
            }
        }
        Ok(max)
    }
}
