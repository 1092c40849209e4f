//! Sets of processors and of memory nodes.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::error::ParseError;

/// A set of processors or memory nodes, written as the kernel does: `0-3,8`.
///
/// ```
/// use cgroups::IdSet;
///
/// let cpus: IdSet = "0-3,8".parse()?;
/// assert!(cpus.contains(2) && !cpus.contains(5));
/// assert_eq!(cpus.len(), 5);
/// # Ok::<(), cgroups::ParseError>(())
/// ```
#[doc(alias = "cpuset.cpus")]
#[doc(alias = "cpuset.mems")]
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "String", into = "String"))]
pub struct IdSet {
    ids: BTreeSet<u32>,
}

/// No kernel knows more processors (`CONFIG_NR_CPUS` goes to 8192); the bound keeps a hostile
/// text such as `0-4294967295` from filling memory.
const MAX_ID: u32 = 65_535;

impl IdSet {
    /// The empty set. Given to a group on v2 it means "as the parent".
    pub const fn new() -> Self {
        Self {
            ids: BTreeSet::new(),
        }
    }

    /// Whether `id` belongs to the set.
    pub fn contains(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// The members in rising order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.ids.iter().copied()
    }

    /// Whether every member is also one of `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        self.ids.is_subset(&other.ids)
    }
}

impl FromIterator<u32> for IdSet {
    fn from_iter<I: IntoIterator<Item = u32>>(ids: I) -> Self {
        Self {
            ids: ids.into_iter().collect(),
        }
    }
}

impl From<RangeInclusive<u32>> for IdSet {
    fn from(ids: RangeInclusive<u32>) -> Self {
        ids.collect()
    }
}

impl From<u32> for IdSet {
    fn from(id: u32) -> Self {
        [id].into_iter().collect()
    }
}

impl fmt::Display for IdSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ids = self.ids.iter().copied().peekable();
        let mut separator = "";
        while let Some(first) = ids.next() {
            let mut last = first;
            while let Some(next) = ids.next_if(|&id| id == last + 1) {
                last = next;
            }
            if first == last {
                write!(f, "{separator}{first}")?;
            } else {
                write!(f, "{separator}{first}-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for IdSet {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fail = || ParseError::new("a list of numbers up to 65535, such as 0-3,8", text);
        let number = |text: &str| {
            let value = text.parse::<u32>().map_err(|_| fail())?;
            if value > MAX_ID || text.starts_with('+') {
                return Err(fail());
            }
            Ok(value)
        };
        let mut ids = BTreeSet::new();
        let text_trimmed = text.trim();
        if text_trimmed.is_empty() {
            return Ok(Self { ids });
        }
        for range in text_trimmed.split(',') {
            match range.split_once('-') {
                None => {
                    ids.insert(number(range)?);
                }
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(fail());
                    }
                    ids.extend(first..=last);
                }
            }
        }
        Ok(Self { ids })
    }
}

#[cfg(feature = "serde")]
impl From<IdSet> for String {
    fn from(set: IdSet) -> Self {
        set.to_string()
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for IdSet {
    type Error = ParseError;

    fn try_from(text: String) -> Result<Self, ParseError> {
        text.parse()
    }
}
