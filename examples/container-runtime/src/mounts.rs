//! `mounts`: from the options of `mount(8)` to mounts as data.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cgroups::{Cgroup, Layout};
use namespaces::{Mount, MountAttributes as A, Propagation};

use crate::config::{self, Config};
use crate::warn;

/// Options that set an attribute of the mount. With `r` before them they hold for everything
/// mounted below a bind, too.
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

/// Options that take an attribute away which an earlier option of the same mount has set.
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
const DEFAULTS: [&str; 6] = [
    "defaults",
    "async",
    "loud",
    "nolazytime",
    "nomand",
    "noiversion",
];

/// What runc knows, and would be taken for an option of the file system here.
const REFUSED: [&str; 12] = [
    "remount",
    "tmpcopyup",
    "idmap",
    "ridmap",
    "acl",
    "noacl",
    "iversion",
    "silent",
    "rrw",
    "rsuid",
    "rdev",
    "rexec",
];

/// The options that have a meaning of their own here, for `features`.
pub(crate) fn known_options() -> Vec<String> {
    let mut known: Vec<String> = ["bind", "rbind"].map(str::to_owned).into();
    known.extend(
        SET.iter()
            .flat_map(|(name, _)| [(*name).to_owned(), format!("r{name}")]),
    );
    known.extend(UNSET.iter().map(|(name, _)| (*name).to_owned()));
    known.extend(PROPAGATION.iter().map(|(name, ..)| (*name).to_owned()));
    known.extend(DEFAULTS.iter().map(|name| (*name).to_owned()));
    known.sort();
    known
}

/// The mounts of a container, in order.
#[derive(Debug)]
pub(crate) struct Mounts(Vec<Planned>);

#[derive(Debug)]
enum Planned {
    Mount(Mount),
    /// The control groups, which are to be known first.
    Cgroup {
        target: PathBuf,
        options: Options,
    },
}

/// The mounts as something to be done.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    pub(crate) mounts: Vec<Mount>,
    /// What is made read-only after everything is mounted.
    pub(crate) read_only: Vec<PathBuf>,
}

/// The options of one mount, sorted by what they are for.
#[derive(Debug, Default)]
struct Options {
    bind: Option<bool>,
    attributes: A,
    /// The option that made the attributes hold for a whole tree.
    recursive: Option<String>,
    not_recursive: Option<String>,
    propagation: Option<(Propagation, bool)>,
    /// For the file system: key, and value.
    data: Vec<(String, Option<String>)>,
}

