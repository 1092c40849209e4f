//! Mappings of user and group ids between a user namespace and its parent.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

/// One line of `/proc/PID/uid_map`: `count` ids from `inside` on are the ids from `outside` on
/// in the parent namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdRange {
    /// First id inside the new namespace.
    pub inside: u32,
    /// First id outside, as the caller sees it.
    pub outside: u32,
    /// How many consecutive ids.
    pub count: u32,
}

/// A mapping of ids: the lines of one `uid_map` or `gid_map`, see `user_namespaces(7)`.
///
/// The kernel takes up to 340 lines that do not overlap on either side; others are an error of
/// [`Command::start`](crate::Command::start).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[doc(alias = "uid_map")]
#[doc(alias = "gid_map")]
pub struct IdMap {
    ranges: Vec<IdRange>,
}

impl IdMap {
    /// Every id is itself. Needs privilege.
    pub fn identity() -> Self {
        Self::ranges([IdRange {
            inside: 0,
            outside: 0,
            count: u32::MAX,
        }])
    }

    /// One id. Without privilege `outside` must be the caller's own effective id.
    pub fn single(inside: u32, outside: u32) -> Self {
        Self::ranges([IdRange {
            inside,
            outside,
            count: 1,
        }])
    }

    /// Any ranges.
    pub fn ranges(ranges: impl IntoIterator<Item = IdRange>) -> Self {
        Self {
            ranges: ranges.into_iter().collect(),
        }
    }

    /// The lines of the mapping.
    pub fn as_ranges(&self) -> &[IdRange] {
        &self.ranges
    }

    /// What the id `inside` is outside, or `None` when it is not mapped.
    pub fn to_outside(&self, inside: u32) -> Option<u32> {
        self.ranges.iter().find_map(|range| {
            let offset = inside.checked_sub(range.inside)?;
            (offset < range.count).then(|| range.outside.checked_add(offset))?
        })
    }

    /// What the id `outside` is inside, or `None` when it is not mapped.
    pub fn to_inside(&self, outside: u32) -> Option<u32> {
        self.ranges.iter().find_map(|range| {
            let offset = outside.checked_sub(range.outside)?;
            (offset < range.count).then(|| range.inside.checked_add(offset))?
        })
    }

    /// The map of the user namespace that this process is in; `file` is `uid_map` or `gid_map`.
    /// `None` where it cannot be read, as without `/proc` or on a kernel without user namespaces.
    pub(crate) fn of_this_process(file: &str) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/self/{file}")).ok()?;
        text.lines()
            .map(|line| {
                let mut numbers = line.split_whitespace().map(str::parse);
                Some(IdRange {
                    inside: numbers.next()?.ok()?,
                    outside: numbers.next()?.ok()?,
                    count: numbers.next()?.ok()?,
                })
            })
            .collect()
    }

    /// The text that the kernel takes.
    pub(crate) fn to_kernel(&self) -> String {
        use fmt::Write as _;
        let mut text = String::new();
        for range in &self.ranges {
            // Writing to a String does not fail.
            let _ = writeln!(text, "{} {} {}", range.inside, range.outside, range.count);
        }
        text
    }

    /// What is wrong with the ranges, if anything.
    pub(crate) fn defect(&self) -> Option<&'static str> {
        if self.ranges.is_empty() {
            return Some("it has no ranges; give at least one");
        }
        if self.ranges.len() > 340 {
            return Some("it has more than the 340 ranges that the kernel takes; join neighbours");
        }
        for (at, range) in self.ranges.iter().enumerate() {
            if range.count == 0 {
                return Some("a range has a count of 0; give at least 1");
            }
            if range.inside.checked_add(range.count).is_none()
                || range.outside.checked_add(range.count).is_none()
            {
                return Some("a range goes beyond the largest id, 4294967294; make it shorter");
            }
            let overlap = |a: u32, b: u32, other: &IdRange| {
                a < b.saturating_add(other.count) && b < a.saturating_add(range.count)
            };
            if self.ranges.iter().take(at).any(|other| {
                overlap(range.inside, other.inside, other)
                    || overlap(range.outside, other.outside, other)
            }) {
                return Some("two ranges overlap; every id may be mapped once on either side");
            }
        }
        None
    }
}

impl FromIterator<IdRange> for IdMap {
    fn from_iter<I: IntoIterator<Item = IdRange>>(ranges: I) -> Self {
        Self::ranges(ranges)
    }
}

/// How the ids of a new user namespace are mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UserMapping {
    /// Exactly these two maps.
    ///
    /// Written by this process when it may (`CAP_SETUID` and `CAP_SETGID`, or one id that is its
    /// own); otherwise through `newuidmap` and `newgidmap`, which check `/etc/subuid` and
    /// `/etc/subgid`.
    Exact {
        /// User ids.
        uids: IdMap,
        /// Group ids.
        gids: IdMap,
    },
    /// Root inside is the caller; ids from 1 on are the caller's subordinate ids from
    /// `/etc/subuid` and `/etc/subgid`, see `subuid(5)`. This is what rootless containers use.
    ///
    /// Where the caller has none, or the helpers are missing, only the caller's own id is mapped;
    /// [`Starting::id_mapping`](crate::Starting::id_mapping) then tells why.
    Subordinate,
    /// Root inside is the caller, and there is no other id. Needs no privilege and no helper.
    CallerAsRoot,
}

/// The id mapping that a new user namespace got.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdMapping {
    /// User ids.
    pub uids: IdMap,
    /// Group ids.
    pub gids: IdMap,
    /// Whether `setgroups(2)` is allowed inside. It is not when an unprivileged process wrote the
    /// map itself.
    pub setgroups: bool,
    /// Why fewer ids than wanted are mapped, when that is so.
    pub degraded: Option<Degradation>,
}

/// Why only one id could be mapped although [`UserMapping::Subordinate`] was asked for.
///
/// The message tells what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Degradation {
    /// The user has no range in `/etc/subuid` or `/etc/subgid`.
    NoSubordinateIds {
        /// Name of the user, or its number where it has none.
        user: String,
        /// The file without an entry.
        file: PathBuf,
    },
    /// `newuidmap` or `newgidmap` is not installed.
    HelperMissing {
        /// Name of the program.
        helper: &'static str,
    },
    /// `newuidmap` or `newgidmap` refused.
    HelperFailed {
        /// Name of the program.
        helper: &'static str,
        /// What it printed.
        message: OsString,
    },
}

impl fmt::Display for Degradation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSubordinateIds { user, file } => {
                let kind = if file.ends_with("subgid") {
                    "gid"
                } else {
                    "uid"
                };
                write!(
                    f,
                    "no subordinate ids: {user} has no range in {}; run `usermod --add-sub{kind}s 100000-165535 {user}` as root",
                    file.display()
                )
            }
            Self::HelperMissing { helper } => write!(
                f,
                "no subordinate ids: {helper} is not installed; install the package uidmap (shadow-utils on Fedora)"
            ),
            Self::HelperFailed { helper, message } => write!(
                f,
                "no subordinate ids: {helper} refused: {}; check that it is setuid root and that /etc/subuid and /etc/subgid allow the range",
                message.to_string_lossy().trim_end()
            ),
        }
    }
}
