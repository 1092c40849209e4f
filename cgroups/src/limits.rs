//! What a group may use.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::bytes::Bytes;
use crate::cpu::{CpuQuota, Weight};
use crate::device::DeviceNumber;
use crate::io::{IoMax, RdmaMax};
use crate::knob::Knob;
use crate::max::Max;
use crate::partition::Partition;
use crate::percent::Percent;
use crate::set::IdSet;

macro_rules! limits {
    ($($(#[$doc:meta])* $field:ident: $type:ty = $knob:ident,)+) => {
        /// What a group may use: a plain value, in the vocabulary of v2. What is not set stays as it
        /// is in the group.
        ///
        /// ```
        /// use cgroups::{Bytes, CpuQuota, Limits, Max};
        ///
        /// let limits = Limits::new()
        ///     .memory_max(Bytes::mib(256))
        ///     .memory_swap_max(Bytes::ZERO)
        ///     .pids_max(64)
        ///     .cpu_max(CpuQuota::cpus(1.5)?);
        /// assert_eq!(limits.memory_max, Some(Max::At(Bytes::mib(256))));
        /// # Ok::<(), cgroups::Error>(())
        /// ```
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
        #[non_exhaustive]
        pub struct Limits {
            $(
                $(#[$doc])*
                #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
                pub $field: Option<$type>,
            )+
        }

        impl Limits {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $field(mut self, value: impl Into<$type>) -> Self {
                    self.$field = Some(value.into());
                    self
                }
            )+

            /// Takes one limit out, as a caller may after [`Error::Unsupported`] or
            /// [`Error::ControllerUnavailable`].
            ///
            /// [`Error::Unsupported`]: crate::Error::Unsupported
            /// [`Error::ControllerUnavailable`]: crate::Error::ControllerUnavailable
            pub fn unset(&mut self, knob: Knob) {
                match knob {
                    $(Knob::$knob => self.$field = None,)+
                    // What is done to a group, instead of set in it.
                    _ => {}
                }
            }

            /// The limits that are set.
            pub fn knobs(&self) -> impl Iterator<Item = Knob> {
                [$(self.$field.is_some().then_some(Knob::$knob)),+]
                    .into_iter()
                    .flatten()
            }
        }
    };
}

limits! {
    /// The share of processor time under contention.
    ///
    /// v1: `cpu.shares`, see [`Weight::to_shares`].
    #[doc(alias = "cpu.weight")]
    cpu_weight: Weight = CpuWeight,
    /// The most processor time in each period.
    ///
    /// v1: `cpu.cfs_quota_us` and `cpu.cfs_period_us`; there a group cannot be given a larger
    /// ratio than its parent has.
    #[doc(alias = "cpu.max")]
    cpu_max: Max<CpuQuota> = CpuMax,
    /// How much unused quota may be saved up, in microseconds; at most the quota. Linux 5.14.
    #[doc(alias = "cpu.max.burst")]
    cpu_max_burst: u64 = CpuMaxBurst,
    /// Whether the group runs only when nobody else wants to. Linux 5.15. While it does, the
    /// weight has no effect, reads as 1 and cannot be set by itself.
    #[doc(alias = "cpu.idle")]
    cpu_idle: bool = CpuIdle,
    /// The least utilisation that the frequency governor is told. 100 % reads as no limit.
    #[doc(alias = "cpu.uclamp.min")]
    cpu_uclamp_min: Max<Percent> = CpuUclampMin,
    /// The most utilisation that the frequency governor is told. 100 % reads as no limit.
    #[doc(alias = "cpu.uclamp.max")]
    cpu_uclamp_max: Max<Percent> = CpuUclampMax,
    /// The processors that may be used; empty on v2 for those of the parent.
    #[doc(alias = "cpuset.cpus")]
    cpuset_cpus: IdSet = CpusetCpus,
    /// The memory nodes that may be used; empty on v2 for those of the parent.
    #[doc(alias = "cpuset.mems")]
    cpuset_mems: IdSet = CpusetMems,
    /// Whether the processors are the group's alone. v2 only. Where they cannot be, because the
    /// parent is no partition or a sibling has them, [`Error::Refused`](crate::Error::Refused)
    /// has the kernel's reason.
    #[doc(alias = "cpuset.cpus.partition")]
    cpuset_partition: Partition = CpusetPartition,
    /// Memory that is never reclaimed from the group. v2 only.
    #[doc(alias = "memory.min")]
    memory_min: Max<Bytes> = MemoryMin,
    /// Memory that is reclaimed only when there is nothing else. v2 only.
    #[doc(alias = "memory.low")]
    memory_low: Max<Bytes> = MemoryLow,
    /// Memory above which the group is slowed down and reclaimed from. v2 only.
    #[doc(alias = "memory.high")]
    memory_high: Max<Bytes> = MemoryHigh,
    /// The most memory. Beyond it the OOM killer ends processes of the group. The kernel keeps
    /// whole pages, rounded down.
    ///
    /// v1: `memory.limit_in_bytes`, which refuses a limit below what is in use
    /// ([`Error::LimitBelowUse`](crate::Error::LimitBelowUse)) where v2 reclaims and kills.
    #[doc(alias = "memory.max")]
    #[doc(alias = "memory.limit_in_bytes")]
    memory_max: Max<Bytes> = MemoryMax,
    /// The most swap, not counting memory. Whole pages, rounded down.
    ///
    /// v1 limits the sum: `memory.memsw.limit_in_bytes` is written as memory limit + swap limit,
    /// and kept so when either changes. Without a memory limit v1 cannot limit swap, and swap may
    /// take what memory leaves free of the sum.
    #[doc(alias = "memory.swap.max")]
    #[doc(alias = "memory.memsw.limit_in_bytes")]
    memory_swap_max: Max<Bytes> = MemorySwapMax,
    /// The most compressed swap. v2 only, Linux 5.19.
    #[doc(alias = "memory.zswap.max")]
    memory_zswap_max: Max<Bytes> = MemoryZswapMax,
    /// Whether the OOM killer ends the whole group at once. v2 only.
    #[doc(alias = "memory.oom.group")]
    memory_oom_group: bool = MemoryOomGroup,
    /// The most processes and threads, up to 4,194,304; a `fork` beyond fails with `EAGAIN`.
    #[doc(alias = "pids.max")]
    pids_max: Max<u64> = PidsMax,
    /// The share of the block devices' time under contention.
    ///
    /// `io.weight`; where only BFQ distributes, `io.bfq.weight`, and on v1 `blkio.bfq.weight`:
    /// these go to 1000 only, see [`Weight::to_blkio`] for the formula and its loss.
    #[doc(alias = "io.weight")]
    #[doc(alias = "blkio.bfq.weight")]
    io_weight: Weight = IoWeight,
    /// The most that is read from and written to each device in a second. A device that is not
    /// named stays as it is; [`IoMax::UNLIMITED`] takes its limits away.
    ///
    /// v1: `blkio.throttle.{read,write}_{bps,iops}_device`, for each group by itself: what the
    /// groups below do is not counted, nor what the kernel writes back for them later.
    #[doc(alias = "io.max")]
    io_max: BTreeMap<DeviceNumber, IoMax> = IoMax,
    /// The latency to protect for each device, at least 1 µs; [`Max::Unlimited`] protects none. v2
    /// only, with `CONFIG_BLK_CGROUP_IOLATENCY`. The kernel counts in microseconds.
    #[doc(alias = "io.latency")]
    io_latency: BTreeMap<DeviceNumber, Max<Duration>> = IoLatency,
    /// The most huge pages in bytes, by their size. The kernel keeps whole huge pages, rounded
    /// down.
    #[doc(alias = "hugetlb.2MB.max")]
    hugetlb_max: BTreeMap<Bytes, Max<Bytes>> = HugetlbMax,
    /// The most of each RDMA device, by its name.
    #[doc(alias = "rdma.max")]
    rdma_max: BTreeMap<String, RdmaMax> = RdmaMax,
    /// The most of each scalar resource, by its name (`sev`, `sev_es`, `tdx`).
    #[doc(alias = "misc.max")]
    misc_max: BTreeMap<String, Max<u64>> = MiscMax,
    /// The class of network packets, `0xAAAABBBB` for `tc`'s handle `AAAA:BBBB`. v1 only.
    #[doc(alias = "net_cls.classid")]
    net_cls_classid: u32 = NetClsClassid,
    /// The priority of network packets, by interface. v1 only.
    #[doc(alias = "net_prio.ifpriomap")]
    net_prio: BTreeMap<String, u32> = NetPrioIfpriomap,
}

impl Limits {
    /// No limits: nothing will be changed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        self.knobs().next().is_none()
    }
}
