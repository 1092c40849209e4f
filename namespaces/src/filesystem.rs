//! Mounts, made by the child.
//!
//! Every path inside the root is resolved to an `O_PATH` descriptor by `openat2` with
//! `RESOLVE_IN_ROOT`, and mounts are moved onto that descriptor: what the path means cannot change
//! in between. The rules of [`crate::execute`] hold here too.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::plan::{Attributes, PropagationChange, Target};
use crate::protocol::{Call, Failure};
use crate::sys::{self, MountAttr};

type Result<T> = std::result::Result<T, Failure>;

/// What is made where a target is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

const O_PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Resolves `path` inside `root`.
fn open_inside(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // EAGAIN: something was renamed or mounted meanwhile, and the kernel cannot rule out an
    // escape. Somebody who does that on purpose wins nothing but an error.
    for _ in 0..128 {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

/// Resolves a target inside `root`; makes what is missing, if the target says so.
pub(crate) fn open_target(root: BorrowedFd<'_>, target: &Target, make: Make) -> Result<OwnedFd> {
    match open_inside(root, &target.path, O_PATH) {
        Ok(fd) => return Ok(fd),
        Err(Errno::NOENT) if target.create => {}
        Err(errno) => return Err(Failure::of(Call::Openat2)(errno)),
    }
    let mut directory = open_inside(root, c".", O_PATH).map_err(Failure::of(Call::Openat2))?;
    let last = target.components.len().saturating_sub(1);
    for (at, (prefix, name)) in target.components.iter().enumerate() {
        directory = match open_inside(root, prefix, O_PATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => {
                let make = if at == last { make } else { Make::Directory };
                make_in(directory.as_fd(), name, make)?
            }
            Err(errno) => return Err(Failure::of(Call::Openat2)(errno)),
        };
    }
    Ok(directory)
}

/// Makes `name`, a single component, in `directory`.
fn make_in(directory: BorrowedFd<'_>, name: &CStr, make: Make) -> Result<OwnedFd> {
    match make {
        Make::Directory => {
            match rustix::fs::mkdirat(directory, name, Mode::from_bits_retain(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(Failure::of(Call::Mkdirat)(errno)),
            }
            rustix::fs::openat(
                directory,
                name,
                O_PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY,
                Mode::empty(),
            )
            .map_err(Failure::of(Call::Openat))
        }
        Make::File => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(directory, name, flags, Mode::from_bits_retain(0o644))
                .map_err(Failure::of(Call::Openat))
        }
    }
}

/// `/proc/self/fd/N` on the stack, for the calls that take only paths.
struct FdPath([u8; 32]);

impl FdPath {
    fn new(fd: BorrowedFd<'_>) -> Self {
        let mut path = [0_u8; 32];
        let mut number = fd.as_raw_fd().unsigned_abs();
        let mut digits = [0_u8; 10];
        let mut count = 0;
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
            count += 1;
            if number == 0 {
                break;
            }
        }
        let text = b"/proc/self/fd/"
            .iter()
            .chain(digits.iter().skip(10 - count));
        for (to, from) in path.iter_mut().zip(text) {
            *to = *from;
        }
        Self(path)
    }

    fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// Opens a file of a `/proc` that nobody else can reach, so that nothing can be mounted over it
/// (CVE-2019-16884, CVE-2025-52881); where such a one is refused, of the one at `/proc`, having
/// made sure that it is one.
pub(crate) fn open_proc(path: &CStr, write: bool) -> Result<OwnedFd> {
    const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;
    let proc = match private_proc() {
        Ok(proc) => proc,
        Err(_) => rustix::fs::openat(
            CWD,
            c"/proc",
            O_PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW,
            Mode::empty(),
        )
        .map_err(Failure::of(Call::Openat))?,
    };
    let fs = rustix::fs::fstatfs(&proc).map_err(Failure::of(Call::Fstat))?;
    if fs.f_type != PROC_SUPER_MAGIC {
        return Err(Failure {
            call: Call::Openat,
            errno: Errno::NODEV,
        });
    }
    let flags = if write {
        OFlags::WRONLY
    } else {
        OFlags::RDONLY
    };
    // No step onto another mount: it would be one that somebody put there. The last component
    // may be a link of the kernel's, such as ns/time_for_children.
    rustix::fs::openat2(
        &proc,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        if write {
            ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS
        } else {
            ResolveFlags::empty()
        },
    )
    .map_err(Failure::of(Call::Openat2))
}

fn private_proc() -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen(c"proc", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failure::of(Call::Fsopen))?;
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(Failure::of(Call::Fsconfig))?;
    rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )
    .map_err(Failure::of(Call::Fsmount))
}

