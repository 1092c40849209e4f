//! Which device nodes the processes of a group may use.

use std::fmt;
use std::ops::BitOr;

use crate::device::DeviceNumber;

/// Block or character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum DeviceKind {
    /// A block device.
    Block,
    /// A character device.
    Char,
}

/// What is done with a device node.
///
/// ```
/// use cgroups::Access;
///
/// let access = Access::READ | Access::WRITE;
/// assert_eq!(access.to_string(), "rw");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "u8", into = "u8")
)]
pub struct Access(u8);

impl Access {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Making the node: `mknod(2)`.
    #[doc(alias = "BPF_DEVCG_ACC_MKNOD")]
    pub const MKNOD: Self = Self(1);
    /// Opening it for reading.
    #[doc(alias = "BPF_DEVCG_ACC_READ")]
    pub const READ: Self = Self(2);
    /// Opening it for writing.
    #[doc(alias = "BPF_DEVCG_ACC_WRITE")]
    pub const WRITE: Self = Self(4);
    /// Everything.
    pub const ALL: Self = Self(7);

    /// Whether all of `other` is in this.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) const fn bits(self) -> u8 {
        self.0
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 & Self::ALL.0 == 0
    }

    pub(crate) const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    const EACH: [Self; 3] = [Self::READ, Self::WRITE, Self::MKNOD];
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Access {
    /// As v1 writes it: a part of `rwm`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (access, letter) in Self::EACH.into_iter().zip(["r", "w", "m"]) {
            if self.contains(access) {
                f.write_str(letter)?;
            }
        }
        Ok(())
    }
}

#[cfg(feature = "serde")]
impl From<Access> for u8 {
    fn from(access: Access) -> Self {
        access.0
    }
}

#[cfg(feature = "serde")]
impl TryFrom<u8> for Access {
    type Error = crate::Error;

    fn try_from(bits: u8) -> Result<Self, Self::Error> {
        if bits <= Self::ALL.0 {
            Ok(Self(bits))
        } else {
            Err(crate::Error::OutOfRange {
                what: "set of kinds of access",
                value: bits.to_string(),
                min: "0",
                max: "7",
            })
        }
    }
}

/// Devices: one, or several by leaving parts open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Devices {
    /// Of this kind, or of both.
    pub kind: Option<DeviceKind>,
    /// Of this driver, or of all.
    pub major: Option<u32>,
    /// With this number, or all.
    pub minor: Option<u32>,
}

impl Devices {
    /// Every device.
    pub const ALL: Self = Self {
        kind: None,
        major: None,
        minor: None,
    };

    /// One character device.
    pub const fn char(number: DeviceNumber) -> Self {
        Self {
            kind: Some(DeviceKind::Char),
            major: Some(number.major),
            minor: Some(number.minor),
        }
    }

    /// One block device.
    pub const fn block(number: DeviceNumber) -> Self {
        Self {
            kind: Some(DeviceKind::Block),
            ..Self::char(number)
        }
    }

    fn contains(self, kind: DeviceKind, number: DeviceNumber) -> bool {
        self.kind.is_none_or(|own| own == kind)
            && self.major.is_none_or(|own| own == number.major)
            && self.minor.is_none_or(|own| own == number.minor)
    }

    /// Whether every device of `other` is among these.
    pub(crate) fn covers(self, other: Self) -> bool {
        (self.kind.is_none() || self.kind == other.kind)
            && (self.major.is_none() || self.major == other.major)
            && (self.minor.is_none() || self.minor == other.minor)
    }

    /// The devices that are among both.
    pub(crate) fn common(self, other: Self) -> Option<Self> {
        fn agree<T: PartialEq + Copy>(a: Option<T>, b: Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        let meet = agree(self.kind, other.kind)
            && agree(self.major, other.major)
            && agree(self.minor, other.minor);
        meet.then(|| Self {
            kind: self.kind.or(other.kind),
            major: self.major.or(other.major),
            minor: self.minor.or(other.minor),
        })
    }
}

impl fmt::Display for Devices {
    /// As v1 writes it: `c 1:3`, `b *:*`, `a *:*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            None => 'a',
            Some(DeviceKind::Block) => 'b',
            Some(DeviceKind::Char) => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
        write!(f, "{kind} {}:{}", number(self.major), number(self.minor))
    }
}

