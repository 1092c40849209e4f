//! Percentages.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ParseError};

/// A percentage in hundredths, 0.00 to 100.00, as the kernel has it for utilisation clamps and
/// pressure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "u16", into = "u16"))]
pub struct Percent(u16);

impl Percent {
    /// So many hundredths of a percent.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfRange`] above 10000.
    pub fn from_hundredths(hundredths: u16) -> Result<Self, Error> {
        if hundredths <= 10_000 {
            Ok(Self(hundredths))
        } else {
            Err(Error::OutOfRange {
                what: "number of hundredths of a percent",
                value: hundredths.to_string(),
                min: "0",
                max: "10000",
            })
        }
    }

    /// In hundredths of a percent, 0 to 10000.
    pub const fn hundredths(self) -> u16 {
        self.0
    }

    /// As a number from 0 to 100.
    pub fn as_f64(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}.{:02}", self.0 / 100, self.0 % 100))
    }
}

impl FromStr for Percent {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parsed = || {
            let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(whole) || !digits(part) || part.len() > 2 {
                return None;
            }
            let scale = if part.len() == 1 { 10 } else { 1 };
            let whole: u16 = whole.parse().ok()?;
            let part: u16 = part.parse().ok()?;
            Self::from_hundredths(whole.checked_mul(100)?.checked_add(part * scale)?).ok()
        };
        parsed().ok_or_else(|| ParseError::new("a percentage such as 12.34, up to 100", text))
    }
}

#[cfg(feature = "serde")]
impl From<Percent> for u16 {
    fn from(percent: Percent) -> Self {
        percent.0
    }
}

#[cfg(feature = "serde")]
impl TryFrom<u16> for Percent {
    type Error = Error;

    fn try_from(hundredths: u16) -> Result<Self, Error> {
        Self::from_hundredths(hundredths)
    }
}
