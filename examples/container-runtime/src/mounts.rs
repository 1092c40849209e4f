//! `mounts`: from the options of `mount(8)` to mounts as data.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cgroups::{Cgroup, Hierarchy, Layout};
use namespaces::{Mount, MountAttributes as A, Propagation, UserMapping};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::config::{self, Config};
use crate::{container, warn};

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
const DEFAULTS: [&str; 7] = [
    "silent",
    "defaults",
    "async",
    "loud",
    "nolazytime",
    "nomand",
    "noiversion",
];

/// What runc knows, and would be taken for an option of the file system here.
const REFUSED: [&str; 4] = ["remount", "acl", "noacl", "iversion"];

/// The options that have a meaning of their own here, for `features`.
pub(crate) fn known_options() -> Vec<String> {
    let mut known: Vec<String> = ["bind", "rbind", "tmpcopyup", "idmap", "ridmap"]
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
    /// Taken away from a whole tree.
    cleared: A,
    /// The option that made the attributes hold for a whole tree.
    recursive: Option<String>,
    not_recursive: Option<String>,
    propagation: Option<(Propagation, bool)>,
    copy_up: bool,
    /// Owners are mapped; of the whole tree.
    idmap: Option<bool>,
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
        } else if let Some(attribute) = option.strip_prefix('r').and_then(|name| find(&UNSET, name))
        {
            self.attributes -= attribute;
            self.cleared |= attribute;
            self.recursive = Some(option.to_owned());
        } else if option == "tmpcopyup" {
            self.copy_up = true;
        } else if option == "idmap" || option == "ridmap" {
            self.idmap = Some(option == "ridmap" || self.idmap == Some(true));
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
        self.cleared -= attribute;
    }

    fn finish(self, mount: Mount) -> Mount {
        let mut mount = if self.recursive.is_some() {
            mount
                .attributes_recursive(self.attributes)
                .without_recursive(self.cleared)
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
        let root = config.root.as_ref().and_then(|root| root.path.as_deref());
        let root = bundle.join(root.unwrap_or(Path::new("rootfs")));
        let root = File::open(&root)
            .with_context(|| format!("root.path: cannot open {}", root.display()))?;
        let surroundings = Surroundings {
            config,
            bundle,
            root,
        };
        let planned = config
            .mounts
            .iter()
            .enumerate()
            .map(|(index, mount)| plan(mount, &format!("mounts[{index}]"), &surroundings));
        planned.collect::<Result<_>>().map(Self)
    }

    /// The same, now that the control group is there.
    pub(crate) fn resolve(self, group: Option<&Cgroup>) -> Result<Resolved> {
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

/// What the mounts are planned among.
struct Surroundings<'a> {
    config: &'a Config,
    bundle: &'a Path,
    root: File,
}

fn plan(mount: &config::Mount, place: &str, around: &Surroundings<'_>) -> Result<Planned> {
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
        return bind(mount, place, around, &target, options).map(Planned::Mount);
    }
    if options.idmap.is_some() || !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        bail!(
            "{place}: only the owners of a bind can be mapped; remove uidMappings, gidMappings, idmap"
        );
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
        "tmpfs" if target == Path::new("/dev") => {
            if options.copy_up {
                bail!("{place}.options: tmpcopyup: /dev always has its own devices; remove it");
            }
            dev(&target, options)
        }
        "tmpfs" => Planned::Mount(tmpfs(mount, place, around, &target, options)?),
        _ if options.copy_up => bail!("{place}.options: tmpcopyup is for tmpfs; remove it"),
        _ => {
            let mut new = Mount::filesystem(kind, &target);
            if let Some(source) = &mount.source {
                new = new.source_name(source);
            }
            Planned::Mount(options.finish(new))
        }
    })
}

/// A tmpfs has the mode of the directory that it is mounted on, and with `tmpcopyup` its content.
fn tmpfs(
    mount: &config::Mount,
    place: &str,
    around: &Surroundings<'_>,
    target: &Path,
    mut options: Options,
) -> Result<Mount> {
    let cannot = || {
        format!(
            "{place}: cannot look at {} of the root filesystem",
            target.display()
        )
    };
    if !options.copy_up
        && !options.data.iter().any(|(key, _)| key == "mode")
        && let Some(mode) = mode_in(&around.root, target).with_context(cannot)?
    {
        options
            .data
            .push(("mode".to_owned(), Some(format!("{mode:o}"))));
    }
    let mut new = Mount::filesystem("tmpfs", target).copy_up(options.copy_up);
    if let Some(source) = &mount.source {
        new = new.source_name(source);
    }
    // What is read-only from the start could not be filled.
    if options.copy_up && options.attributes.contains(A::READ_ONLY) {
        options.attributes -= A::READ_ONLY;
        new = new.read_only_when_done();
    }
    Ok(options.finish(new))
}

