//! `cofferdam-runtime features`: what a configuration may ask for.

use anyhow::{Context as _, Result};
use namespaces::Capability;
use serde_json::json;

use crate::list::print as print_line;
use crate::spec::OCI_VERSION;
use crate::{attributes, hooks, mount_options, seccomp};

/// Prints the features structure of the runtime-spec.
pub(crate) fn print() -> Result<()> {
    let yes = json!({"enabled": true});
    let capabilities: Vec<&str> = Capability::ALL.iter().map(|one| one.name()).collect();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": hooks::KNOWN,
        "mountOptions": mount_options::known(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::KNOWN_ACTIONS,
                "operators": seccomp::KNOWN_OPERATORS,
                "archs": seccomp::known_architectures(),
                "knownFlags": seccomp::KNOWN_FLAGS,
                "supportedFlags": seccomp::KNOWN_FLAGS,
            },
            "apparmor": yes,
            "selinux": yes,
            "intelRdt": {"enabled": true, "schemata": true, "monitoring": true},
            "memoryPolicy": {
                "modes": attributes::MEMORY_MODES,
                "flags": attributes::MEMORY_FLAGS,
            },
            "mountExtensions": {"idmap": yes},
            "netDevices": yes,
        },
        "potentiallyUnsafeConfigAnnotations": [],
    });
    let text =
        serde_json::to_string_pretty(&features).context("cannot write the features as JSON")?;
    print_line(&text)
}
