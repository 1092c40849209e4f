//! What the specification knows and this runtime cannot honour yet: an error that names the place.

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::config::{Config, Refused};

/// Refuses a configuration that asks for something that would not be done.
pub(crate) fn what_cannot_be_honoured(config: &Config) -> Result<()> {
    for (place, value) in places(config) {
        if value.as_ref().is_some_and(asks_for_something) {
            bail!("{place}: not supported yet by this runtime; remove it");
        }
    }
    // Docker writes a weight of 0 where none was asked for.
    if let Some(block_io) = &config.linux.resources.block_io
        && asks_for_something(block_io)
        && *block_io != json!({"weight": 0})
    {
        bail!("linux.resources.blockIO: not supported yet by this runtime; remove it");
    }
    if let Some(process) = &config.process
        && process.terminal
    {
        bail!("process.terminal: not supported yet by this runtime; set it to false");
    }
    if config.linux.resources.memory.disable_oom_killer {
        bail!(
            "linux.resources.memory.disableOOMKiller: not supported yet by this runtime; remove it"
        );
    }
    for (index, mount) in config.mounts.iter().enumerate() {
        for (name, value) in [
            ("uidMappings", &mount.uid_mappings),
            ("gidMappings", &mount.gid_mappings),
        ] {
            if value.as_ref().is_some_and(asks_for_something) {
                bail!("mounts[{index}].{name}: not supported yet by this runtime; remove it");
            }
        }
    }
    Ok(())
}

/// An empty object, list or name asks for nothing.
fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(properties) => properties.values().any(asks_for_something),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

fn places(config: &Config) -> Vec<(&'static str, &Refused)> {
    let linux = &config.linux;
    let resources = &linux.resources;
    let mut places = vec![
        ("hooks", &config.hooks),
        ("windows", &config.windows),
        ("solaris", &config.solaris),
        ("freebsd", &config.freebsd),
        ("vm", &config.vm),
        ("zos", &config.zos),
        ("linux.timeOffsets", &linux.time_offsets),
        ("linux.devices", &linux.devices),
        ("linux.netDevices", &linux.net_devices),
        ("linux.mountLabel", &linux.mount_label),
        ("linux.personality", &linux.personality),
        ("linux.intelRdt", &linux.intel_rdt),
        ("linux.memoryPolicy", &linux.memory_policy),
        ("linux.seccomp", &linux.seccomp),
        ("linux.resources.unified", &resources.unified),
        ("linux.resources.hugepageLimits", &resources.hugepage_limits),
        ("linux.resources.network", &resources.network),
        ("linux.resources.rdma", &resources.rdma),
        ("linux.resources.memory.kernel", &resources.memory.kernel),
        (
            "linux.resources.memory.kernelTCP",
            &resources.memory.kernel_tcp,
        ),
        (
            "linux.resources.memory.swappiness",
            &resources.memory.swappiness,
        ),
        (
            "linux.resources.cpu.realtimeRuntime",
            &resources.cpu.realtime_runtime,
        ),
        (
            "linux.resources.cpu.realtimePeriod",
            &resources.cpu.realtime_period,
        ),
    ];
    if let Some(process) = &config.process {
        places.extend([
            ("process.commandLine", &process.command_line),
            ("process.apparmorProfile", &process.apparmor_profile),
            ("process.scheduler", &process.scheduler),
            ("process.selinuxLabel", &process.selinux_label),
            ("process.ioPriority", &process.io_priority),
            ("process.execCPUAffinity", &process.exec_cpu_affinity),
            ("process.user.username", &process.user.username),
        ]);
    }
    places
}

#[cfg(test)]
mod tests {
    use crate::load::parse;

    #[test]
    fn each_is_named() {
        for (property, place) in [
            (r#""hooks": {"prestart": [{"path": "/bin/true"}]}"#, "hooks"),
            (
                r#""linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}"#,
                "linux.seccomp",
            ),
            (r#""process": {"terminal": true}"#, "process.terminal"),
            (
                r#""process": {"apparmorProfile": "x"}"#,
                "process.apparmorProfile",
            ),
            (
                r#""linux": {"resources": {"memory": {"swappiness": 0}}}"#,
                "linux.resources.memory.swappiness",
            ),
            (
                r#""linux": {"resources": {"blockIO": {"weight": 10}}}"#,
                "linux.resources.blockIO",
            ),
            (
                r#""mounts": [{"destination": "/a", "uidMappings": [{"size": 1}]}]"#,
                "mounts[0].uidMappings",
            ),
        ] {
            let text = format!(r#"{{"ociVersion": "1.0.2", {property}}}"#);
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{place}: ")), "{message}");
        }
    }

    #[test]
    fn what_asks_for_nothing_is_no_reason_to_refuse() {
        parse(
            r#"{"ociVersion": "1.0.2", "hooks": {"prestart": []}, "process": {"selinuxLabel": ""},
                "linux": {"resources": {"blockIO": {}, "network": {"priorities": null}}}}"#,
        )
        .unwrap();
    }
}
