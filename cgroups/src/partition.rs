//! Processors for one group alone.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;

/// Whether the processors of a group are shared with its siblings. v2 only.
#[doc(alias = "cpuset.cpus.partition")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Partition {
    /// Shared.
    #[default]
    Member,
    /// The group's own, a scheduling domain of their own.
    Root,
    /// The group's own, without load balancing. Linux 6.0.
    Isolated,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Member => "member",
            Self::Root => "root",
            Self::Isolated => "isolated",
        })
    }
}

impl FromStr for Partition {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "member" => Ok(Self::Member),
            "root" => Ok(Self::Root),
            "isolated" => Ok(Self::Isolated),
            _ => Err(ParseError::new("member, root or isolated", text)),
        }
    }
}
