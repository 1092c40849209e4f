//! `linux.resources.devices`: which device nodes the container may use.

use anyhow::{Context as _, Result, bail};
use cgroups::{Access, Cgroup, DeviceKind, DeviceNumber, DeviceRules, Devices};

use crate::config::{Config, DeviceRule};

/// What every container may use, as under runc: `null zero full random urandom tty console ptmx`.
const ALWAYS: [DeviceNumber; 8] = [
    DeviceNumber::new(1, 3),
    DeviceNumber::new(1, 5),
    DeviceNumber::new(1, 7),
    DeviceNumber::new(1, 8),
    DeviceNumber::new(1, 9),
    DeviceNumber::new(5, 0),
    DeviceNumber::new(5, 1),
    DeviceNumber::new(5, 2),
];

/// The driver of the terminals in `/dev/pts`.
const TERMINALS: u32 = 136;

/// The rules of a container.
#[derive(Debug)]
pub(crate) struct Rules(Option<DeviceRules>);

impl Rules {
    /// The rules that the configuration asks for, if any; what every container may use is allowed
    /// after them.
    pub(crate) fn of(config: &Config) -> Result<Self> {
        let asked = &config.linux.resources.devices;
        if asked.is_empty() {
            return Ok(Self(None));
        }
        let mut rules = DeviceRules::deny_all();
        for (index, asked) in asked.iter().enumerate() {
            rules.push(rule(asked, &format!("linux.resources.devices[{index}]"))?);
        }
        for kind in [DeviceKind::Char, DeviceKind::Block] {
            // A node can be made, but not opened.
            let all = Devices {
                kind: Some(kind),
                ..Devices::ALL
            };
            rules = rules.allow(all, Access::MKNOD);
        }
        for number in ALWAYS {
            rules = rules.allow(Devices::char(number), Access::ALL);
        }
        let terminals = Devices {
            kind: Some(DeviceKind::Char),
            major: Some(TERMINALS),
            minor: None,
        };
        Ok(Self(Some(rules.allow(terminals, Access::ALL))))
    }

    /// Sets the rules of the group.
    pub(crate) fn apply(&self, group: &Cgroup) -> Result<()> {
        match &self.0 {
            Some(rules) => group.set_devices(rules).context("linux.resources.devices"),
            None => Ok(()),
        }
    }
}

fn rule(rule: &DeviceRule, place: &str) -> Result<cgroups::DeviceRule> {
    let kind = match rule.kind.as_deref().unwrap_or("a") {
        "" | "a" => None,
        "b" => Some(DeviceKind::Block),
        "c" | "u" => Some(DeviceKind::Char),
        other => bail!("{place}.type: `{other}` is none; choose among a, b, c"),
    };
    let number = |number: Option<i64>, name: &str| match number {
        None | Some(-1) => Ok(None),
        Some(number) => match u32::try_from(number) {
            Ok(number) => Ok(Some(number)),
            Err(_) => bail!("{place}.{name}: {number} is no device number; -1 is any"),
        },
    };
    let mut access = Access::NONE;
    for letter in rule.access.as_deref().unwrap_or("rwm").chars() {
        access = access
            | match letter {
                'r' => Access::READ,
                'w' => Access::WRITE,
                'm' => Access::MKNOD,
                other => bail!("{place}.access: `{other}` is none; write some of the letters rwm"),
            };
    }
    if access == Access::NONE {
        bail!("{place}.access: empty; write some of the letters rwm");
    }
    Ok(cgroups::DeviceRule {
        allow: rule.allow,
        devices: Devices {
            kind,
            major: number(rule.major, "major")?,
            minor: number(rule.minor, "minor")?,
        },
        access,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<String> {
        Ok(rule(&serde_json::from_str(json).unwrap(), "x")?.to_string())
    }

    #[test]
    fn rules_are_understood() {
        assert_eq!(
            of(r#"{"allow": false, "access": "rwm"}"#).unwrap(),
            "deny a *:* rwm"
        );
        assert_eq!(
            of(r#"{"allow": true, "type": "c", "major": 10, "minor": -1, "access": "rw"}"#)
                .unwrap(),
            "allow c 10:* rw"
        );
        assert_eq!(
            of(r#"{"allow": false, "type": "b"}"#).unwrap(),
            "deny b *:* rwm"
        );
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_place() {
        for wrong in [
            r#"{"allow": true, "type": "x"}"#,
            r#"{"allow": true, "type": "c", "major": -2}"#,
            r#"{"allow": true, "type": "c", "minor": 4294967296}"#,
            r#"{"allow": true, "type": "c", "access": "rwx"}"#,
            r#"{"allow": true, "type": "c", "access": ""}"#,
        ] {
            let message = of(wrong).unwrap_err().to_string();
            assert!(message.starts_with("x."), "{message}");
        }
    }
}