/// One rule of [`DeviceRules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceRule {
    /// Whether it allows or denies.
    pub allow: bool,
    /// For which devices.
    pub devices: Devices,
    /// Which kinds of access.
    pub access: Access,
}

impl fmt::Display for DeviceRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.allow { "allow" } else { "deny" };
        write!(f, "{word} {} {}", self.devices, self.access)
    }
}

/// Which device nodes the processes of a group may use: rules of which, for each kind of access,
/// the last that fits decides. Where none fits, access is denied.
///
/// ```
/// use cgroups::{Access, DeviceKind, DeviceNumber, DeviceRules, Devices};
///
/// let null = DeviceNumber::new(1, 3);
/// let rules = DeviceRules::deny_all().allow(Devices::char(null), Access::READ | Access::WRITE);
/// assert!(rules.permits(DeviceKind::Char, null, Access::READ));
/// assert!(!rules.permits(DeviceKind::Char, null, Access::READ | Access::MKNOD));
/// assert!(!rules.permits(DeviceKind::Block, null, Access::READ));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct DeviceRules {
    rules: Vec<DeviceRule>,
}

impl DeviceRules {
    /// No access at all.
    pub const fn deny_all() -> Self {
        Self { rules: Vec::new() }
    }

    /// Access to everything.
    pub fn allow_all() -> Self {
        Self::deny_all().allow(Devices::ALL, Access::ALL)
    }

    /// Adds a rule that allows.
    #[must_use]
    pub fn allow(mut self, devices: Devices, access: Access) -> Self {
        self.push(DeviceRule {
            allow: true,
            devices,
            access,
        });
        self
    }

    /// Adds a rule that denies.
    #[must_use]
    pub fn deny(mut self, devices: Devices, access: Access) -> Self {
        self.push(DeviceRule {
            allow: false,
            devices,
            access,
        });
        self
    }

    /// Adds a rule.
    pub fn push(&mut self, rule: DeviceRule) {
        self.rules.push(rule);
    }

    /// The rules in order.
    pub fn rules(&self) -> &[DeviceRule] {
        &self.rules
    }

    /// Whether these rules permit all of this access. It is what the kernel is made to decide.
    pub fn permits(&self, kind: DeviceKind, number: DeviceNumber, access: Access) -> bool {
        Access::EACH
            .into_iter()
            .filter(|each| access.contains(*each))
            .all(|each| {
                self.rules
                    .iter()
                    .rev()
                    .find(|rule| rule.access.contains(each) && rule.devices.contains(kind, number))
                    .is_some_and(|rule| rule.allow)
            })
    }
}

impl Extend<DeviceRule> for DeviceRules {
    fn extend<I: IntoIterator<Item = DeviceRule>>(&mut self, rules: I) {
        self.rules.extend(rules);
    }
}

impl FromIterator<DeviceRule> for DeviceRules {
    fn from_iter<I: IntoIterator<Item = DeviceRule>>(rules: I) -> Self {
        Self {
            rules: rules.into_iter().collect(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn access() -> impl Strategy<Value = Access> {
        (0..8_u8).prop_map(Access)
    }

    /// Short lists over few devices, so that rules meet.
    pub(crate) fn rules() -> impl Strategy<Value = DeviceRules> {
        let kind = prop_oneof![
            Just(None),
            Just(Some(DeviceKind::Block)),
            Just(Some(DeviceKind::Char))
        ];
        let number = || prop::option::of(0..4_u32);
        let rule = (any::<bool>(), kind, number(), number(), access()).prop_map(
            |(allow, kind, major, minor, access)| DeviceRule {
                allow,
                devices: Devices { kind, major, minor },
                access,
            },
        );
        let everything = any::<bool>().prop_map(|allow| DeviceRule {
            allow,
            devices: Devices::ALL,
            access: Access::ALL,
        });
        prop::collection::vec(prop_oneof![8 => rule, 1 => everything], 0..8)
            .prop_map(|rules| rules.into_iter().collect())
    }
}