/// Writes `value` to a file of `/proc` in one call.
pub(crate) fn write_proc(path: &CStr, value: &[u8]) -> Result<()> {
    let file = open_proc(path, true)?;
    match rustix::io::write(&file, value) {
        Ok(written) if written == value.len() => Ok(()),
        Ok(_) => Err(Failure::of(Call::Write)(Errno::IO)),
        Err(errno) => Err(Failure::of(Call::Write)(errno)),
    }
}

fn file_type(fd: BorrowedFd<'_>) -> Result<FileType> {
    rustix::fs::fstat(fd)
        .map(|stat| FileType::from_raw_mode(stat.st_mode))
        .map_err(Failure::of(Call::Fstat))
}

/// A detached copy of the mounts at `path`, seen from `at`.
fn clone_tree(at: BorrowedFd<'_>, path: &CStr, recursive: bool, nofollow: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if nofollow {
        flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    }
    rustix::mount::open_tree(at, path, flags).map_err(Failure::of(Call::OpenTree))
}

fn move_onto(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    rustix::mount::move_mount(
        mount,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
    .map_err(Failure::of(Call::MoveMount))
}

/// Sets attributes on a mount that is attached or not. `false`: the kernel is too old to do so
/// before the mount is attached; [`set_attributes_attached`] can.
fn set_attributes(mount: BorrowedFd<'_>, attributes: &Attributes) -> Result<bool> {
    if attributes.attr.set == 0 && attributes.attr.clear == 0 {
        return Ok(true);
    }
    match sys::mount_setattr(mount, attributes.recursive, &attributes.attr) {
        Ok(()) => Ok(true),
        Err(Errno::NOSYS) if !attributes.recursive && !attributes.modern => Ok(false),
        Err(errno) => Err(Failure::of(Call::MountSetattr)(errno)),
    }
}

/// Sets attributes by `mount(2)`, keeping those that the mount has: in a user namespace they may
/// be locked.
fn set_attributes_attached(mount: BorrowedFd<'_>, attributes: &Attributes) -> Result<()> {
    // The low bits of f_flags are the MS_ flags of the same name, but for relatime, which is
    // the default and for which statvfs has a bit of its own.
    const KEPT: u64 = libc::MS_RDONLY
        | libc::MS_NOSUID
        | libc::MS_NODEV
        | libc::MS_NOEXEC
        | libc::MS_NOATIME
        | libc::MS_NODIRATIME;
    let fs = rustix::fs::fstatfs(mount).map_err(Failure::of(Call::Fstat))?;
    let kept = fs.f_flags.cast_unsigned() & KEPT & !attributes.classic_clear;
    sys::mount(
        None,
        FdPath::new(mount).as_c_str(),
        None,
        libc::MS_REMOUNT | libc::MS_BIND | kept | attributes.classic,
        None,
    )
    .map_err(Failure::of(Call::Mount))
}

fn set_propagation(mount: BorrowedFd<'_>, change: Option<PropagationChange>) -> Result<()> {
    let Some(change) = change else {
        return Ok(());
    };
    let attr = MountAttr {
        propagation: change.flag,
        ..MountAttr::default()
    };
    match sys::mount_setattr(mount, change.recursive, &attr) {
        Err(Errno::NOSYS) => {
            let recursive = if change.recursive { libc::MS_REC } else { 0 };
            sys::mount(
                None,
                FdPath::new(mount).as_c_str(),
                None,
                change.flag | recursive,
                None,
            )
            .map_err(Failure::of(Call::Mount))
        }
        result => result.map_err(Failure::of(Call::MountSetattr)),
    }
}

/// Attaches a detached mount with its attributes.
fn attach(
    mount: BorrowedFd<'_>,
    attributes: &Attributes,
    target: BorrowedFd<'_>,
    propagation: Option<PropagationChange>,
) -> Result<()> {
    let set = set_attributes(mount, attributes)?;
    move_onto(mount, target)?;
    if !set {
        set_attributes_attached(mount, attributes)?;
    }
    set_propagation(mount, propagation)
}

pub(crate) fn open_root() -> Result<OwnedFd> {
    rustix::fs::openat(CWD, c"/", O_PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(Failure::of(Call::Openat))
}

pub(crate) fn attach_root_path(path: &CStr) -> Result<OwnedFd> {
    let directory = rustix::fs::openat(CWD, path, O_PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(Failure::of(Call::Openat))?;
    let tree = clone_tree(directory.as_fd(), c"", true, false)?;
    attach_root_mount(tree.as_fd())
}

/// Attaches the mount over `/`. Paths that begin at `/` still lead through what is below it,
/// because that is the root of this process until it pivots.
pub(crate) fn attach_root_mount(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let old = open_root()?;
    move_onto(mount, old.as_fd())?;
    rustix::io::fcntl_dupfd_cloexec(mount, 3).map_err(Failure::of(Call::Fcntl))
}

/// A file system to be made.
pub(crate) struct NewFilesystem<'a> {
    pub(crate) kind: &'a CStr,
    pub(crate) name: &'a CStr,
    pub(crate) options: &'a [(CString, Option<CString>)],
    pub(crate) data: &'a CStr,
    pub(crate) or_bind: Option<&'a CStr>,
}

pub(crate) fn mount_new(
    root: BorrowedFd<'_>,
    new: &NewFilesystem<'_>,
    attributes: &Attributes,
    target: &Target,
    propagation: Option<PropagationChange>,
) -> Result<()> {
    let path = target.path.as_c_str();
    let target = open_target(root, target, Make::Directory)?;
    match make_filesystem(new, attributes) {
        Ok(mount) => {
            move_onto(mount.as_fd(), target.as_fd())?;
            set_propagation(mount.as_fd(), propagation)
        }
        // A kernel or a seccomp filter without the new mount API.
        Err(Failure {
            call: Call::Fsopen,
            errno: Errno::NOSYS | Errno::PERM,
        }) => match mount_classic(new, attributes, target.as_fd(), (root, path)) {
            Err(failure) if failure.errno == Errno::PERM && new.or_bind.is_some() => {
                bind_instead(new, attributes, target.as_fd(), propagation)
            }
            result => result,
        },
        Err(Failure {
            errno: Errno::PERM, ..
        }) if new.or_bind.is_some() => bind_instead(new, attributes, target.as_fd(), propagation),
        Err(failure) => Err(failure),
    }
}

/// Mounts by `mount(2)`. Read-only is set afterwards: at once it would hold for the file system
/// itself, wherever else it is mounted.
fn mount_classic(
    new: &NewFilesystem<'_>,
    attributes: &Attributes,
    target: BorrowedFd<'_>,
    (root, path): (BorrowedFd<'_>, &CStr),
) -> Result<()> {
    let data = (!new.data.is_empty()).then_some(new.data);
    let flags = attributes.classic & !libc::MS_RDONLY;
    sys::mount(
        Some(new.name),
        FdPath::new(target).as_c_str(),
        Some(new.kind),
        flags,
        data,
    )
    .map_err(Failure::of(Call::Mount))?;
    if attributes.classic == flags {
        return Ok(());
    }
    // The descriptor leads below the new mount; only the path leads onto it.
    let mount = open_inside(root, path, O_PATH).map_err(Failure::of(Call::Openat2))?;
    set_attributes_attached(mount.as_fd(), attributes)
}

/// The caller's own instance, with what is mounted in it: in a user namespace mounts cannot be
/// parted from what is below them.
fn bind_instead(
    new: &NewFilesystem<'_>,
    attributes: &Attributes,
    target: BorrowedFd<'_>,
    propagation: Option<PropagationChange>,
) -> Result<()> {
    let tree = clone_tree(CWD, new.or_bind.unwrap_or(c""), true, false)?;
    let recursive = Attributes {
        recursive: true,
        ..*attributes
    };
    match attach(tree.as_fd(), &recursive, target, propagation) {
        Err(Failure {
            call: Call::MountSetattr,
            errno: Errno::NOSYS,
        }) => attach(tree.as_fd(), attributes, target, propagation),
        result => result,
    }
}

/// A new file system, mounted nowhere yet.
fn make_filesystem(new: &NewFilesystem<'_>, attributes: &Attributes) -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen(new.kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failure::of(Call::Fsopen))?;
    rustix::mount::fsconfig_set_string(fs.as_fd(), c"source", new.name)
        .map_err(Failure::of(Call::Fsconfig))?;
    for (key, value) in new.options {
        match value {
            Some(value) => {
                rustix::mount::fsconfig_set_string(fs.as_fd(), key.as_c_str(), value.as_c_str())
            }
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), key.as_c_str()),
        }
        .map_err(Failure::of(Call::Fsconfig))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(Failure::of(Call::Fsconfig))?;
    rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        // Every attribute that the kernel has so far is within 32 bits.
        MountAttrFlags::from_bits_retain(u32::try_from(attributes.attr.set).unwrap_or(0)),
    )
    .map_err(Failure::of(Call::Fsmount))
}

pub(crate) fn mount_bind(
    root: BorrowedFd<'_>,
    source: &CStr,
    recursive: bool,
    attributes: &Attributes,
    target: &Target,
    propagation: Option<PropagationChange>,
) -> Result<()> {
    let tree = clone_tree(CWD, source, recursive, false)?;
    mount_detached(root, tree.as_fd(), attributes, target, propagation)
}

pub(crate) fn mount_detached(
    root: BorrowedFd<'_>,
    mount: BorrowedFd<'_>,
    attributes: &Attributes,
    target: &Target,
    propagation: Option<PropagationChange>,
) -> Result<()> {
    let make = match file_type(mount)? {
        FileType::Directory => Make::Directory,
        _ => Make::File,
    };
    let target = open_target(root, target, make)?;
    attach(mount, attributes, target.as_fd(), propagation)
}

/// The devices of a minimal `/dev`: name, path outside, major and minor number.
const DEVICES: [(&CStr, &CStr, u32, u32); 6] = [
    (c"null", c"/dev/null", 1, 3),
    (c"zero", c"/dev/zero", 1, 5),
    (c"full", c"/dev/full", 1, 7),
    (c"random", c"/dev/random", 1, 8),
    (c"urandom", c"/dev/urandom", 1, 9),
    (c"tty", c"/dev/tty", 5, 0),
];

const LINKS: [(&CStr, &CStr); 5] = [
    (c"/proc/self/fd", c"fd"),
    (c"/proc/self/fd/0", c"stdin"),
    (c"/proc/self/fd/1", c"stdout"),
    (c"/proc/self/fd/2", c"stderr"),
    (c"pts/ptmx", c"ptmx"),
];

/// Makes the devices in the file system that was mounted on `target` just before: the path leads
/// to it, and no longer to what was there.
pub(crate) fn fill_dev(root: BorrowedFd<'_>, target: &Target, nodes: bool) -> Result<()> {
    let dev = open_inside(root, &target.path, O_PATH | OFlags::DIRECTORY)
        .map_err(Failure::of(Call::Openat2))?;
    for (name, outside, major, minor) in DEVICES {
        make_device(dev.as_fd(), name, outside, (major, minor), nodes)?;
    }
    for (to, name) in LINKS {
        rustix::fs::symlinkat(to, &dev, name).map_err(Failure::of(Call::Symlinkat))?;
    }
    Ok(())
}

fn make_device(
    dev: BorrowedFd<'_>,
    name: &CStr,
    outside: &CStr,
    (major, minor): (u32, u32),
    node: bool,
) -> Result<()> {
    let number = rustix::fs::makedev(major, minor);
    if node {
        let mode = Mode::from_bits_retain(0o666);
        match rustix::fs::mknodat(dev, name, FileType::CharacterDevice, mode, number) {
            Ok(()) => return Ok(()),
            // A device cgroup or an outer user namespace.
            Err(Errno::PERM) => {}
            Err(errno) => return Err(Failure::of(Call::Mknodat)(errno)),
        }
    }
    let target = make_in(dev, name, Make::File)?;
    let tree = open_device(outside, FileType::CharacterDevice, number)?;
    move_onto(tree.as_fd(), target.as_fd())
}

/// A node that the caller asks for.
pub(crate) struct Node<'a> {
    pub(crate) outside: &'a CStr,
    pub(crate) kind: FileType,
    pub(crate) number: (u32, u32),
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) nodes: bool,
}

