//! The options of a mount, as mount(8) and the runtime-spec know them.

use anyhow::{Result, bail};
use namespaces::{Mount, MountAttributes as A, Propagation};

/// Options that set an attribute of the mount. With `r` before them they hold for everything
/// mounted below it, too.
const SET: [(&str, A); 9] = [
    ("ro", A::READ_ONLY),
    ("nosuid", A::NO_SUID),
    ("nodev", A::NO_DEV),
    ("noexec", A::NO_EXEC),
    ("noatime", A::NO_ATIME),
    ("strictatime", A::STRICT_ATIME),
    ("nodiratime", A::NO_DIR_ATIME),
    ("nosymfollow", A::NO_SYMLINK_FOLLOW),
    ("relatime", A::empty()),
];

/// Options that take an attribute away, which an earlier option has set or the source of a bind
/// has.
const UNSET: [(&str, A); 9] = [
    ("rw", A::READ_ONLY),
    ("suid", A::NO_SUID),
    ("dev", A::NO_DEV),
    ("exec", A::NO_EXEC),
    ("atime", A::NO_ATIME),
    ("nostrictatime", A::STRICT_ATIME),
    ("diratime", A::NO_DIR_ATIME),
    ("symfollow", A::NO_SYMLINK_FOLLOW),
    ("norelatime", A::empty()),
];

const PROPAGATION: [(&str, Propagation, bool); 8] = [
    ("private", Propagation::Private, false),
    ("rprivate", Propagation::Private, true),
    ("shared", Propagation::Shared, false),
    ("rshared", Propagation::Shared, true),
    ("slave", Propagation::Slave, false),
    ("rslave", Propagation::Slave, true),
    ("unbindable", Propagation::Unbindable, false),
    ("runbindable", Propagation::Unbindable, true),
];

/// What is so without being asked for.
const DEFAULTS: [&str; 7] = [
    "silent",
    "defaults",
    "async",
    "loud",
    "nolazytime",
    "nomand",
    "noiversion",
];

/// Those of them that take something away from a file system that is mounted already.
const CLEARING: [&str; 3] = ["async", "nolazytime", "nomand"];

/// The options that have a meaning of their own here, for `features`.
pub(crate) fn known() -> Vec<String> {
    let mut known: Vec<String> = ["bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"]
        .map(str::to_owned)
        .into();
    known.extend(
        SET.iter()
            .flat_map(|(name, _)| [(*name).to_owned(), format!("r{name}")]),
    );
    known.extend(
        UNSET
            .iter()
            .flat_map(|(name, _)| [(*name).to_owned(), format!("r{name}")]),
    );
    known.extend(PROPAGATION.iter().map(|(name, ..)| (*name).to_owned()));
    known.extend(DEFAULTS.iter().map(|name| (*name).to_owned()));
    known.sort();
    known
}

/// The ways to keep access times, of which a mount has one.
const ACCESS_TIMES: A = A::NO_ATIME.union(A::STRICT_ATIME);

/// The options of one mount, sorted by what they are for.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// A bind, and whether of the whole tree.
    pub(crate) bind: Option<bool>,
    /// What is mounted there already is changed.
    pub(crate) remount: bool,
    /// Of the mount itself.
    pub(crate) top: Change,
    /// Of everything mounted below it, too.
    pub(crate) tree: Change,
    pub(crate) propagation: Option<(Propagation, bool)>,
    pub(crate) copy_up: bool,
    /// Owners are mapped, and whether of the whole tree.
    pub(crate) idmap: Option<bool>,
    /// For a file system that is there: what it is to be without.
    pub(crate) cleared: Vec<String>,
    /// For the file system: key, and value.
    pub(crate) data: Vec<(String, Option<String>)>,
}

/// Attributes to be set, and to be taken away.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) set: A,
    pub(crate) clear: A,
}

impl Change {
    /// The last word counts.
    fn set(&mut self, attribute: A) {
        if attribute.is_empty() || attribute.intersects(ACCESS_TIMES) {
            self.set -= ACCESS_TIMES;
            self.clear |= ACCESS_TIMES;
        }
        self.set |= attribute;
        self.clear -= attribute;
    }

    fn clear(&mut self, attribute: A) {
        self.set -= attribute;
        self.clear |= attribute;
    }
}

