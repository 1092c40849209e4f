//! The types of `config.json`, see the OCI runtime-spec.
//!
//! Every property that the specification knows for Linux stands here: a property without a field is
//! an unknown one. Those of type [`Refused`] are known and cannot be honoured; [`crate::refuse`]
//! lists them with their paths.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// A property that cannot be honoured yet, kept to tell whether it asks for anything.
pub(crate) type Refused = Option<Value>;

/// JSON's `null` and a missing property are the same: engines write either.
fn absent_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

macro_rules! properties {
    ($(#[$doc:meta])* $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Default, Deserialize)]
        #[serde(rename_all = "camelCase", remote = "Self")]
        pub(crate) struct $name {
            $(
                #[serde(default, deserialize_with = "absent_is_empty")]
                $(#[$attribute])*
                pub(crate) $field: $type,
            )+
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
        hooks: Refused,
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
        apparmor_profile: Refused,
        capabilities: CapabilityNames,
        no_new_privileges: bool,
        oom_score_adj: Option<i16>,
        scheduler: Refused,
        selinux_label: Refused,
        io_priority: Refused,
        #[serde(rename = "execCPUAffinity")]
        exec_cpu_affinity: Refused,
        user: User,
    }
}

properties! {
    /// The size of a terminal, in characters.
    ConsoleSize {
        height: u32,
        width: u32,
    }
}

properties! {
    /// A resource limit.
    Rlimit {
        #[serde(rename = "type")]
        kind: String,
        soft: Option<u64>,
        hard: Option<u64>,
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
        uid: u32,
        gid: u32,
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
        uid_mappings: Refused,
        gid_mappings: Refused,
    }
}

properties! {
    /// What only Linux has.
    Linux {
        namespaces: Vec<Namespace>,
        uid_mappings: Vec<IdMapping>,
        gid_mappings: Vec<IdMapping>,
        time_offsets: Refused,
        devices: Refused,
        net_devices: Refused,
        cgroups_path: Option<PathBuf>,
        rootfs_propagation: Option<String>,
        masked_paths: Vec<PathBuf>,
        readonly_paths: Vec<PathBuf>,
        mount_label: Refused,
        personality: Refused,
        intel_rdt: Refused,
        memory_policy: Refused,
        resources: Resources,
        seccomp: Refused,
        sysctl: BTreeMap<String, String>,
    }
}

properties! {
    /// A namespace.
    Namespace {
        #[serde(rename = "type")]
        kind: String,
        path: Option<PathBuf>,
    }
}

properties! {
    /// A range of ids.
    IdMapping {
        #[serde(rename = "containerID")]
        container_id: u32,
        #[serde(rename = "hostID")]
        host_id: u32,
        size: u32,
    }
}

properties! {
    /// Limits.
    Resources {
        unified: Refused,
        devices: Vec<DeviceRule>,
        pids: Pids,
        #[serde(rename = "blockIO")]
        block_io: Refused,
        memory: Memory,
        cpu: Cpu,
        hugepage_limits: Refused,
        network: Refused,
        rdma: Refused,
    }
}

properties! {
    /// A rule about device nodes.
    DeviceRule {
        allow: bool,
        #[serde(rename = "type")]
        kind: Option<String>,
        major: Option<i64>,
        minor: Option<i64>,
        access: Option<String>,
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
        kernel: Refused,
        #[serde(rename = "kernelTCP")]
        kernel_tcp: Refused,
        swappiness: Refused,
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
        realtime_runtime: Refused,
        realtime_period: Refused,
        cpus: Option<String>,
        mems: Option<String>,
        idle: Option<i64>,
    }
}
