//! `linux.netDevices`: network devices of the machine that the container gets.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use namespaces::{Namespace, Process};

use crate::config::Config;
use crate::container::kind;

/// Devices to be moved, each with its name in the container.
#[derive(Debug)]
pub(crate) struct Devices(Vec<(String, String)>);

impl Devices {
    /// The devices that the configuration asks for.
    pub(crate) fn of(config: &Config) -> Result<Self> {
        let mut devices = Vec::new();
        for (name, device) in &config.linux.net_devices {
            let place = format!("linux.netDevices.{name}");
            let inside = device.name.as_ref().filter(|name| !name.is_empty());
            let inside = inside.unwrap_or(name).clone();
            for (name, place) in [(name, place.clone()), (&inside, format!("{place}.name"))] {
                if name.is_empty()
                    || name.len() > 15
                    || name == "."
                    || name == ".."
                    || name.starts_with('-')
                    || name
                        .contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace())
                {
                    bail!("{place}: `{name}` is no name of a network device");
                }
            }
            devices.push((name.clone(), inside));
        }
        if !devices.is_empty()
            && !config
                .linux
                .namespaces
                .iter()
                .any(|namespace| kind(&namespace.kind) == Some(Namespace::Net))
        {
            bail!(
                "linux.netDevices: the container has the machine's network; add {{\"type\": \"network\"}} to linux.namespaces"
            );
        }
        Ok(Self(devices))
    }

    /// Moves them into the network namespace of a process; addresses go with them, by ip(8).
    pub(crate) fn move_into(&self, process: &Process) -> Result<()> {
        for (name, inside) in &self.0 {
            let place = || format!("linux.netDevices.{name}");
            let addresses = addresses(name).with_context(place)?;
            let pid = process.pid().to_string();
            ip(&["link", "set", "dev", name, "netns", &pid, "name", inside]).with_context(place)?;
            for address in addresses {
                inside_of(process, &["address", "add", &address, "dev", inside])
                    .with_context(place)?;
            }
            inside_of(process, &["link", "set", "dev", inside, "up"]).with_context(place)?;
        }
        Ok(())
    }
}

/// The global addresses of a device, which it loses when it is moved.
fn addresses(name: &str) -> Result<Vec<String>> {
    let text = ip(&["-o", "address", "show", "dev", name, "scope", "global"])?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            words.find(|word| matches!(*word, "inet" | "inet6"))?;
            words.next().map(str::to_owned)
        })
        .collect())
}

fn ip(arguments: &[&str]) -> Result<String> {
    let output = Command::new("ip")
        .args(arguments)
        .output()
        .context("cannot run ip(8); install iproute2")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The same in the network namespace of a process, with this process's files.
fn inside_of(process: &Process, arguments: &[&str]) -> Result<()> {
    let output = namespaces::Command::new("ip")
        .args(arguments)
        .join(Namespace::Net, process)
        .output()
        .context("cannot run ip(8) in the container's network namespace")?;
    if !output.status.success() {
        bail!(
            "ip {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let of = |json: &str| {
            let text = format!(r#"{{"ociVersion": "1.3.0", "linux": {json}}}"#);
            Devices::of(&crate::load::parse(&text).unwrap().0)
        };
        let good = r#"{"namespaces": [{"type": "network"}], "netDevices": {"eth1": {"name": "net0"}, "x": {}}}"#;
        let expected = [("eth1", "net0"), ("x", "x")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(of(good).unwrap().0, expected);
        for (wrong, place) in [
            (r#"{"netDevices": {"eth1": {}}}"#, "linux.netDevices"),
            (r#"{"netDevices": {"a b": {}}}"#, "linux.netDevices.a b"),
            (
                r#"{"netDevices": {"a": {"name": "../x"}}}"#,
                "linux.netDevices.a.name",
            ),
            (
                r#"{"netDevices": {"a": {"name": "-x"}}}"#,
                "linux.netDevices.a.name",
            ),
            (
                r#"{"netDevices": {"a": {"name": "longer-than-fifteen"}}}"#,
                "linux.netDevices.a.name",
            ),
        ] {
            let message = of(wrong).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{place}: ")), "{message}");
        }
    }
}
