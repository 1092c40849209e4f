//! The kernel's resource controllers.

use std::fmt;
use std::str::FromStr;

use crate::error::ParseError;

macro_rules! controllers {
    ($($(#[$doc:meta])* $variant:ident = $v2:literal $(| $v1:literal)?,)+) => {
        /// One of the kernel's resource controllers, named as v2 does.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Controller {
            $($(#[$doc])* $variant,)+
        }

        impl Controller {
            /// Every controller that this crate knows.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// Its name on v2; where v2 has none, its name on v1.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $v2,)+
                }
            }
        }

        impl FromStr for Controller {
            type Err = ParseError;

            /// Reads a name of v1 or v2 (`io` and `blkio` are one controller).
            fn from_str(name: &str) -> Result<Self, ParseError> {
                match name {
                    $($v2 $(| $v1)? => Ok(Self::$variant),)+
                    _ => Err(ParseError::new("the name of a controller", name)),
                }
            }
        }
    };
}

controllers! {
    /// Processor time: weight, quota, utilisation clamps.
    Cpu = "cpu",
    /// Accounting of processor time on v1; v2 always accounts.
    Cpuacct = "cpuacct",
    /// Which processors and memory nodes may be used.
    Cpuset = "cpuset",
    /// Memory and swap.
    Memory = "memory",
    /// Block devices; v1 calls it `blkio`.
    #[doc(alias = "blkio")]
    Io = "io" | "blkio",
    /// The number of processes and threads.
    Pids = "pids",
    /// Huge pages.
    Hugetlb = "hugetlb",
    /// RDMA devices.
    Rdma = "rdma",
    /// Scalar resources such as SEV address-space identifiers.
    Misc = "misc",
    /// Device memory.
    Dmem = "dmem",
    /// Freezing and thawing; on v2 a part of every group.
    Freezer = "freezer",
    /// Access to device nodes; on v2 an eBPF program.
    Devices = "devices",
    /// Performance counters by group; on v2 a part of every group.
    PerfEvent = "perf_event",
    /// The class of network packets; v1 only.
    NetCls = "net_cls",
    /// The priority of network packets; v1 only.
    NetPrio = "net_prio",
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A set of controllers.
///
/// ```
/// use cgroups::{Controller, Controllers};
///
/// let set: Controllers = [Controller::Memory, Controller::Pids].into_iter().collect();
/// assert_eq!(set.to_string(), "memory pids");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Controllers(u32);

impl Controllers {
    /// None.
    pub const EMPTY: Self = Self(0);

    /// Whether `controller` belongs to the set.
    pub const fn contains(self, controller: Controller) -> bool {
        self.0 & (1 << controller as u32) != 0
    }

    /// Adds a controller.
    pub fn insert(&mut self, controller: Controller) {
        self.0 |= 1 << controller as u32;
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of either set.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those of this set that are not in `other`.
    #[must_use]
    pub const fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The controllers in a fixed order.
    pub fn iter(self) -> impl Iterator<Item = Controller> {
        Controller::ALL
            .iter()
            .copied()
            .filter(move |&controller| self.contains(controller))
    }

    /// Reads a list of names; names that this crate does not know are left out.
    pub(crate) fn parse_known(text: &str, separator: impl Fn(char) -> bool) -> Self {
        text.split(separator)
            .filter_map(|name| name.parse().ok())
            .collect()
    }
}

impl FromIterator<Controller> for Controllers {
    fn from_iter<I: IntoIterator<Item = Controller>>(controllers: I) -> Self {
        let mut set = Self::EMPTY;
        for controller in controllers {
            set.insert(controller);
        }
        set
    }
}

impl From<Controller> for Controllers {
    fn from(controller: Controller) -> Self {
        Self(1 << controller as u32)
    }
}

impl fmt::Debug for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl fmt::Display for Controllers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, controller) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { " " };
            write!(f, "{separator}{controller}")?;
        }
        Ok(())
    }
}