pub(crate) fn make_node(root: BorrowedFd<'_>, target: &Target, node: &Node<'_>) -> Result<()> {
    let number = rustix::fs::makedev(node.number.0, node.number.1);
    let (_, name) = target
        .components
        .last()
        .ok_or(Failure::of(Call::Mknodat)(Errno::ISDIR))?;
    let parent = open_parent(root, target)?;
    if node.nodes || node.kind == FileType::Fifo {
        let mode = Mode::from_bits_retain(node.mode);
        match rustix::fs::mknodat(&parent, name.as_c_str(), node.kind, mode, number) {
            Ok(()) => return set_owner(parent.as_fd(), name, node.owner),
            Err(Errno::EXIST) => {
                let found = rustix::fs::statat(
                    &parent,
                    name.as_c_str(),
                    rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
                )
                .map_err(Failure::of(Call::Fstat))?;
                let same = FileType::from_raw_mode(found.st_mode) == node.kind
                    && (node.kind == FileType::Fifo || found.st_rdev == number);
                return if same {
                    Ok(())
                } else {
                    Err(Failure::of(Call::Mknodat)(Errno::EXIST))
                };
            }
            Err(Errno::PERM) if node.kind != FileType::Fifo => {}
            Err(errno) => return Err(Failure::of(Call::Mknodat)(errno)),
        }
    }
    let tree = open_device(node.outside, node.kind, number)?;
    let target = open_target(root, target, Make::File)?;
    move_onto(tree.as_fd(), target.as_fd())
}