/// The permissions of a directory of the root filesystem, if there is one.
fn mode_in(root: &File, path: &Path) -> io::Result<Option<u32>> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let links = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, relative, flags, Mode::empty(), links) {
        Ok(directory) => Ok(Some(rustix::fs::fstat(directory)?.st_mode & 0o7777)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn bind(
    mount: &config::Mount,
    place: &str,
    around: &Surroundings<'_>,
    target: &Path,
    options: Options,
) -> Result<Mount> {
    if options.copy_up {
        bail!("{place}.options: tmpcopyup is for tmpfs; remove it");
    }
    let Some(source) = &mount.source else {
        bail!("{place}.source: missing; write what to bind");
    };
    if let Some((key, _)) = options.data.first() {
        bail!("{place}.options: {key} has no meaning for a bind mount; remove it");
    }
    let source = around.bundle.join(source);
    std::fs::metadata(&source)
        .with_context(|| format!("{place}.source: cannot bind {}", source.display()))?;
    if let Some(map) = owners(mount, place, around.config, options.idmap)? {
        let cannot = || format!("{place}.uidMappings: {}", source.display());
        // Here, because a process in a user namespace of its own may not.
        let tree = namespaces::detached::bind(&source, options.bind == Some(true))?;
        let user_namespace = namespaces::user_namespace(map).with_context(cannot)?;
        namespaces::detached::idmap(&tree, &user_namespace, options.idmap == Some(true))
            .with_context(cannot)?;
        return Ok(options.finish(Mount::detached(tree, target)?));
    }
    let bind = if options.bind == Some(true) {
        Mount::bind(source, target)
    } else {
        Mount::bind_single(source, target)
    };
    Ok(options.finish(bind))
}

/// How the owners of files on a bind are mapped: as the mount says, or as the container does.
fn owners(
    mount: &config::Mount,
    place: &str,
    config: &Config,
    idmap: Option<bool>,
) -> Result<Option<UserMapping>> {
    let (uids, gids) = (&mount.uid_mappings, &mount.gid_mappings);
    let (uids, gids) = match (uids.is_empty(), gids.is_empty(), idmap) {
        (true, true, None) => return Ok(None),
        (true, true, Some(_)) => (&config.linux.uid_mappings, &config.linux.gid_mappings),
        (false, false, _) => (uids, gids),
        (true, false, _) => bail!("{place}.uidMappings: missing; gidMappings needs it"),
        (false, true, _) => bail!("{place}.gidMappings: missing; uidMappings needs it"),
    };
    if uids.is_empty() || gids.is_empty() {
        bail!(
            "{place}.options: idmap maps as the container's user namespace does, which has no map; write uidMappings and gidMappings here"
        );
    }
    Ok(Some(UserMapping::Exact {
        uids: container::id_map(uids),
        gids: container::id_map(gids),
    }))
}

impl Resolved {
    /// The control groups: on v2 the hierarchy; on v1 the container's own group of each hierarchy,
    /// in a directory of its name. Where several controllers share a hierarchy, it is there by the
    /// name of each.
    fn add_cgroup(
        &mut self,
        target: &Path,
        options: Options,
        group: Option<&Cgroup>,
    ) -> Result<()> {
        let unified = match group {
            Some(group) => group.hierarchy().layout() == Layout::Unified,
            None => Hierarchy::detect().is_ok_and(|all| all.layout() == Layout::Unified),
        };
        if unified {
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
        for directory in group.into_iter().flat_map(Cgroup::directories) {
            if !is_v1(directory)? {
                continue;
            }
            let depth = group.map_or(0, |group| group.path().components().count());
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

/// The devices that every container has are made together with the tmpfs of `/dev`.
fn dev(target: &Path, mut options: Options) -> Planned {
    let mut dev = Mount::dev(target);
    if options.attributes.contains(A::READ_ONLY) {
        options.attributes -= A::READ_ONLY;
        dev = dev.read_only_when_done();
    }
    Planned::Mount(options.finish(dev))
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
