//! Device numbers.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;

/// The number of a block or character device.
///
/// ```
/// use cgroups::DeviceNumber;
///
/// let null: DeviceNumber = "1:3".parse()?;
/// assert_eq!((null.major, null.minor), (1, 3));
/// # Ok::<(), cgroups::ParseError>(())
/// ```
#[doc(alias = "dev_t")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// The device with these numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new("a device number such as 8:0", text);
        let (major, minor) = text.split_once(':').ok_or_else(fail)?;
        let number = |digits: &str| {
            if digits.starts_with('+') {
                return Err(fail());
            }
            digits.parse().map_err(|_| fail())
        };
        Ok(Self::new(number(major)?, number(minor)?))
    }
}

#[cfg(feature = "serde")]
impl From<DeviceNumber> for String {
    fn from(device: DeviceNumber) -> Self {
        device.to_string()
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for DeviceNumber {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}
