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
            // A name that ends with %d is one that the kernel completes with a number.
            let fixed = inside.strip_suffix("%d").unwrap_or(&inside);
            for (name, place) in [
                (name.as_str(), place.clone()),
                (fixed, format!("{place}.name")),
            ] {
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
            move_one(name, inside, process).with_context(|| format!("linux.netDevices.{name}"))?;
        }
        Ok(())
    }
}

fn move_one(name: &str, inside: &str, process: &Process) -> Result<()> {
    let addresses = addresses(name)?;
    let pid = process.pid().to_string();
    let before = if inside.ends_with("%d") {
        names(process)?
    } else {
        Vec::new()
    };
    ip(&["link", "set", "dev", name, "netns", &pid, "name", inside])?;
    let inside = if inside.ends_with("%d") {
        let new = names(process)?
            .into_iter()
            .find(|name| !before.contains(name));
        new.context("the device is gone again")?
    } else {
        inside.to_owned()
    };
    for address in &addresses {
        let words = address.iter().map(String::as_str);
        let line: Vec<&str> = ["address", "add"]
            .into_iter()
            .chain(words)
            .chain(["dev", &inside])
            .collect();
        inside_of(process, &line)?;
    }
    inside_of(process, &["link", "set", "dev", &inside, "up"]).map(drop)
}

/// The devices in the network namespace of a process.
fn names(process: &Process) -> Result<Vec<String>> {
    let text = inside_of(process, &["-o", "link", "show"])?;
    // `2: eth0@if3: <...`
    let name = |line: &str| {
        line.split([':', '@'])
            .nth(1)
            .map(|name| name.trim().to_owned())
    };
    Ok(text.lines().filter_map(name).collect())
}

/// The permanent, global addresses of a device, which it loses when it is moved; each as ip(8)
/// takes it.
fn addresses(name: &str) -> Result<Vec<Vec<String>>> {
    let show = ["-o", "address", "show", "dev", name];
    let text = ip(&[&show[..], &["scope", "global", "permanent"]].concat())?;
    Ok(text.lines().filter_map(address).collect())
}

/// `2: eth0    inet 10.0.0.1 peer 10.0.0.2/32 scope global eth0 ...`
fn address(line: &str) -> Option<Vec<String>> {
    let mut words = line.split_whitespace().map(str::to_owned);
    words.find(|word| matches!(word.as_str(), "inet" | "inet6"))?;
    let mut address = vec![words.next()?];
    if words.next()? == "peer" {
        address.extend(["peer".to_owned(), words.next()?]);
    }
    Some(address)
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
fn inside_of(process: &Process, arguments: &[&str]) -> Result<String> {
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
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
        let good = r#"{"namespaces": [{"type": "network"}], "netDevices": {"eth1": {"name": "net0"}, "x": {}, "y": {"name": "net%d"}}}"#;
        let expected = [("eth1", "net0"), ("x", "x"), ("y", "net%d")]
            .map(|(a, b)| (a.to_owned(), b.to_owned()));
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
            (
                r#"{"netDevices": {"%d": {"name": "x"}}}"#,
                "linux.netDevices.%d",
            ),
            (
                r#"{"netDevices": {"a": {"name": "n%dx"}}}"#,
                "linux.netDevices.a.name",
            ),
        ] {
            let message = of(wrong).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{place}: ")), "{message}");
        }
    }
    #[test]
    fn addresses_are_read_with_their_peers() {
        let words = |line| address(line).unwrap().join(" ");
        assert_eq!(
            words("2: e0    inet 10.1.2.3/24 brd 10.1.2.255 scope global e0\\  valid_lft forever"),
            "10.1.2.3/24"
        );
        assert_eq!(
            words("2: e0    inet 10.5.0.1 peer 10.5.0.2/32 scope global e0"),
            "10.5.0.1 peer 10.5.0.2/32"
        );
        assert_eq!(
            words("2: e0    inet6 fd00::1/64 scope global"),
            "fd00::1/64"
        );
        assert_eq!(address("2: e0: <UP> mtu 1500"), None);
    }
}
