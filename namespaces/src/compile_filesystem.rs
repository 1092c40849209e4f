//! The part of a plan that is about mounts.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use crate::compile::c_string;
use crate::compile_fds::Fds;
use crate::mount::{RootKind, Source};
use crate::plan::{Attributes, CopyUp, Op, PropagationChange, Target};
use crate::sys::MountAttr;
use crate::{
    Barrier, Command, Error, IdMap, Mount, MountAttributes, Namespace, Propagation, Root,
    UserMapping,
};

pub(crate) fn filesystem(
    command: &Command,
    ops: &mut Vec<Op>,
    fds: &mut Fds,
    in_user: bool,
) -> Result<(), Error> {
    let joins = command.joined.contains_key(&Namespace::Mount) && command.root.is_some();
    let shared = command.root.as_ref().is_some_and(Root::is_shared);
    if !command.new.contains(&Namespace::Mount) && !joins && !shared {
        if let Some(terminal) = terminal(command)? {
            ops.push(Op::StayInRoot);
            ops.push(terminal);
        }
        return Ok(());
    }
    let receives = matches!(
        command.root_propagation,
        Propagation::Slave | Propagation::Shared
    );
    ops.push(Op::Umask(None));
    if !shared {
        ops.push(Op::Propagate {
            flag: propagation_flag(if receives {
                Propagation::Slave
            } else {
                Propagation::Private
            }),
        });
    }
    match &command.root {
        None => ops.push(Op::StayInRoot),
        Some(root) => ops.push(match &root.0 {
            RootKind::Path(path) => Op::AttachRootPath(c_string("root", path.as_os_str())?),
            RootKind::Shared(path) => Op::OpenRoot(c_string("root", path.as_os_str())?),
            RootKind::Detached(fd) => Op::AttachRootMount(fds.hold(fd.as_fd())?),
        }),
    }
    if command.root_tree_read_only {
        ops.push(Op::ReadOnlyRoot { recursive: true });
    }
    for mount in &command.mounts {
        ops.push(compile_mount(command, mount, fds, in_user)?);
        if let Source::Dev { .. } = mount.source {
            ops.push(Op::FillDev {
                target: inside("mount target", &mount.target, false)?,
                nodes: can_make_nodes(in_user),
            });
        }
    }
    for device in &command.devices {
        ops.push(Op::Device {
            target: inside("device", &device.path, true)?,
            outside: c_string("device", device.path.as_os_str())?,
            kind: device.kind,
            number: (device.major, device.minor),
            mode: device.mode,
            owner: device.owner,
            nodes: can_make_nodes(in_user),
        });
    }
    for (path, to) in &command.links {
        ops.push(Op::Link {
            target: inside("link", path, true)?,
            to: c_string("link", to.as_os_str())?,
        });
    }
    if let Some(terminal) = terminal(command)? {
        ops.push(terminal);
    }
    for mount in command
        .mounts
        .iter()
        .filter(|mount| mount.read_only_when_done)
    {
        let target = inside("mount target", &mount.target, false)?;
        ops.push(Op::ReadOnlyMount(target.path));
    }
    for path in &command.masked {
        ops.push(Op::Mask(inside("masked path", path, false)?.path));
    }
    for path in &command.read_only {
        ops.push(Op::ReadOnlyPath(
            inside("read-only path", path, false)?.path,
        ));
    }
    ops.push(Op::Pause(Barrier::Mounted));
    if let Some(directory) = &command.current_dir
        && command.create_current_dir
    {
        ops.push(Op::CreateDirectory(inside(
            "working directory",
            directory,
            true,
        )?));
    }
    if command.root_read_only {
        ops.push(Op::ReadOnlyRoot { recursive: false });
    }
    if shared {
        ops.push(Op::ChangeRoot);
        return Ok(());
    }
    if command.root.is_some() {
        ops.push(Op::PivotRoot);
    }
    if !matches!(
        command.root_propagation,
        Propagation::Private | Propagation::Slave
    ) {
        ops.push(Op::RootPropagation {
            flag: propagation_flag(command.root_propagation),
        });
    }
    Ok(())
}

