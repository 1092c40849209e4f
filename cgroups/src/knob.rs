//! The settings of a group by name.

use std::fmt;

use crate::controller::Controller;

macro_rules! knobs {
    ($($(#[$doc:meta])* $variant:ident { $controller:ident, $name:literal, $hint:literal })+) => {
        /// A setting of a group, by v2's name for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Knob {
            $($(#[$doc])* $variant,)+
        }

        impl Knob {
            /// Every setting that this crate knows.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The name of its file on v2; where v2 has none, on v1.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The controller that it belongs to.
            pub const fn controller(self) -> Controller {
                match self {
                    $(Self::$variant => Controller::$controller,)+
                }
            }

            /// What a user may do where it is missing.
            pub(crate) const fn hint(self) -> &'static str {
                match self {
                    $(Self::$variant => $hint,)+
                }
            }
        }
    };
}

knobs! {
    /// The share of processor time under contention.
    CpuWeight { Cpu, "cpu.weight", "build the kernel with CONFIG_FAIR_GROUP_SCHED, or leave this limit out" }
    /// The most processor time in a period.
    CpuMax { Cpu, "cpu.max", "build the kernel with CONFIG_CFS_BANDWIDTH, or leave this limit out" }
    /// Unused quota that may be saved up.
    CpuMaxBurst { Cpu, "cpu.max.burst", "use Linux 5.14 or newer, or leave this limit out" }
    /// Only time that nobody else wants.
    CpuIdle { Cpu, "cpu.idle", "use Linux 5.15 or newer, or leave this limit out" }
    /// The least utilisation that the frequency governor is told.
    CpuUclampMin { Cpu, "cpu.uclamp.min", "build the kernel with CONFIG_UCLAMP_TASK_GROUP, or leave this limit out" }
    /// The most utilisation that the frequency governor is told.
    CpuUclampMax { Cpu, "cpu.uclamp.max", "build the kernel with CONFIG_UCLAMP_TASK_GROUP, or leave this limit out" }
    /// The processors that may be used.
    CpusetCpus { Cpuset, "cpuset.cpus", "build the kernel with CONFIG_CPUSETS, or leave this limit out" }
    /// The memory nodes that may be used.
    CpusetMems { Cpuset, "cpuset.mems", "build the kernel with CONFIG_CPUSETS, or leave this limit out" }
    /// Processors for this group alone.
    CpusetPartition { Cpuset, "cpuset.cpus.partition", "only v2 has it: boot with cgroup_no_v1=cpuset, or leave it out" }
    /// Memory that is never reclaimed.
    MemoryMin { Memory, "memory.min", "only v2 has it: boot with cgroup_no_v1=memory, or leave it out" }
    /// Memory that is reclaimed last.
    MemoryLow { Memory, "memory.low", "only v2 has it: boot with cgroup_no_v1=memory, or leave it out" }
    /// The amount of memory above which the group is slowed down.
    MemoryHigh { Memory, "memory.high", "only v2 has it: boot with cgroup_no_v1=memory, or leave it out" }
    /// The most memory.
    MemoryMax { Memory, "memory.max", "build the kernel with CONFIG_MEMCG, or leave this limit out" }
    /// The most swap.
    MemorySwapMax { Memory, "memory.swap.max", "boot with swapaccount=1 (CONFIG_SWAP), or leave this limit out" }
    /// The most compressed swap.
    MemoryZswapMax { Memory, "memory.zswap.max", "it needs v2, Linux 5.19 and CONFIG_ZSWAP: leave this limit out" }
    /// Whether the OOM killer ends the whole group.
    MemoryOomGroup { Memory, "memory.oom.group", "only v2 has it: boot with cgroup_no_v1=memory, or leave it out" }
    /// Reclaiming on demand.
    MemoryReclaim { Memory, "memory.reclaim", "it needs v2 and Linux 5.19; on v1 only everything at once can be reclaimed" }
    /// The share of the block devices' time.
    IoWeight { Io, "io.weight", "switch the device's scheduler to bfq or build the kernel with CONFIG_BLK_CGROUP_IOCOST, or leave it out" }
    /// The most that is read and written in a second.
    IoMax { Io, "io.max", "build the kernel with CONFIG_BLK_DEV_THROTTLING, or leave this limit out" }
    /// The latency to protect.
    IoLatency { Io, "io.latency", "it needs v2 and CONFIG_BLK_CGROUP_IOLATENCY: leave this limit out" }
    /// The most huge pages.
    HugetlbMax { Hugetlb, "hugetlb.<size>.max", "choose a size that /sys/kernel/mm/hugepages lists, or leave this limit out" }
    /// The most of an RDMA device.
    RdmaMax { Rdma, "rdma.max", "build the kernel with CONFIG_CGROUP_RDMA, or leave this limit out" }
    /// The most of a scalar resource.
    MiscMax { Misc, "misc.max", "build the kernel with CONFIG_CGROUP_MISC, or leave this limit out" }
    /// The class of network packets.
    NetClsClassid { NetCls, "net_cls.classid", "only v1 has it: match the cgroup's path in nftables instead" }
    /// The priority of network packets for each interface.
    NetPrioIfpriomap { NetPrio, "net_prio.ifpriomap", "only v1 has it: set priorities with nftables or tc instead" }
    /// Stopping every process.
    Freeze { Freezer, "cgroup.freeze", "it needs v2 (Linux 5.2) or the freezer controller of v1" }
    /// Access to device nodes.
    Devices { Devices, "devices", "it needs v2 with CONFIG_CGROUP_BPF or the devices controller of v1" }
    /// Sharing a domain's resources among threads.
    Type { Cpu, "cgroup.type", "threads can be distributed on v2 only" }
    /// The most processes and threads.
    PidsMax { Pids, "pids.max", "build the kernel with CONFIG_CGROUP_PIDS, or leave this limit out" }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