impl Options {
    pub(crate) fn parse(options: &[String], place: &str) -> Result<Self> {
        let mut parsed = Self::default();
        for (index, option) in options.iter().enumerate() {
            let place = format!("{place}.options[{index}]");
            if option.is_empty() || option.contains(',') {
                bail!("{place}: `{option}` is not one option; write one in each string");
            }
            if option == "iversion" {
                bail!(
                    "{place}: iversion: file systems have names of their own for it; write i_version for ext4, or remove it"
                );
            }
            parsed.add(option);
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) {
        let find = |table: &[(&str, A)], name: &str| {
            table
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, attribute)| *attribute)
        };
        let tree = option.strip_prefix('r');
        if let Some((_, propagation, recursive)) =
            PROPAGATION.iter().find(|(name, ..)| *name == option)
        {
            self.propagation = Some((*propagation, *recursive));
        } else if option == "bind" || option == "rbind" {
            self.bind = Some(option == "rbind" || self.bind == Some(true));
        } else if option == "remount" {
            self.remount = true;
        } else if let Some(attribute) = find(&SET, option) {
            self.top.set(attribute);
        } else if let Some(attribute) = find(&UNSET, option) {
            self.top.clear(attribute);
        } else if let Some(attribute) = tree.and_then(|name| find(&SET, name)) {
            self.tree.set(attribute);
        } else if let Some(attribute) = tree.and_then(|name| find(&UNSET, name)) {
            self.tree.clear(attribute);
        } else if option == "tmpcopyup" {
            self.copy_up = true;
        } else if option == "idmap" || option == "ridmap" {
            self.idmap = Some(option == "ridmap" || self.idmap == Some(true));
        } else if CLEARING.contains(&option) {
            self.cleared.push(option.to_owned());
        } else if !DEFAULTS.contains(&option) {
            self.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            });
        }
    }

    /// For a new file system, which has nothing below it.
    pub(crate) fn of_one_mount(mut self) -> Self {
        let tree = std::mem::take(&mut self.tree);
        self.top = Change {
            set: self.top.set | (tree.set - self.top.clear),
            clear: self.top.clear | (tree.clear - self.top.set),
        };
        self
    }

    pub(crate) fn finish(self, mount: Mount) -> Mount {
        let mut mount = mount
            .attributes(self.top.set)
            .without(self.top.clear)
            .with_recursive(self.tree.set)
            .without_recursive(self.tree.clear);
        if let Some((propagation, recursive)) = self.propagation {
            mount = if recursive {
                mount.propagation_recursive(propagation)
            } else {
                mount.propagation(propagation)
            };
        }
        for (key, value) in self.data {
            mount = match value {
                Some(value) => mount.option(key, value),
                None => mount.flag(key),
            };
        }
        mount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Options> {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        Options::parse(&options, "mounts[0]")
    }

    #[test]
    fn options_are_sorted_by_what_they_are_for() {
        let options = parse(&["nosuid", "ro", "rw", "rslave", "mode=755", "usrquota"]).unwrap();
        assert_eq!(options.top.set, A::NO_SUID);
        assert_eq!(options.top.clear, A::READ_ONLY);
        assert_eq!(options.propagation, Some((Propagation::Slave, true)));
        let data = [
            ("mode".into(), Some("755".into())),
            ("usrquota".into(), None),
        ];
        assert_eq!(options.data, data);
        assert_eq!(parse(&["bind"]).unwrap().bind, Some(false));
        assert_eq!(parse(&["rbind", "bind"]).unwrap().bind, Some(true));
        assert!(parse(&["remount", "ro"]).unwrap().remount);
    }

    #[test]
    fn the_last_word_on_access_times_holds() {
        let top = |options: &[&str]| parse(options).unwrap().top;
        assert_eq!(top(&["noatime", "strictatime"]).set, A::STRICT_ATIME);
        let relative = Change {
            set: A::empty(),
            clear: ACCESS_TIMES,
        };
        assert_eq!(top(&["strictatime", "relatime"]), relative);
        assert_eq!(top(&["noatime", "atime"]).clear & A::NO_ATIME, A::NO_ATIME);
    }

    #[test]
    fn attributes_of_a_tree_stand_beside_those_of_its_top() {
        let options = parse(&["rro", "nosuid", "rexec", "rnodev"]).unwrap();
        assert_eq!(options.top.set, A::NO_SUID);
        assert_eq!(options.tree.set, A::READ_ONLY | A::NO_DEV);
        assert_eq!(options.tree.clear, A::NO_EXEC);
        let one = options.of_one_mount();
        assert_eq!(one.top.set, A::NO_SUID | A::READ_ONLY | A::NO_DEV);
        assert_eq!(one.tree, Change::default());
        // What is said of the top counts more.
        let one = parse(&["rro", "rw"]).unwrap().of_one_mount();
        assert_eq!(one.top.set, A::empty());
    }

    #[test]
    fn every_option_for_a_tree_is_one() {
        for (name, _) in SET.iter().chain(&UNSET) {
            let options = parse(&[&format!("r{name}")]).unwrap();
            assert_eq!(options.top, Change::default(), "r{name}");
            assert_eq!(options.data, [], "r{name}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for option in ["iversion", "", "ro,nosuid"] {
            let error = parse(&["nodev", option]).unwrap_err().to_string();
            assert!(error.starts_with("mounts[0].options[1]: "), "{error}");
        }
    }
}