fn compile_mount(
    command: &Command,
    mount: &Mount,
    fds: &mut Fds,
    in_user: bool,
) -> Result<Op, Error> {
    let mut attributes = attributes(mount);
    if let Some((idmap, recursive)) = &mount.idmap {
        const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
        let attr = if *recursive {
            &mut attributes.tree
        } else {
            &mut attributes.attr
        };
        attr.set |= MOUNT_ATTR_IDMAP;
        attr.userns_fd = fds.hold(idmap.as_fd())?.number().unsigned_abs().into();
        attributes.modern = true;
    }
    let target = inside("mount target", &mount.target, mount.create_target)?;
    let propagation = mount
        .propagation
        .map(|(propagation, recursive)| PropagationChange {
            flag: propagation_flag(propagation),
            recursive,
        });
    Ok(match &mount.source {
        Source::Filesystem {
            kind,
            options,
            name,
            or_bind,
            copy_up,
        } => {
            let has_mode = options.iter().any(|(key, _)| key == "mode");
            let mut options = options.clone();
            if kind == "devpts"
                && tty_group_is_mapped(command, in_user)
                && !options.iter().any(|(key, _)| key == "gid")
            {
                options.push(("gid".into(), Some("5".into())));
            }
            let (options, data) = compile_options(&options)?;
            Op::MountFilesystem {
                kind: c_string("file system", kind)?,
                name: c_string("mount source", name)?,
                options,
                data,
                attributes,
                or_bind: match or_bind {
                    Some(path) => Some(c_string("mount source", path.as_os_str())?),
                    None => None,
                },
                copy_up: match (copy_up, has_mode) {
                    (false, _) => CopyUp::Nothing,
                    (true, true) => CopyUp::Contents,
                    (true, false) => CopyUp::Directory,
                },
                target,
                propagation,
            }
        }
        Source::Bind { path, recursive } => Op::MountBind {
            source: c_string("mount source", path.as_os_str())?,
            recursive: *recursive,
            attributes,
            target,
            propagation,
        },
        Source::Detached(fd) => Op::MountDetached {
            fd: fds.hold(fd.as_fd())?,
            attributes,
            target,
            propagation,
        },
        Source::Mounted { options } => Op::ChangeMount {
            options: compile_options(options)?.0,
            attributes,
            target,
            propagation,
        },
        Source::Dev { options } => {
            let mut all = options.clone();
            for (key, value) in [("mode", "755"), ("size", "65536k")] {
                if !options.iter().any(|(given, _)| given == key) {
                    all.push((key.into(), Some(value.into())));
                }
            }
            let (options, data) = compile_options(&all)?;
            Op::MountFilesystem {
                kind: c"tmpfs".to_owned(),
                name: c"tmpfs".to_owned(),
                options,
                data,
                attributes,
                or_bind: None,
                copy_up: CopyUp::Nothing,
                target,
                propagation,
            }
        }
    })
}

type CompiledOptions = (Vec<(CString, Option<CString>)>, CString);

/// The options one by one as `fsconfig(2)` takes them, and together as `mount(2)` does.
fn compile_options(options: &[(OsString, Option<OsString>)]) -> Result<CompiledOptions, Error> {
    let mut data = OsString::new();
    let mut compiled = Vec::new();
    for (key, value) in options {
        if !data.is_empty() {
            data.push(",");
        }
        data.push(key);
        if let Some(value) = value {
            data.push("=");
            data.push(value);
        }
        compiled.push((
            c_string("mount option", key)?,
            match value {
                Some(value) => Some(c_string("mount option", value)?),
                None => None,
            },
        ));
    }
    Ok((compiled, c_string("mount option", &data)?))
}

