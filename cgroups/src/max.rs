//! A limit that may be absent.

use std::fmt;
use std::str::FromStr;

/// A limit, or its absence (`max` in the kernel's files).
///
/// A plain value converts, so setters are called with either:
///
/// ```
/// use cgroups::{Bytes, Limits, Max};
///
/// let limits = Limits::new().memory_max(Bytes::mib(64)).pids_max(Max::Unlimited);
/// # let _ = limits;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Max<T> {
    /// No more than this.
    At(T),
    /// No limit.
    #[doc(alias = "max")]
    Unlimited,
}

impl<T> Max<T> {
    /// The limit, when there is one.
    pub fn limit(self) -> Option<T> {
        match self {
            Self::At(limit) => Some(limit),
            Self::Unlimited => None,
        }
    }

    /// Changes the limit, when there is one.
    pub fn map<U>(self, change: impl FnOnce(T) -> U) -> Max<U> {
        match self {
            Self::At(limit) => Max::At(change(limit)),
            Self::Unlimited => Max::Unlimited,
        }
    }
}

impl<T: Ord> PartialOrd for Max<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T: Ord> Ord for Max<T> {
    /// No limit is greater than every limit.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        use std::cmp::Ordering::{Equal, Greater, Less};
        match (self, other) {
            (Self::At(a), Self::At(b)) => a.cmp(b),
            (Self::At(_), Self::Unlimited) => Less,
            (Self::Unlimited, Self::At(_)) => Greater,
            (Self::Unlimited, Self::Unlimited) => Equal,
        }
    }
}

impl<T> From<T> for Max<T> {
    fn from(limit: T) -> Self {
        Self::At(limit)
    }
}

impl<T: fmt::Display> fmt::Display for Max<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(limit) => limit.fmt(f),
            Self::Unlimited => f.pad("max"),
        }
    }
}

impl<T: FromStr> FromStr for Max<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        match text {
            "max" => Ok(Self::Unlimited),
            other => other.parse().map(Self::At),
        }
    }
}