fn set_owner(parent: BorrowedFd<'_>, name: &CStr, owner: Option<(u32, u32)>) -> Result<()> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    rustix::fs::chownat(
        parent,
        name,
        Some(rustix::fs::Uid::from_raw(uid)),
        Some(rustix::fs::Gid::from_raw(gid)),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    )
    .map_err(Failure::of(Call::Chown))
}

/// The directory of a target, made if it is missing.
fn open_parent(root: BorrowedFd<'_>, target: &Target) -> Result<OwnedFd> {
    let mut directory = open_inside(root, c".", O_PATH).map_err(Failure::of(Call::Openat2))?;
    let parents = target.components.len().saturating_sub(1);
    for (prefix, name) in target.components.iter().take(parents) {
        directory = match open_inside(root, prefix, O_PATH | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => make_in(directory.as_fd(), name, Make::Directory)?,
            Err(errno) => return Err(Failure::of(Call::Openat2)(errno)),
        };
    }
    Ok(directory)
}

/// Makes a terminal in the devpts of the root; binds its slave on `console`. Master and slave.
pub(crate) fn make_terminal(
    root: BorrowedFd<'_>,
    console: &Target,
    (rows, columns): (u16, u16),
    uid: Option<u32>,
) -> Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::OpenptFlags;
    const DEVPTS_SUPER_MAGIC: rustix::fs::FsWord = 0x1cd1;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = open_inside(root, c"dev/pts/ptmx", flags).map_err(Failure::of(Call::Openat2))?;
    let fs = rustix::fs::fstatfs(&master).map_err(Failure::of(Call::Fstat))?;
    if fs.f_type != DEVPTS_SUPER_MAGIC {
        return Err(Failure {
            call: Call::Openat2,
            errno: Errno::NODEV,
        });
    }
    rustix::pty::unlockpt(&master).map_err(Failure::of(Call::Ioctl))?;
    // The other end of this very terminal, whatever is at its path (CVE-2025-52565).
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .map_err(Failure::of(Call::Ioctl))?;
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&slave, size).map_err(Failure::of(Call::Ioctl))?;
    if let Some(uid) = uid {
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid)), None)
            .map_err(Failure::of(Call::Chown))?;
    }
    if console.create {
        let target = open_target(root, console, Make::File)?;
        let tree = clone_tree(slave.as_fd(), c"", false, false)?;
        move_onto(tree.as_fd(), target.as_fd())?;
    }
    Ok((master, slave))
}