/// Whether group 5 can own terminals: outside user namespaces always, inside when it is mapped.
/// Of a map that is only found out at the start, and of a joined namespace, that is not known.
fn tty_group_is_mapped(command: &Command, in_user: bool) -> bool {
    match &command.user_mapping {
        Some(UserMapping::Exact { gids, .. }) => gids.to_outside(5).is_some(),
        _ => {
            !in_user
                && IdMap::of_this_process("gid_map").is_none_or(|map| map.to_outside(5).is_some())
        }
    }
}

/// Whether the process can make device nodes: nobody can in a user namespace, and this process may
/// be in one already.
fn can_make_nodes(in_user: bool) -> bool {
    !in_user && IdMap::of_this_process("uid_map").is_none_or(|map| map == IdMap::identity())
}

fn attributes(mount: &Mount) -> Attributes {
    let (attributes, cleared) = (mount.attributes, mount.cleared);
    Attributes {
        attr: change(attributes, cleared),
        tree: change(mount.tree_attributes, mount.tree_cleared),
        classic: classic_flags(attributes),
        classic_clear: classic_flags(cleared),
        modern: false,
    }
}

fn change(set: MountAttributes, cleared: MountAttributes) -> MountAttr {
    // One value of a field, of which all bits must be cleared to set another.
    const ATIME: u64 = 0x70;
    let atime = MountAttributes::NO_ATIME | MountAttributes::STRICT_ATIME;
    let touches_atime = (set | cleared).intersects(atime);
    MountAttr {
        set: set.bits(),
        clear: (cleared - atime).bits() | if touches_atime { ATIME } else { 0 },
        ..MountAttr::default()
    }
}

/// The attributes as `mount(2)` takes them.
fn classic_flags(attributes: MountAttributes) -> u64 {
    [
        (MountAttributes::READ_ONLY, libc::MS_RDONLY),
        (MountAttributes::NO_SUID, libc::MS_NOSUID),
        (MountAttributes::NO_DEV, libc::MS_NODEV),
        (MountAttributes::NO_EXEC, libc::MS_NOEXEC),
        (MountAttributes::NO_ATIME, libc::MS_NOATIME),
        (MountAttributes::STRICT_ATIME, libc::MS_STRICTATIME),
        (MountAttributes::NO_DIR_ATIME, libc::MS_NODIRATIME),
        (MountAttributes::NO_SYMLINK_FOLLOW, 256),
    ]
    .into_iter()
    .filter(|(attribute, _)| attributes.contains(*attribute))
    .fold(0, |flags, (_, flag)| flags | flag)
}

fn terminal(command: &Command) -> Result<Option<Op>, Error> {
    let Some(size) = command.terminal else {
        return Ok(None);
    };
    Ok(Some(Op::Terminal {
        size,
        console: inside("console", Path::new("/dev/console"), command.root.is_some())?,
        uid: command.uid,
    }))
}

fn propagation_flag(propagation: Propagation) -> u64 {
    match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Shared => libc::MS_SHARED,
        Propagation::Slave => libc::MS_SLAVE,
        Propagation::Unbindable => libc::MS_UNBINDABLE,
    }
}

/// A path inside the root. `..` is taken back by what stands before it, as in a URL, so that it
/// cannot be used to step over a link.
pub(crate) fn inside(what: &'static str, path: &Path, create: bool) -> Result<Target, Error> {
    let mut parts: Vec<&OsStr> = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part),
            Component::ParentDir => {
                parts.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    let mut prefix = PathBuf::new();
    let mut components = Vec::new();
    for part in parts {
        prefix.push(part);
        components.push((c_string(what, prefix.as_os_str())?, c_string(what, part)?));
    }
    Ok(Target {
        path: components
            .last()
            .map_or_else(|| c".".to_owned(), |(path, _)| path.clone()),
        components,
        create,
    })
}
