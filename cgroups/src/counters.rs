//! Files of a key and a number in each line.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;

/// Every counter of a file of the kernel, by the kernel's name for it. Those of a newer kernel
/// are kept too.
///
/// ```
/// use cgroups::Counters;
///
/// let stat: Counters = "anon 4096\nfile 0\n".parse()?;
/// assert_eq!(stat.get("anon"), Some(4096));
/// assert_eq!(stat.get("shmem"), None);
/// # Ok::<(), cgroups::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counters {
    // Kept as it was read: one allocation however many lines.
    text: String,
}

impl Counters {
    /// One counter.
    pub fn get(&self, key: &str) -> Option<u64> {
        self.iter().find(|(name, _)| *name == key).map(|(_, n)| n)
    }

    /// All of them, in the kernel's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u64)> {
        self.text.lines().filter_map(entry)
    }
}

fn entry(line: &str) -> Option<(&str, u64)> {
    let (key, value) = line.split_once(' ')?;
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    (digits && !key.is_empty()).then_some((key, value.parse().ok()?))
}

impl FromStr for Counters {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.lines().find(|line| entry(line).is_none()) {
            Some(line) => Err(ParseError::new("a key and a number", line)),
            None => Ok(Self {
                text: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
