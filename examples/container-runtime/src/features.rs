//! `cofferdam-runtime features`: what a configuration may ask for.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use namespaces::Capability;
use serde_json::json;

use crate::mounts;
use crate::spec::OCI_VERSION;

/// Prints the features structure of the runtime-spec.
pub(crate) fn print() -> Result<()> {
    let no = json!({"enabled": false});
    let capabilities: Vec<&str> = Capability::ALL.iter().map(|one| one.name()).collect();
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": [],
        "mountOptions": mounts::known_options(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": false},
            "seccomp": no,
            "apparmor": no,
            "selinux": no,
            "intelRdt": no,
            "mountExtensions": {"idmap": no},
            "netDevices": no,
        },
    });
    let text =
        serde_json::to_string_pretty(&features).context("cannot write the features as JSON")?;
    writeln!(std::io::stdout(), "{text}").context("cannot print")
}
