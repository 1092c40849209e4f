//! `linux.devices`: device nodes of the container.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use namespaces::{Device, DeviceKind};

use crate::config::{self, Linux};

/// The device nodes that the configuration asks for.
pub(crate) fn of(linux: &Linux) -> Result<Vec<Device>> {
    let mut all = Vec::new();
    for (index, asked) in linux.devices.iter().enumerate() {
        // Engines list the machine's for a privileged container, which has its own.
        if asked.path.as_deref() == Some(Path::new("/dev/ptmx")) {
            continue;
        }
        all.push(node(asked, &format!("linux.devices[{index}]"))?);
    }
    Ok(all)
}

fn node(asked: &config::Device, place: &str) -> Result<Device> {
    let Some(path) = asked.path.as_deref().filter(|path| path.is_absolute()) else {
        bail!("{place}.path: must be a path that begins with /");
    };
    let kind = match asked.kind.as_str() {
        "c" | "u" => DeviceKind::Character,
        "b" => DeviceKind::Block,
        "p" => DeviceKind::Fifo,
        other => bail!("{place}.type: `{other}` is none; choose among c, b, u, p"),
    };
    let number = |number: Option<i64>, name: &str| {
        let Some(number) = number else {
            bail!("{place}.{name}: missing; write the device's number");
        };
        u32::try_from(number)
            .with_context(|| format!("{place}.{name}: {number} is no device number"))
    };
    let (major, minor) = match kind {
        DeviceKind::Fifo => (0, 0),
        _ => (number(asked.major, "major")?, number(asked.minor, "minor")?),
    };
    // Engines write the whole of st_mode.
    let mode = asked.file_mode.unwrap_or(0o666) & 0o7777;
    let device = Device::new(path, kind, major, minor).mode(mode);
    Ok(match (asked.uid, asked.gid) {
        (None, None) => device,
        (uid, gid) => device.owner(uid.unwrap_or(0), gid.unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (json, place) in [
            (r#"{"type": "c"}"#, "x.path"),
            (r#"{"type": "c", "path": "dev/x"}"#, "x.path"),
            (r#"{"type": "z", "path": "/dev/x"}"#, "x.type"),
            (r#"{"type": "c", "path": "/dev/x", "major": -1}"#, "x.major"),
            (r#"{"type": "c", "path": "/dev/x", "major": 1}"#, "x.minor"),
            (
                r#"{"type": "b", "path": "/dev/x", "major": 8, "minor": 4294967296}"#,
                "x.minor",
            ),
        ] {
            let error = node(&serde_json::from_str(json).unwrap(), "x").unwrap_err();
            assert!(
                error.to_string().starts_with(&format!("{place}: ")),
                "{error}"
            );
        }
        let fifo = r#"{"type": "p", "path": "/dev/x", "fileMode": 4516}"#;
        assert!(node(&serde_json::from_str(fifo).unwrap(), "x").is_ok());
    }
}
