//! Capabilities and sets of them.

use std::fmt;
use std::str::FromStr;

macro_rules! capabilities {
    ($($variant:ident = $number:literal, $name:literal;)*) => {
        /// A capability, see `capabilities(7)`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Capability {
            $(
                #[doc = concat!("`", $name, "`")]
                #[doc(alias = $name)]
                $variant = $number,
            )*
        }

        impl Capability {
            /// Every capability that this crate knows, by number.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The kernel's name, such as `CAP_SYS_ADMIN`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

capabilities! {
    Chown = 0, "CAP_CHOWN";
    DacOverride = 1, "CAP_DAC_OVERRIDE";
    DacReadSearch = 2, "CAP_DAC_READ_SEARCH";
    Fowner = 3, "CAP_FOWNER";
    Fsetid = 4, "CAP_FSETID";
    Kill = 5, "CAP_KILL";
    Setgid = 6, "CAP_SETGID";
    Setuid = 7, "CAP_SETUID";
    Setpcap = 8, "CAP_SETPCAP";
    LinuxImmutable = 9, "CAP_LINUX_IMMUTABLE";
    NetBindService = 10, "CAP_NET_BIND_SERVICE";
    NetBroadcast = 11, "CAP_NET_BROADCAST";
    NetAdmin = 12, "CAP_NET_ADMIN";
    NetRaw = 13, "CAP_NET_RAW";
    IpcLock = 14, "CAP_IPC_LOCK";
    IpcOwner = 15, "CAP_IPC_OWNER";
    SysModule = 16, "CAP_SYS_MODULE";
    SysRawio = 17, "CAP_SYS_RAWIO";
    SysChroot = 18, "CAP_SYS_CHROOT";
    SysPtrace = 19, "CAP_SYS_PTRACE";
    SysPacct = 20, "CAP_SYS_PACCT";
    SysAdmin = 21, "CAP_SYS_ADMIN";
    SysBoot = 22, "CAP_SYS_BOOT";
    SysNice = 23, "CAP_SYS_NICE";
    SysResource = 24, "CAP_SYS_RESOURCE";
    SysTime = 25, "CAP_SYS_TIME";
    SysTtyConfig = 26, "CAP_SYS_TTY_CONFIG";
    Mknod = 27, "CAP_MKNOD";
    Lease = 28, "CAP_LEASE";
    AuditWrite = 29, "CAP_AUDIT_WRITE";
    AuditControl = 30, "CAP_AUDIT_CONTROL";
    Setfcap = 31, "CAP_SETFCAP";
    MacOverride = 32, "CAP_MAC_OVERRIDE";
    MacAdmin = 33, "CAP_MAC_ADMIN";
    Syslog = 34, "CAP_SYSLOG";
    WakeAlarm = 35, "CAP_WAKE_ALARM";
    BlockSuspend = 36, "CAP_BLOCK_SUSPEND";
    AuditRead = 37, "CAP_AUDIT_READ";
    Perfmon = 38, "CAP_PERFMON";
    Bpf = 39, "CAP_BPF";
    CheckpointRestore = 40, "CAP_CHECKPOINT_RESTORE";
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a capability; write it as in capabilities(7), such as CAP_NET_ADMIN")]
pub struct UnknownCapability {
    /// What was to be parsed.
    pub name: String,
}

impl FromStr for Capability {
    type Err = UnknownCapability;

    /// Takes `CAP_SYS_ADMIN`, `SYS_ADMIN` and either in lower case.
    fn from_str(name: &str) -> Result<Self, UnknownCapability> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        Self::ALL
            .iter()
            .copied()
            .find(|capability| capability.name().strip_prefix("CAP_") == Some(bare))
            .ok_or_else(|| UnknownCapability {
                name: name.to_owned(),
            })
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// No capability.
    pub const EMPTY: Self = Self(0);

    /// Every capability that this crate knows. Those that the running kernel does not know, or
    /// that the caller does not have, cannot be given.
    pub const fn all() -> Self {
        Self((1 << Capability::ALL.len()) - 1)
    }

    /// The set with exactly these bits, as in `/proc/PID/status`.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The bits, as in `/proc/PID/status`.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether the set has `capability`.
    pub const fn contains(self, capability: Capability) -> bool {
        self.0 & (1 << capability as u8) != 0
    }

    /// Adds `capability`.
    pub fn insert(&mut self, capability: Capability) {
        self.0 |= 1 << capability as u8;
    }

    /// Takes `capability` out.
    pub fn remove(&mut self, capability: Capability) {
        self.0 &= !(1 << capability as u8);
    }

    /// Whether the set is empty.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in both.
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What is in either.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of `other` is in this set.
    pub const fn is_superset(self, other: Self) -> bool {
        other.0 & !self.0 == 0
    }

    /// The capabilities of the set, by number.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        Capability::ALL
            .iter()
            .copied()
            .filter(move |capability| self.contains(*capability))
    }
}

impl FromIterator<Capability> for CapabilitySet {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        let mut set = Self::EMPTY;
        for capability in capabilities {
            set.insert(capability);
        }
        set
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(Capability::name))
            .finish()
    }
}

/// The five capability sets that the program starts with.
///
/// The kernel computes what is left after `execve` from these and from the file, see
/// `capabilities(7)`: for root (uid 0) the permitted and effective sets become all of the bounding
/// set; for others only the ambient set survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Capabilities {
    /// What the process and its descendants can ever have.
    pub bounding: CapabilitySet,
    /// What counts for permission checks.
    pub effective: CapabilitySet,
    /// What may be made effective.
    pub permitted: CapabilitySet,
    /// What is kept across `execve` of a file with inheritable capabilities. Container runtimes
    /// leave it empty (CVE-2022-29162).
    pub inheritable: CapabilitySet,
    /// What is kept across `execve` without root. Must be within permitted and inheritable.
    pub ambient: CapabilitySet,
}

impl Capabilities {
    /// No capability at all, not even for root.
    pub const fn none() -> Self {
        Self::limited_to(CapabilitySet::EMPTY)
    }

    /// Root inside has exactly `set`: bounding, effective and permitted; nothing is inheritable.
    pub const fn limited_to(set: CapabilitySet) -> Self {
        Self {
            bounding: set,
            effective: set,
            permitted: set,
            inheritable: CapabilitySet::EMPTY,
            ambient: CapabilitySet::EMPTY,
        }
    }

    /// The fourteen capabilities that container engines give by default.
    pub fn container_default() -> Self {
        use Capability as C;
        Self::limited_to(CapabilitySet::from_iter([
            C::Chown,
            C::DacOverride,
            C::Fsetid,
            C::Fowner,
            C::Mknod,
            C::NetRaw,
            C::Setgid,
            C::Setuid,
            C::Setfcap,
            C::Setpcap,
            C::NetBindService,
            C::SysChroot,
            C::Kill,
            C::AuditWrite,
        ]))
    }
}
