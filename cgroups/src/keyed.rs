//! Files of a key and its value in each line.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::dir::Dir;
use crate::error::{ParseError, Result};

/// The content of a file that has a line for each device or resource: its name, a space, and what
/// the file says of it.
///
/// That is the form of `io.max`, `io.weight`, `io.latency`, `rdma.max`, `rdma.current`,
/// `misc.max`, v1's `blkio.throttle.*_device` and `net_prio.ifpriomap`.
///
/// ```
/// use cgroups::{DeviceNumber, IoMax, Keyed, Max};
///
/// let file: Keyed<DeviceNumber, IoMax> = "8:0 rbps=max wbps=max riops=120 wiops=max\n".parse()?;
/// assert_eq!(file.0[&DeviceNumber::new(8, 0)].reads, Max::At(120));
/// # Ok::<(), cgroups::ParseError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyed<K, V>(pub BTreeMap<K, V>);

impl<K: FromStr + Ord, V: FromStr> FromStr for Keyed<K, V> {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let entry = |line: &str| {
            let (key, value) = line.split_once(' ')?;
            Some((key.parse().ok()?, value.trim().parse().ok()?))
        };
        text.lines()
            .map(|line| {
                entry(line).ok_or_else(|| ParseError::new("a line of a key and a value", line))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl<K: fmt::Display, V: fmt::Display> fmt::Display for Keyed<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|(key, value)| writeln!(f, "{key} {value}"))
    }
}

/// Reads such a file; nothing where it is missing.
pub(crate) fn keyed<K, V>(dir: &Dir, file: &str) -> Result<Option<BTreeMap<K, V>>>
where
    K: FromStr + Ord,
    V: FromStr,
{
    let Some(text) = dir.try_read(file)? else {
        return Ok(None);
    };
    match text.parse() {
        Ok(Keyed(map)) => Ok(Some(map)),
        Err(error) => Err(dir.unforeseen(file, error)),
    }
}
