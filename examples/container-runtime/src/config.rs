//! The types of `config.json`, see the OCI runtime-spec.
//!
//! Every property that the specification knows for Linux stands here: a property without a field is
//! an unknown one. Those of type [`Refused`] are known and cannot be honoured; [`crate::refuse`]
//! lists them with their paths: they are for other systems.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A property that cannot be honoured, kept to tell whether it asks for anything.
pub(crate) type Refused = Option<Value>;

/// JSON's `null` and a missing property are the same: engines write either.
fn absent_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A type of which an object is one, with its properties. Those in brackets must be there: a number
/// or a name that is missing is not 0 or empty.
macro_rules! properties {
    (
        $(#[$doc:meta])*
        $name:ident {
            $([$(#[$required_attribute:meta])* $required:ident: $required_type:ty])*
            $($(#[$attribute:meta])* $field:ident: $type:ty,)*
        }
    ) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(rename_all = "camelCase", remote = "Self")]
        pub(crate) struct $name {
            $(
                $(#[$required_attribute])*
                pub(crate) $required: $required_type,
            )*
            $(
                #[serde(default, deserialize_with = "absent_is_empty")]
                $(#[$attribute])*
                pub(crate) $field: $type,
            )*
        }

        // What serde derives would take a list, too, its values being the fields in order.
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Object;

                impl<'de> Visitor<'de> for Object {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object")
                    }

                    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<$name, A::Error> {
                        // The derived function, by the name that `remote` gives it.
                        $name::deserialize(MapAccessDeserializer::new(map))
                    }
                }

                deserializer.deserialize_map(Object)
            }
        }
    };
}

properties! {
    /// The whole file.
    Config {
        oci_version: Option<String>,
        process: Option<Process>,
        root: Option<Root>,
        hostname: Option<String>,
        domainname: Option<String>,
        mounts: Vec<Mount>,
        hooks: Hooks,
        annotations: BTreeMap<String, String>,
        linux: Linux,
        windows: Refused,
        solaris: Refused,
        freebsd: Refused,
        vm: Refused,
        zos: Refused,
    }
}

properties! {
    /// The root filesystem.
    Root {
        path: Option<PathBuf>,
        readonly: bool,
    }
}

properties! {
    /// The process.
    Process {
        terminal: bool,
        // Without a terminal it has no meaning, and is to be ignored.
        console_size: Option<ConsoleSize>,
        cwd: Option<PathBuf>,
        env: Vec<String>,
        args: Vec<String>,
        command_line: Refused,
        rlimits: Vec<Rlimit>,
        apparmor_profile: Option<String>,
        capabilities: CapabilityNames,
        no_new_privileges: bool,
        oom_score_adj: Option<i16>,
        scheduler: Option<Scheduler>,
        selinux_label: Option<String>,
        io_priority: Option<IoPriority>,
        #[serde(rename = "execCPUAffinity")]
        exec_cpu_affinity: Option<ExecCpuAffinity>,
        user: User,
    }
}

properties! {
    /// The size of a terminal, in characters.
    ConsoleSize {
        [height: u32]
        [width: u32]
    }
}

properties! {
    /// A resource limit.
    Rlimit {
        [#[serde(rename = "type")] kind: String]
        [soft: u64]
        [hard: u64]
    }
}

properties! {
    /// The five sets of capabilities, by name.
    CapabilityNames {
        effective: Vec<String>,
        bounding: Vec<String>,
        inheritable: Vec<String>,
        permitted: Vec<String>,
        ambient: Vec<String>,
    }
}

properties! {
    /// Who the process runs as.
    User {
        [uid: u32]
        [gid: u32]
        umask: Option<u32>,
        additional_gids: Vec<u32>,
        username: Refused,
    }
}

properties! {
    /// A mount.
    Mount {
        destination: Option<PathBuf>,
        source: Option<PathBuf>,
        options: Vec<String>,
        #[serde(rename = "type")]
        kind: Option<String>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
    }
}

properties! {
    /// Programs to be run at certain points of a container's life.
    Hooks {
        prestart: Vec<Hook>,
        create_runtime: Vec<Hook>,
        create_container: Vec<Hook>,
        start_container: Vec<Hook>,
        poststart: Vec<Hook>,
        poststop: Vec<Hook>,
    }
}

properties! {
    /// A program to be run.
    Hook {
        path: Option<PathBuf>,
        args: Vec<String>,
        env: Vec<String>,
        timeout: Option<i64>,
    }
}

properties! {
    /// How the CPU is shared, `sched_setattr(2)`.
    Scheduler {
        [policy: String]
        nice: i32,
        priority: i32,
        flags: Vec<String>,
        runtime: u64,
        deadline: u64,
        period: u64,
    }
}

properties! {
    /// How disks are shared, `ioprio_set(2)`.
    IoPriority {
        [class: String]
        [priority: i64]
    }
}

properties! {
    /// The CPUs for processes that are executed in a running container.
    ExecCpuAffinity {
        initial: Option<String>,
        #[serde(rename = "final")]
        last: Option<String>,
    }
}

properties! {
    /// How far a clock is ahead.
    TimeOffset {
        secs: i64,
        nanosecs: u32,
    }
}

properties! {
    /// A device node.
    Device {
        [#[serde(rename = "type")] kind: String]
        path: Option<PathBuf>,
        // Of a FIFO there are none.
        major: Option<i64>,
        minor: Option<i64>,
        file_mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    }
}

properties! {
    /// A network device to be moved into the container.
    NetDevice {
        name: Option<String>,
    }
}

properties! {
    /// The execution domain, `personality(2)`.
    Personality {
        [domain: String]
        flags: Vec<String>,
    }
}

properties! {
    /// Cache and memory bandwidth, `resctrl`.
    IntelRdt {
        #[serde(rename = "closID")]
        clos_id: Option<String>,
        schemata: Vec<String>,
        l3_cache_schema: Option<String>,
        mem_bw_schema: Option<String>,
        enable_monitoring: bool,
        #[serde(rename = "enableCMT")]
        enable_cmt: bool,
        #[serde(rename = "enableMBM")]
        enable_mbm: bool,
    }
}

properties! {
    /// How memory is spread over NUMA nodes, `set_mempolicy(2)`.
    MemoryPolicy {
        [mode: String]
        nodes: Option<String>,
        flags: Vec<String>,
    }
}

properties! {
    /// Which system calls are allowed, `seccomp(2)`.
    Seccomp {
        [default_action: String]
        default_errno_ret: Option<u32>,
        flags: Vec<String>,
        listener_path: Option<PathBuf>,
        listener_metadata: Option<String>,
        architectures: Vec<String>,
        syscalls: Vec<SeccompRule>,
    }
}

properties! {
    /// What happens to some system calls.
    SeccompRule {
        [names: Vec<String>]
        [action: String]
        errno_ret: Option<u32>,
        args: Vec<SeccompArg>,
    }
}

properties! {
    /// A condition on an argument of a system call.
    SeccompArg {
        [index: u32]
        [value: u64]
        [op: String]
        value_two: u64,
    }
}

properties! {
    /// What only Linux has.
    Linux {
        namespaces: Vec<Namespace>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        time_offsets: BTreeMap<String, TimeOffset>,
        devices: Vec<Device>,
        net_devices: BTreeMap<String, NetDevice>,
        cgroups_path: Option<PathBuf>,
        rootfs_propagation: Option<String>,
        masked_paths: Vec<PathBuf>,
        readonly_paths: Vec<PathBuf>,
        mount_label: Option<String>,
        personality: Option<Personality>,
        intel_rdt: Option<IntelRdt>,
        memory_policy: Option<MemoryPolicy>,
        resources: Resources,
        seccomp: Option<Seccomp>,
        sysctl: BTreeMap<String, String>,
    }
}

properties! {
    /// A namespace.
    Namespace {
        [#[serde(rename = "type")] kind: String]
        path: Option<PathBuf>,
    }
}

properties! {
    /// A range of ids.
    IdMapping {
        [#[serde(rename = "containerID")] container_id: u32]
        [#[serde(rename = "hostID")] host_id: u32]
        [size: u32]
    }
}

properties! {
    /// Limits.
    Resources {
        unified: BTreeMap<String, String>,
        devices: Vec<DeviceRule>,
        pids: Pids,
        #[serde(rename = "blockIO")]
        block_io: BlockIo,
        memory: Memory,
        cpu: Cpu,
        hugepage_limits: Vec<HugepageLimit>,
        network: Network,
        rdma: BTreeMap<String, Rdma>,
    }
}

properties! {
    /// A rule about device nodes.
    DeviceRule {
        [allow: bool]
        #[serde(rename = "type")]
        kind: Option<String>,
        major: Option<i64>,
        minor: Option<i64>,
        access: Option<String>,
    }
}

properties! {
    /// What may be done to block devices.
    BlockIo {
        weight: Option<u16>,
        leaf_weight: Option<u16>,
        weight_device: Vec<WeightDevice>,
        throttle_read_bps_device: Vec<ThrottleDevice>,
        throttle_write_bps_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleReadIOPSDevice")]
        throttle_read_iops_device: Vec<ThrottleDevice>,
        #[serde(rename = "throttleWriteIOPSDevice")]
        throttle_write_iops_device: Vec<ThrottleDevice>,
    }
}

properties! {
    /// The share of one block device.
    WeightDevice {
        [major: u32]
        [minor: u32]
        weight: Option<u16>,
        leaf_weight: Option<u16>,
    }
}

properties! {
    /// The most of one block device in a second.
    ThrottleDevice {
        [major: u32]
        [minor: u32]
        [rate: u64]
    }
}

properties! {
    /// The most huge pages of one size.
    HugepageLimit {
        [page_size: String]
        [limit: u64]
    }
}

properties! {
    /// Class and priorities of network packets.
    Network {
        #[serde(rename = "classID")]
        class_id: Option<u32>,
        priorities: Vec<NetPriority>,
    }
}

properties! {
    /// The priority of packets on one interface.
    NetPriority {
        [name: String]
        [priority: u32]
    }
}

properties! {
    /// The most of one RDMA device.
    Rdma {
        hca_handles: Option<u32>,
        hca_objects: Option<u32>,
    }
}

properties! {
    /// The number of processes.
    Pids {
        limit: Option<i64>,
    }
}

properties! {
    /// Memory, in bytes; -1 is without limit.
    Memory {
        limit: Option<i64>,
        reservation: Option<i64>,
        swap: Option<i64>,
        kernel: Option<i64>,
        #[serde(rename = "kernelTCP")]
        kernel_tcp: Option<i64>,
        swappiness: Option<u64>,
        #[serde(rename = "disableOOMKiller")]
        disable_oom_killer: bool,
        use_hierarchy: Option<bool>,
        // A new group uses nothing that a limit could be below of.
        check_before_update: Option<bool>,
    }
}

properties! {
    /// Processor time.
    Cpu {
        shares: Option<u64>,
        quota: Option<i64>,
        period: Option<u64>,
        burst: Option<u64>,
        realtime_runtime: Option<i64>,
        realtime_period: Option<u64>,
        cpus: Option<String>,
        mems: Option<String>,
        idle: Option<i64>,
    }
}
