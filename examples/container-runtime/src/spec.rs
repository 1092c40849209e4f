//! `cofferdam-runtime spec`: a configuration to begin with.

use std::fs::File;
use std::io::{self, Write as _};

use anyhow::{Context as _, Result, bail};

use serde_json::{Value, json};

use crate::cli::Spec;

/// The version of the runtime-spec whose properties are known here.
pub(crate) const OCI_VERSION: &str = "1.3.0";

/// What is written: what runc writes, but without a terminal and ambient capabilities, and with a
/// cgroup namespace.
pub(crate) const DEFAULT: &str = include_str!("default.json");

/// Writes the default configuration into the bundle.
pub(crate) fn write(options: &Spec) -> Result<()> {
    let path = options.bundle.join("config.json");
    let text = if options.rootless {
        rootless()?
    } else {
        DEFAULT.to_owned()
    };
    match File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes())) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => bail!(
            "{} exists and is not overwritten; remove it first, or name another directory with --bundle",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot write {}", path.display())),
    }
}

/// The same for an ordinary user: root of a user namespace, with the machine's network, whose `/sys`
/// is shown, and without limits.
fn rootless() -> Result<String> {
    let mut config: Value = serde_json::from_str(DEFAULT).context("cannot read the default")?;
    let linux = &mut config["linux"];
    let one = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
    linux["uidMappings"] = one(rustix::process::geteuid().as_raw());
    linux["gidMappings"] = one(rustix::process::getegid().as_raw());
    linux["resources"] = json!({});
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces
            .retain(|namespace| namespace["type"] != "network" && namespace["type"] != "cgroup");
        namespaces.push(json!({"type": "user"}));
    }
    if let Some(mounts) = config["mounts"].as_array_mut() {
        mounts.retain(|mount| mount["type"] != "cgroup");
        for mount in mounts {
            if mount["type"] == "sysfs" {
                *mount = json!({
                    "destination": "/sys",
                    "type": "none",
                    "source": "/sys",
                    "options": ["rbind", "rnosuid", "rnoexec", "rnodev", "rro"],
                });
            }
            if let Some(options) = mount["options"].as_array_mut() {
                // Groups without a number inside.
                options.retain(|option| option != "gid=5");
            }
        }
    }
    serde_json::to_string_pretty(&config).context("cannot write the configuration")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_understood_whole() {
        let (config, unknown) = crate::load::parse(DEFAULT).unwrap();
        assert_eq!(unknown, [""; 0]);
        assert_eq!(config.oci_version.as_deref(), Some(OCI_VERSION));
    }
}
