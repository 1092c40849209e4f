//! Resource limits of a process.

/// A resource that `setrlimit(2)` limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Resource {
    /// CPU time in seconds.
    #[doc(alias = "RLIMIT_CPU")]
    Cpu,
    /// Size of a file in bytes.
    #[doc(alias = "RLIMIT_FSIZE")]
    FileSize,
    /// Size of the data segment in bytes.
    #[doc(alias = "RLIMIT_DATA")]
    Data,
    /// Size of the main thread's stack in bytes.
    #[doc(alias = "RLIMIT_STACK")]
    Stack,
    /// Size of a core dump in bytes.
    #[doc(alias = "RLIMIT_CORE")]
    Core,
    /// Resident set in bytes; without effect since Linux 2.4.30.
    #[doc(alias = "RLIMIT_RSS")]
    ResidentSet,
    /// Processes and threads of the user.
    #[doc(alias = "RLIMIT_NPROC")]
    Processes,
    /// One more than the highest file descriptor.
    #[doc(alias = "RLIMIT_NOFILE")]
    OpenFiles,
    /// Locked memory in bytes.
    #[doc(alias = "RLIMIT_MEMLOCK")]
    LockedMemory,
    /// Virtual memory in bytes.
    #[doc(alias = "RLIMIT_AS")]
    AddressSpace,
    /// File locks; without effect since Linux 2.4.25.
    #[doc(alias = "RLIMIT_LOCKS")]
    Locks,
    /// Queued signals.
    #[doc(alias = "RLIMIT_SIGPENDING")]
    PendingSignals,
    /// POSIX message queues in bytes.
    #[doc(alias = "RLIMIT_MSGQUEUE")]
    MessageQueues,
    /// Ceiling of nice: 20 minus the value.
    #[doc(alias = "RLIMIT_NICE")]
    Nice,
    /// Ceiling of the real-time priority.
    #[doc(alias = "RLIMIT_RTPRIO")]
    RealtimePriority,
    /// Microseconds a real-time thread may run without blocking.
    #[doc(alias = "RLIMIT_RTTIME")]
    RealtimeTime,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 16] = [
        Self::Cpu,
        Self::FileSize,
        Self::Data,
        Self::Stack,
        Self::Core,
        Self::ResidentSet,
        Self::Processes,
        Self::OpenFiles,
        Self::LockedMemory,
        Self::AddressSpace,
        Self::Locks,
        Self::PendingSignals,
        Self::MessageQueues,
        Self::Nice,
        Self::RealtimePriority,
        Self::RealtimeTime,
    ];

    /// The kernel's name, such as `RLIMIT_NOFILE`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "RLIMIT_CPU",
            Self::FileSize => "RLIMIT_FSIZE",
            Self::Data => "RLIMIT_DATA",
            Self::Stack => "RLIMIT_STACK",
            Self::Core => "RLIMIT_CORE",
            Self::ResidentSet => "RLIMIT_RSS",
            Self::Processes => "RLIMIT_NPROC",
            Self::OpenFiles => "RLIMIT_NOFILE",
            Self::LockedMemory => "RLIMIT_MEMLOCK",
            Self::AddressSpace => "RLIMIT_AS",
            Self::Locks => "RLIMIT_LOCKS",
            Self::PendingSignals => "RLIMIT_SIGPENDING",
            Self::MessageQueues => "RLIMIT_MSGQUEUE",
            Self::Nice => "RLIMIT_NICE",
            Self::RealtimePriority => "RLIMIT_RTPRIO",
            Self::RealtimeTime => "RLIMIT_RTTIME",
        }
    }

    /// The resource of that kernel name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|resource| resource.name() == name)
    }

    pub(crate) fn to_kernel(self) -> rustix::process::Resource {
        use rustix::process::Resource as R;
        match self {
            Self::Cpu => R::Cpu,
            Self::FileSize => R::Fsize,
            Self::Data => R::Data,
            Self::Stack => R::Stack,
            Self::Core => R::Core,
            Self::ResidentSet => R::Rss,
            Self::Processes => R::Nproc,
            Self::OpenFiles => R::Nofile,
            Self::LockedMemory => R::Memlock,
            Self::AddressSpace => R::As,
            Self::Locks => R::Locks,
            Self::PendingSignals => R::Sigpending,
            Self::MessageQueues => R::Msgqueue,
            Self::Nice => R::Nice,
            Self::RealtimePriority => R::Rtprio,
            Self::RealtimeTime => R::Rttime,
        }
    }
}

/// A limit; `None` is without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Limit {
    /// What the kernel enforces.
    pub soft: Option<u64>,
    /// How far the process may raise the soft limit.
    pub hard: Option<u64>,
}
