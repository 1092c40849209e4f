//! Device rules in the form of v1.
//!
//! v1 keeps no list of rules but a default and exceptions to it, all of one direction. Allowing
//! and denying the same devices by the same name cancel out; denying a part of what a wildcard
//! allows has no effect. And an access needs one exception that has all of it. So the rules are
//! evaluated here, as far as they can be, and only the result is written.

use crate::devices::{Access, DeviceKind, DeviceRule, DeviceRules, Devices};

/// What is written: the default, then the exceptions.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exceptions {
    pub(crate) default_allow: bool,
    pub(crate) entries: Vec<(Devices, Access)>,
}

/// Evaluates the rules; the error is the rule for which v1 has no words.
pub(crate) fn exceptions(rules: &DeviceRules) -> Result<Exceptions, DeviceRule> {
    let mut state = Exceptions {
        default_allow: false,
        entries: Vec::new(),
    };
    for &rule in rules.rules() {
        if rule.access.is_empty() {
            continue;
        }
        if rule.devices == Devices::ALL && rule.access.contains(Access::ALL) {
            state.default_allow = rule.allow;
            state.entries.clear();
            continue;
        }
        // `a` with numbers would mean everything, so each kind is written on its own.
        for kind in [DeviceKind::Block, DeviceKind::Char] {
            if rule.devices.kind.is_none_or(|own| own == kind) {
                let devices = Devices {
                    kind: Some(kind),
                    ..rule.devices
                };
                state.add(rule, devices)?;
            }
        }
    }
    if !state.default_allow {
        state.join_overlaps();
    }
    Ok(state)
}

impl Exceptions {
    fn add(&mut self, rule: DeviceRule, devices: Devices) -> Result<(), DeviceRule> {
        let access = rule.access.common(Access::ALL);
        if rule.allow != self.default_allow {
            match self.entries.iter_mut().find(|(own, _)| *own == devices) {
                Some((_, own)) => *own = *own | access,
                None => self.entries.push((devices, access)),
            }
            return Ok(());
        }
        // Back to the default: exceptions shrink, but nothing can be cut out of a wildcard.
        for (own, own_access) in &mut self.entries {
            if own_access.common(access).is_empty() || own.common(devices).is_none() {
                continue;
            }
            if !devices.covers(*own) {
                return Err(rule);
            }
            *own_access = own_access.without(access);
        }
        self.entries.retain(|(_, access)| !access.is_empty());
        Ok(())
    }

    /// Where two exceptions overlap, what is in both gets the access of both in one exception.
    fn join_overlaps(&mut self) {
        let mut at = 0;
        while at < self.entries.len() {
            for other in 0..at {
                let Some(common) = self.entries[at].0.common(self.entries[other].0) else {
                    continue;
                };
                let access = self
                    .entries
                    .iter()
                    .filter(|(own, _)| own.covers(common))
                    .fold(Access::NONE, |all, (_, access)| all | *access);
                match self.entries.iter_mut().find(|(own, _)| *own == common) {
                    Some((_, own)) => *own = *own | access,
                    None => self.entries.push((common, access)),
                }
            }
            at += 1;
        }
    }

    /// The decision of the kernel, by `security/device_cgroup.c`.
    #[cfg(test)]
    fn permits(&self, kind: DeviceKind, major: u32, minor: u32, access: Access) -> bool {
        let device = Devices {
            kind: Some(kind),
            major: Some(major),
            minor: Some(minor),
        };
        let mut fitting = self
            .entries
            .iter()
            .filter(|(own, _)| own.covers(device))
            .map(|(_, own)| *own);
        if self.default_allow {
            fitting.all(|own| own.common(access).is_empty())
        } else {
            fitting.any(|own| own.contains(access))
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;
    use crate::device::DeviceNumber;
    use crate::devices::tests::{access, rules};

    proptest! {
        #[test]
        fn v1_decides_as_the_rules_do(
            rules in rules(),
            block in any::<bool>(),
            (major, minor) in (0..4_u32, 0..4_u32),
            access in access(),
        ) {
            prop_assume!(!access.is_empty());
            let kind = if block { DeviceKind::Block } else { DeviceKind::Char };
            if let Ok(exceptions) = exceptions(&rules) {
                let number = DeviceNumber::new(major, minor);
                prop_assert_eq!(
                    exceptions.permits(kind, major, minor, access),
                    rules.permits(kind, number, access),
                    "{:?}", exceptions
                );
            }
        }
    }

    #[test]
    fn what_v1_cannot_say_is_named() {
        let null = Devices::char(DeviceNumber::new(1, 3));
        let all_chars = Devices {
            kind: Some(DeviceKind::Char),
            ..Devices::ALL
        };
        let rules = DeviceRules::deny_all()
            .allow(all_chars, Access::READ)
            .deny(null, Access::READ);
        assert_eq!(exceptions(&rules), Err(rules.rules()[1]));
        // The other way round it can.
        let rules = DeviceRules::allow_all().deny(null, Access::READ);
        let entries = vec![(null, Access::READ)];
        let expected = Exceptions {
            default_allow: true,
            entries,
        };
        assert_eq!(exceptions(&rules), Ok(expected));
    }
}
