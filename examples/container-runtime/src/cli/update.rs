//! The command line of `update`.

use std::path::PathBuf;

use clap::Args;

use crate::id::ContainerId;

/// Change the limits of a container.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cofferdam-runtime update --memory 67108864 --pids-limit 100 my-container
  echo '{\"cpu\": {\"shares\": 512}}' | cofferdam-runtime update --resources - my-container")]
pub(crate) struct Update {
    /// File with limits, as linux.resources of config.json; `-` is the standard input. It takes
    /// the place of all other options.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) resources: Option<PathBuf>,

    /// Share of the block devices' time, 10 to 1000.
    #[arg(long, value_name = "WEIGHT")]
    pub(crate) blkio_weight: Option<u16>,

    /// Microseconds in a period of the CPU quota.
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_period: Option<u64>,

    /// Microseconds of CPU time in each period; -1 is without limit.
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<i64>,

    /// Microseconds of unused quota that may be saved up.
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_burst: Option<u64>,

    /// Share of CPU time under contention, 2 to 262144.
    #[arg(long, value_name = "SHARES", visible_alias = "cpu-share")]
    pub(crate) cpu_shares: Option<u64>,

    /// Microseconds in a period of real-time scheduling (cgroup v1).
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_rt_period: Option<u64>,

    /// Microseconds of real-time scheduling in each period (cgroup v1).
    #[arg(long, value_name = "MICROSECONDS")]
    pub(crate) cpu_rt_runtime: Option<i64>,

    /// CPUs to use, such as 0-2,4.
    #[arg(long, value_name = "CPUS")]
    pub(crate) cpuset_cpus: Option<String>,

    /// Memory nodes to use, such as 0.
    #[arg(long, value_name = "NODES")]
    pub(crate) cpuset_mems: Option<String>,

    /// 1: run only when nobody else wants to.
    #[arg(long, value_name = "0|1")]
    pub(crate) cpu_idle: Option<i64>,

    /// Bytes of memory; -1 is without limit.
    #[arg(short = 'm', long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,

    /// Bytes of memory that is reclaimed last.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,

    /// Bytes of memory and swap together; -1 is without limit.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,

    /// Bytes of kernel memory (cgroup v1).
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    pub(crate) kernel_memory: Option<String>,

    /// Bytes of kernel memory for TCP (cgroup v1).
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    pub(crate) kernel_memory_tcp: Option<String>,

    /// The most processes; -1 is without limit.
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<i64>,

    /// Schema of the L3 cache (resctrl).
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) l3_cache_schema: Option<String>,

    /// Schema of the memory bandwidth (resctrl).
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) mem_bw_schema: Option<String>,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}
