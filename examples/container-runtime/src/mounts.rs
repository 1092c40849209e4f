//! `mounts`: the mounts of a container as data.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use cgroups::{Cgroup, Hierarchy, Layout};
use namespaces::{Mount, MountAttributes as A, UserMapping};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::config::{self, Config};
use crate::mount_options::{Change, Options};
use crate::{container, warn};

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
    if options.remount {
        return remount(mount, place, &target, options).map(Planned::Mount);
    }
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
    let options = options.of_one_mount();
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
    if options.copy_up && options.top.set.contains(A::READ_ONLY) {
        options.top.set -= A::READ_ONLY;
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
        // As mount(2) has it: the file system has its options already.
        warn(&format!(
            "{place}.options: {key} has no meaning for a bind mount, ignored"
        ));
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

/// What is mounted there already, by the image's or an earlier entry, with other attributes and
/// options. What is not mentioned stays.
fn remount(
    mount: &config::Mount,
    place: &str,
    target: &Path,
    mut options: Options,
) -> Result<Mount> {
    if options.copy_up
        || options.idmap.is_some()
        || !mount.uid_mappings.is_empty()
        || !mount.gid_mappings.is_empty()
    {
        bail!(
            "{place}.options: remount: contents and owners are those of the first mount; remove tmpcopyup, idmap, uidMappings, gidMappings"
        );
    }
    if let (Some(_), Some((key, _))) = (options.bind, options.data.first()) {
        bail!("{place}.options: {key} has no meaning for a bind mount; remove it");
    }
    if options.bind.is_none() {
        let cleared = std::mem::take(&mut options.cleared).into_iter();
        options.data.extend(cleared.map(|option| (option, None)));
    }
    Ok(options.finish(Mount::mounted(target)))
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
        let attributes = options.top.set;
        let propagation = options.propagation;
        // Made read-only when the directories are in it.
        if attributes.contains(A::READ_ONLY) {
            self.read_only.push(target.to_owned());
        }
        let directories = Options {
            top: Change {
                set: attributes - A::READ_ONLY,
                ..Change::default()
            },
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
    if options.top.set.contains(A::READ_ONLY) {
        options.top.set -= A::READ_ONLY;
        dev = dev.read_only_when_done();
    }
    Planned::Mount(options.finish(dev))
}
