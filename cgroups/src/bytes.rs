//! An amount of memory.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;

/// An amount of memory in bytes.
///
/// It is written and read as people do it: `64MiB`, `1.5g`, `4096`. Units are powers of 1024
/// whether they are spelt `K`, `KB` or `KiB`.
///
/// ```
/// use cgroups::Bytes;
///
/// assert_eq!("64m".parse::<Bytes>()?, Bytes::mib(64));
/// assert_eq!(Bytes::new(1536).to_string(), "1536B");
/// # Ok::<(), cgroups::ParseError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct Bytes(u64);

const UNITS: [(&str, u32); 6] = [
    ("EiB", 60),
    ("PiB", 50),
    ("TiB", 40),
    ("GiB", 30),
    ("MiB", 20),
    ("KiB", 10),
];

impl Bytes {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// So many KiB (1,024 bytes); the largest representable amount where that overflows.
    pub const fn kib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 10))
    }

    /// So many MiB (1,048,576 bytes); the largest representable amount where that overflows.
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// So many GiB (1,073,741,824 bytes); the largest representable amount where that overflows.
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The amount that the kernel keeps when it is given this one: whole pages, rounded down.
    #[must_use]
    pub fn page_aligned(self) -> Self {
        let page = rustix::param::page_size() as u64;
        Self(self.0 - self.0 % page)
    }

    /// The sum, or the largest representable amount.
    #[must_use]
    pub const fn saturating_add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// The difference, or nothing where `other` is larger.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl From<u64> for Bytes {
    fn from(bytes: u64) -> Self {
        Self(bytes)
    }
}

impl From<Bytes> for u64 {
    fn from(bytes: Bytes) -> Self {
        bytes.0
    }
}

impl fmt::Display for Bytes {
    /// The largest unit that divides the amount exactly, so that nothing is lost.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 != 0 {
            for (unit, shift) in UNITS {
                if self.0.trailing_zeros() >= shift {
                    return f.pad(&format!("{}{unit}", self.0 >> shift));
                }
            }
        }
        f.pad(&format!("{}B", self.0))
    }
}

impl FromStr for Bytes {
    type Err = ParseError;

    /// Reads a decimal number with an optional fraction and an optional unit. A fraction of a
    /// byte is dropped.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new("an amount of memory such as 64MiB, 1.5g or 4096", text);
        let digits_end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(digits_end);
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            "p" | "pb" | "pib" => 50,
            "e" | "eb" | "eib" => 60,
            _ => return Err(fail()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || (number.contains('.') && fraction.is_empty()) {
            return Err(fail());
        }
        // More than 18 digits of fraction cannot change the result and would overflow.
        if fraction.len() > 18 || fraction.contains('.') {
            return Err(fail());
        }
        let scale = 1_u128 << shift;
        let whole: u128 = u128::from(whole.parse::<u64>().map_err(|_| fail())?) * scale;
        let part: u128 = match fraction {
            "" => 0,
            digits => {
                let value = u128::from(digits.parse::<u64>().map_err(|_| fail())?);
                let denominator = 10_u128.pow(u32::try_from(digits.len()).unwrap_or(18));
                value * scale / denominator
            }
        };
        u64::try_from(whole + part).map(Self).map_err(|_| fail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        let amount = |text: &str| text.parse::<Bytes>().map(Bytes::get);
        assert_eq!(amount("0"), Ok(0));
        assert_eq!(amount("4096"), Ok(4096));
        assert_eq!(amount("1.5g"), Ok(3 << 29));
        assert_eq!(amount("64 MiB"), Ok(64 << 20));
        assert_eq!(amount("0.5B"), Ok(0));
        assert_eq!(amount("15.999EiB"), Ok(18_445_591_152_204_944_769));
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "m",
            "-1",
            "1.",
            ".5",
            "1.2.3",
            "16EiB",
            "1x",
            "+1",
            "1e3",
            "18446744073709551616",
            "٣",
        ] {
            assert!(text.parse::<Bytes>().is_err(), "{text:?} was accepted");
        }
    }
}