impl Options {
    fn parse(options: &[String], place: &str) -> Result<Self> {
        let mut parsed = Self::default();
        for (index, option) in options.iter().enumerate() {
            let place = format!("{place}.options[{index}]");
            if option.is_empty() || option.contains(',') {
                bail!("{place}: `{option}` is not one option; write one in each string");
            }
            if REFUSED.contains(&option.as_str()) {
                bail!("{place}: {option}: not supported yet by this runtime; remove it");
            }
            parsed.add(option);
        }
        if let (Some(recursive), Some(other)) = (&parsed.recursive, &parsed.not_recursive) {
            bail!(
                "{place}.options: {recursive} is for a whole tree, {other} is not; use options of one kind"
            );
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
        if let Some((_, propagation, recursive)) =
            PROPAGATION.iter().find(|(name, ..)| *name == option)
        {
            self.propagation = Some((*propagation, *recursive));
        } else if option == "bind" || option == "rbind" {
            self.bind = Some(option == "rbind" || self.bind == Some(true));
        } else if let Some(attribute) = find(&SET, option) {
            self.set(attribute);
            if !attribute.is_empty() {
                self.not_recursive = Some(option.to_owned());
            }
        } else if let Some(attribute) = find(&UNSET, option) {
            self.attributes -= attribute;
        } else if let Some(attribute) = option.strip_prefix('r').and_then(|name| find(&SET, name)) {
            self.set(attribute);
            self.recursive = Some(option.to_owned());
        } else if !DEFAULTS.contains(&option) {
            self.data.push(match option.split_once('=') {
                Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                None => (option.to_owned(), None),
            });
        }
    }

    fn set(&mut self, attribute: A) {
        // The kernel knows one policy of access times for a mount; the last option tells which.
        if attribute.is_empty() || attribute.intersects(A::NO_ATIME | A::STRICT_ATIME) {
            self.attributes -= A::NO_ATIME | A::STRICT_ATIME;
        }
        self.attributes |= attribute;
    }

    fn finish(self, mount: Mount) -> Mount {
        let mut mount = if self.recursive.is_some() {
            mount.attributes_recursive(self.attributes)
        } else {
            mount.attributes(self.attributes)
        };
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

impl Mounts {
    /// The mounts that the configuration asks for.
    pub(crate) fn of(config: &Config, bundle: &Path) -> Result<Self> {
        let planned = config
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| plan(mount, &format!("mounts[{index}]"), bundle));
        planned.collect::<Result<_>>().map(Self)
    }

    /// The same, now that the control group is there.
    pub(crate) fn resolve(self, group: &Cgroup) -> Result<Resolved> {
        let mut resolved = Resolved::default();
        for planned in self.0 {
            match planned {
                Planned::Mount(mount) => resolved.mounts.push(mount),
                Planned::Cgroup { target, options } => {
                    resolved.add_cgroup(&target, options, group)?;
                }
            }
        }
        Ok(resolved)
    }
}

fn plan(mount: &config::Mount, place: &str, bundle: &Path) -> Result<Planned> {
    let Some(target) = &mount.destination else {
        bail!("{place}.destination: missing; write where to mount");
    };
    if !target.is_absolute() {
        warn(&format!(
            "{place}.destination: {} does not begin with /, taken from there",
            target.display()
        ));
    }
    let target = Path::new("/").join(target);
    let options = Options::parse(&mount.options, place)?;
    let kind = mount.kind.as_deref().filter(|kind| !kind.is_empty());
    if options.bind.is_some() || kind == Some("bind") {
        return bind(mount, place, bundle, &target, options).map(Planned::Mount);
    }
    let Some(kind) = kind else {
        bail!("{place}.type: missing; write the file system, or `bind` among the options");
    };
    if options.recursive.is_some() {
        bail!("{place}.options: a new file system has nothing below it; use options without r");
    }
    Ok(match kind {
        "cgroup" => {
            if let Some((key, _)) = options.data.first() {
                bail!("{place}.options: {key} has no meaning for control groups; remove it");
            }
            Planned::Cgroup { target, options }
        }
        "tmpfs" if target == Path::new("/dev") => Planned::Mount(dev(place, &target, options)?),
        _ => {
            let mut new = Mount::filesystem(kind, &target);
            if let Some(source) = &mount.source {
                new = new.source_name(source);
            }
            Planned::Mount(options.finish(new))
        }
    })
}

fn bind(
    mount: &config::Mount,
    place: &str,
    bundle: &Path,
    target: &Path,
    options: Options,
) -> Result<Mount> {
    let Some(source) = &mount.source else {
        bail!("{place}.source: missing; write what to bind");
    };
    if let Some((key, _)) = options.data.first() {
        bail!("{place}.options: {key} has no meaning for a bind mount; remove it");
    }
    let source = bundle.join(source);
    std::fs::metadata(&source)
        .with_context(|| format!("{place}.source: cannot bind {}", source.display()))?;
    let bind = if options.bind == Some(true) {
        Mount::bind(source, target)
    } else {
        Mount::bind_single(source, target)
    };
    Ok(options.finish(bind))
}

impl Resolved {
    /// The control groups: on v2 the hierarchy; on v1 the container's own group of each hierarchy,
    /// in a directory of its name. Where several controllers share a hierarchy, it is there by the
    /// name of each.
    fn add_cgroup(&mut self, target: &Path, options: Options, group: &Cgroup) -> Result<()> {
        if group.hierarchy().layout() == Layout::Unified {
            self.mounts
                .push(options.finish(Mount::filesystem("cgroup2", target).source_name("cgroup")));
            return Ok(());
        }
        let attributes = options.attributes;
        let propagation = options.propagation;
        // Made read-only when the directories are in it.
        if attributes.contains(A::READ_ONLY) {
            self.read_only.push(target.to_owned());
        }
        let directories = Options {
            attributes: attributes - A::READ_ONLY,
            propagation,
            ..Options::default()
        };
        self.mounts.push(
            directories.finish(
                Mount::filesystem("tmpfs", target)
                    .source_name("cgroup")
                    .option("mode", "755"),
            ),
        );
        for directory in group.directories() {
            if !is_v1(directory)? {
                continue;
            }
            let depth = group.path().components().count();
            let Some(name) = directory.ancestors().nth(depth).and_then(Path::file_name) else {
                continue;
            };
            let mut names = vec![name.to_string_lossy().into_owned()];
            if let Some(name) = name.to_str().filter(|name| name.contains(',')) {
                names.extend(name.split(',').map(str::to_owned));
            }
            for name in names {
                self.mounts
                    .push(Mount::bind_single(directory, target.join(name)).attributes(attributes));
            }
        }
        Ok(())
    }
}

fn is_v1(directory: &Path) -> Result<bool> {
    /// `CGROUP_SUPER_MAGIC` of `linux/magic.h`; that of v2 is another.
    const V1: i64 = 0x0027_e0eb;
    let stat = rustix::fs::statfs(directory)
        .with_context(|| format!("cannot look at {}", directory.display()))?;
    #[expect(
        clippy::useless_conversion,
        reason = "its type differs between architectures"
    )]
    Ok(i64::from(stat.f_type) == V1)
}