/// A detached bind of a device of the caller, having made sure that it is that device
/// (CVE-2025-31133).
fn open_device(path: &CStr, kind: FileType, number: u64) -> Result<OwnedFd> {
    let tree = clone_tree(CWD, path, false, true)?;
    let stat = rustix::fs::fstat(&tree).map_err(Failure::of(Call::Fstat))?;
    if FileType::from_raw_mode(stat.st_mode) == kind && stat.st_rdev == number {
        Ok(tree)
    } else {
        Err(Failure {
            call: Call::OpenTree,
            errno: Errno::NODEV,
        })
    }
}

pub(crate) fn mask(root: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    let Some(target) = open_existing(root, path)? else {
        return Ok(());
    };
    if file_type(target.as_fd())? != FileType::Directory {
        let null = open_device(
            c"/dev/null",
            FileType::CharacterDevice,
            rustix::fs::makedev(1, 3),
        )?;
        return move_onto(null.as_fd(), target.as_fd());
    }
    let new = NewFilesystem {
        kind: c"tmpfs",
        name: c"tmpfs",
        options: &[],
        data: c"",
        or_bind: None,
    };
    match make_filesystem(&new, &READ_ONLY) {
        Ok(mount) => move_onto(mount.as_fd(), target.as_fd()),
        Err(Failure {
            call: Call::Fsopen,
            errno: Errno::NOSYS | Errno::PERM,
        }) => mount_classic(&new, &READ_ONLY, target.as_fd(), (root, path)),
        Err(failure) => Err(failure),
    }
}