/// The devices that every container has are made together with the tmpfs of `/dev`, which is of
/// the size and mode that everyone asks for.
fn dev(place: &str, target: &Path, options: Options) -> Result<Mount> {
    for (key, value) in &options.data {
        match (key.as_str(), value.as_deref()) {
            ("mode", Some("755" | "0755")) | ("size", Some("65536k" | "64m" | "67108864")) => {}
            _ => bail!(
                "{place}.options: {key} of /dev: not supported yet by this runtime but for mode=755 and size=65536k"
            ),
        }
    }
    if options.attributes.contains(A::READ_ONLY) {
        bail!("{place}.options: a read-only /dev is not supported yet by this runtime; remove ro");
    }
    let options = Options {
        data: Vec::new(),
        ..options
    };
    Ok(options.finish(Mount::dev(target)))
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
        assert_eq!(options.attributes, A::NO_SUID);
        assert_eq!(options.propagation, Some((Propagation::Slave, true)));
        let data = [
            ("mode".into(), Some("755".into())),
            ("usrquota".into(), None),
        ];
        assert_eq!(options.data, data);
        assert_eq!(parse(&["bind"]).unwrap().bind, Some(false));
        assert_eq!(parse(&["rbind", "bind"]).unwrap().bind, Some(true));
    }

    #[test]
    fn the_last_word_on_access_times_holds() {
        assert_eq!(
            parse(&["noatime", "strictatime"]).unwrap().attributes,
            A::STRICT_ATIME
        );
        assert_eq!(
            parse(&["strictatime", "relatime"]).unwrap().attributes,
            A::empty()
        );
    }

    #[test]
    fn attributes_of_a_tree_do_not_mix_with_those_of_a_mount() {
        assert!(parse(&["rro", "rnosuid"]).unwrap().recursive.is_some());
        let error = parse(&["rro", "nosuid"]).unwrap_err().to_string();
        assert!(error.starts_with("mounts[0].options: "), "{error}");
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for option in REFUSED.iter().copied().chain(["", "ro,nosuid"]) {
            let error = parse(&["nodev", option]).unwrap_err().to_string();
            assert!(error.starts_with("mounts[0].options[1]: "), "{error}");
        }
    }
}