pub(crate) fn read_only_path(root: BorrowedFd<'_>, path: &CStr) -> Result<()> {
    let Some(target) = open_existing(root, path)? else {
        return Ok(());
    };
    let tree = clone_tree(target.as_fd(), c"", true, false)?;
    let mut attributes = READ_ONLY;
    attributes.recursive = true;
    match attach(tree.as_fd(), &attributes, target.as_fd(), None) {
        Err(Failure {
            call: Call::MountSetattr,
            errno: Errno::NOSYS,
        }) => attach(tree.as_fd(), &READ_ONLY, target.as_fd(), None),
        result => result,
    }
}

const READ_ONLY: Attributes = Attributes {
    attr: MountAttr {
        set: 1,
        clear: 0,
        propagation: 0,
        userns_fd: 0,
    },
    recursive: false,
    classic: libc::MS_RDONLY,
    classic_clear: 0,
    modern: false,
};

fn open_existing(root: BorrowedFd<'_>, path: &CStr) -> Result<Option<OwnedFd>> {
    match open_inside(root, path, O_PATH) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Failure::of(Call::Openat2)(errno)),
    }
}

pub(crate) fn read_only_root(root: BorrowedFd<'_>, recursive: bool) -> Result<()> {
    let attributes = Attributes {
        recursive,
        ..READ_ONLY
    };
    if set_attributes(root, &attributes)? {
        Ok(())
    } else {
        set_attributes_attached(root, &attributes)
    }
}

/// Makes `root` the root of this process and lets go of the old one.
pub(crate) fn pivot_root(root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(root).map_err(Failure::of(Call::Fchdir))?;
    // The old root is stacked on the new one and taken off again; no directory is needed for it.
    rustix::process::pivot_root(c".", c".").map_err(Failure::of(Call::PivotRoot))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(Failure::of(Call::Umount))?;
    rustix::process::chdir(c"/").map_err(Failure::of(Call::Chdir))
}
