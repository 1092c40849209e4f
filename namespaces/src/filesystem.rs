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
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use crate::copy_up;
use crate::devices::open_device;
use crate::fallback::{Fallbacks, Taken};
use crate::plan::{Attributes, CopyUp, PropagationChange, Target};
use crate::protocol::{Call, Failure};
use crate::sys::{self, MountAttr};

pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// What is made where a target is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

pub(crate) const O_PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Resolves `path` inside `root`.
pub(crate) fn open_inside(
    root: BorrowedFd<'_>,
    path: &CStr,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
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
pub(crate) fn make_in(directory: BorrowedFd<'_>, name: &CStr, make: Make) -> Result<OwnedFd> {
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
pub(crate) fn open_proc(path: &CStr, write: bool, taken: &Taken) -> Result<OwnedFd> {
    const PROC_SUPER_MAGIC: rustix::fs::FsWord = 0x9fa0;
    let proc = if let Ok(proc) = private_proc() {
        proc
    } else {
        taken.note(Fallbacks::SHARED_PROC);
        let flags = O_PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        rustix::fs::openat(CWD, c"/proc", flags, Mode::empty())
            .map_err(Failure::of(Call::Openat))?
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
pub(crate) fn write_proc(path: &CStr, value: &[u8], taken: &Taken) -> Result<()> {
    let file = open_proc(path, true, taken)?;
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

/// Whether a call of the new mount API is one that the kernel does not have, or that a seccomp
/// filter does not know.
fn is_missing(failure: Failure) -> bool {
    matches!(
        (failure.call, failure.errno),
        (
            Call::Fsopen | Call::OpenTree | Call::MoveMount,
            Errno::NOSYS | Errno::PERM
        )
    )
}

/// Where something is mounted.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// What is there, as it was resolved.
    pub(crate) fd: BorrowedFd<'a>,
    /// From where the path leads there, and to what is mounted there later.
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) path: &'a CStr,
}

impl Place<'_> {
    /// The topmost mount: a descriptor leads below what was mounted after it was opened.
    fn reopen(&self) -> Result<OwnedFd> {
        open_inside(self.root, self.path, O_PATH).map_err(Failure::of(Call::Openat2))
    }
}

/// A detached copy of the mounts at `source`.
fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(source, c"", flags).map_err(Failure::of(Call::OpenTree))
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
    if attributes.has_tree() {
        sys::mount_setattr(mount, true, &attributes.tree)
            .map_err(Failure::of(Call::MountSetattr))?;
    }
    if attributes.attr.set == 0 && attributes.attr.clear == 0 {
        return Ok(true);
    }
    match sys::mount_setattr(mount, false, &attributes.attr) {
        Ok(()) => Ok(true),
        Err(Errno::NOSYS) if !attributes.modern => Ok(false),
        Err(errno) => Err(Failure::of(Call::MountSetattr)(errno)),
    }
}

/// Sets attributes by `mount(2)`, keeping those that the mount has: in a user namespace they may
/// be locked.
fn set_attributes_attached(
    mount: BorrowedFd<'_>,
    attributes: &Attributes,
    taken: &Taken,
) -> Result<()> {
    // The low bits of f_flags are the MS_ flags of the same name, but for relatime, which is
    // the default and for which statvfs has a bit of its own.
    const KEPT: u64 = libc::MS_RDONLY
        | libc::MS_NOSUID
        | libc::MS_NODEV
        | libc::MS_NOEXEC
        | libc::MS_NOATIME
        | libc::MS_NODIRATIME;
    taken.note(Fallbacks::CLASSIC_ATTRIBUTES);
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

fn set_propagation(
    mount: BorrowedFd<'_>,
    change: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let Some(change) = change else {
        return Ok(());
    };
    let attr = MountAttr {
        propagation: change.flag,
        ..MountAttr::default()
    };
    match sys::mount_setattr(mount, change.recursive, &attr) {
        Err(Errno::NOSYS) => {
            taken.note(Fallbacks::CLASSIC_ATTRIBUTES);
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
    taken: &Taken,
) -> Result<()> {
    let set = set_attributes(mount, attributes)?;
    move_onto(mount, target)?;
    if !set {
        set_attributes_attached(mount, attributes, taken)?;
    }
    set_propagation(mount, propagation, taken)
}

/// Binds what is at `source`, and if asked for what is mounted below it.
pub(crate) fn bind(
    source: BorrowedFd<'_>,
    recursive: bool,
    attributes: &Attributes,
    place: Place<'_>,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let modern = clone_tree(source, recursive)
        .and_then(|tree| attach(tree.as_fd(), attributes, place.fd, propagation, taken));
    match modern {
        Err(failure) if is_missing(failure) => {
            taken.note(Fallbacks::CLASSIC_BIND);
            let recursive = if recursive { libc::MS_REC } else { 0 };
            sys::mount(
                Some(FdPath::new(source).as_c_str()),
                FdPath::new(place.fd).as_c_str(),
                None,
                libc::MS_BIND | recursive,
                None,
            )
            .map_err(Failure::of(Call::Mount))?;
            let mount = place.reopen()?;
            if !set_attributes(mount.as_fd(), attributes)? {
                set_attributes_attached(mount.as_fd(), attributes, taken)?;
            }
            set_propagation(mount.as_fd(), propagation, taken)
        }
        result => result,
    }
}

pub(crate) fn open_root() -> Result<OwnedFd> {
    rustix::fs::openat(CWD, c"/", O_PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(Failure::of(Call::Openat))
}

pub(crate) fn attach_root_path(path: &CStr, taken: &Taken) -> Result<OwnedFd> {
    let directory = open_source(path, OFlags::DIRECTORY)?;
    match clone_tree(directory.as_fd(), true).and_then(|tree| attach_root_mount(tree.as_fd())) {
        Err(failure) if is_missing(failure) => {
            taken.note(Fallbacks::CLASSIC_BIND);
            sys::mount(
                Some(FdPath::new(directory.as_fd()).as_c_str()),
                c"/",
                None,
                libc::MS_BIND | libc::MS_REC,
                None,
            )
            .map_err(Failure::of(Call::Mount))?;
            // The one path from here that leads onto a mount that covers the root.
            rustix::fs::openat(CWD, c"/..", O_PATH | OFlags::DIRECTORY, Mode::empty())
                .map_err(Failure::of(Call::Openat))
        }
        result => result,
    }
}

/// Attaches the mount over `/`. Paths that begin at `/` still lead through what is below it,
/// because that is the root of this process until it pivots.
pub(crate) fn attach_root_mount(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    let old = open_root()?;
    move_onto(mount, old.as_fd())?;
    rustix::io::fcntl_dupfd_cloexec(mount, 3).map_err(Failure::of(Call::Fcntl))
}

/// A file or directory of the caller.
pub(crate) fn open_source(path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, O_PATH | flags, Mode::empty()).map_err(Failure::of(Call::Openat))
}

/// A file system to be made.
pub(crate) struct NewFilesystem<'a> {
    pub(crate) kind: &'a CStr,
    pub(crate) name: &'a CStr,
    pub(crate) options: &'a [(CString, Option<CString>)],
    pub(crate) data: &'a CStr,
    pub(crate) or_bind: Option<&'a CStr>,
    pub(crate) copy_up: CopyUp,
}

pub(crate) fn mount_new(
    root: BorrowedFd<'_>,
    new: &NewFilesystem<'_>,
    attributes: &Attributes,
    target: &Target,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let fd = open_target(root, target, Make::Directory)?;
    let place = Place {
        fd: fd.as_fd(),
        root,
        path: &target.path,
    };
    let result = match mount_modern(new, attributes, place, propagation, taken) {
        Err(failure) if is_missing(failure) => {
            taken.note(Fallbacks::CLASSIC_MOUNT);
            mount_classic(new, attributes, place, propagation, taken)
        }
        result => result,
    };
    match (result, new.or_bind) {
        (
            Err(Failure {
                errno: Errno::PERM, ..
            }),
            Some(own),
        ) => bind_instead(own, attributes, place, propagation, taken),
        (result, _) => result,
    }
}

/// A new file system that is put in place when it is as it is to be.
fn mount_modern(
    new: &NewFilesystem<'_>,
    attributes: &Attributes,
    place: Place<'_>,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let mut at_first = *attributes;
    if new.copy_up != CopyUp::Nothing {
        at_first.attr.set &= !READ_ONLY.attr.set;
    }
    let mount = make_filesystem(new, &at_first)?;
    copy_up::copy(new.copy_up, place.fd, mount.as_fd())?;
    if at_first.attr.set == attributes.attr.set {
        move_onto(mount.as_fd(), place.fd)?;
        set_propagation(mount.as_fd(), propagation, taken)
    } else {
        attach(mount.as_fd(), attributes, place.fd, propagation, taken)
    }
}

/// Mounts by `mount(2)`. Read-only is set afterwards: at once it would hold for the file system
/// itself, wherever else it is mounted.
fn mount_classic(
    new: &NewFilesystem<'_>,
    attributes: &Attributes,
    place: Place<'_>,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let data = (!new.data.is_empty()).then_some(new.data);
    let flags = attributes.classic & !libc::MS_RDONLY;
    sys::mount(
        Some(new.name),
        FdPath::new(place.fd).as_c_str(),
        Some(new.kind),
        flags,
        data,
    )
    .map_err(Failure::of(Call::Mount))?;
    let mount = place.reopen()?;
    copy_up::copy(new.copy_up, place.fd, mount.as_fd())?;
    if attributes.classic != flags {
        set_attributes_attached(mount.as_fd(), attributes, taken)?;
    }
    set_propagation(mount.as_fd(), propagation, taken)
}

/// The caller's own instance, with what is mounted in it: in a user namespace mounts cannot be
/// parted from what is below them.
fn bind_instead(
    own: &CStr,
    attributes: &Attributes,
    place: Place<'_>,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    taken.note(Fallbacks::BOUND_FILESYSTEM);
    let source = open_source(own, OFlags::empty())?;
    bind_whole(source.as_fd(), attributes, place, propagation, taken)
}

/// Binds a tree with attributes for all of it, or for the topmost mount where the kernel can do no
/// more.
fn bind_whole(
    source: BorrowedFd<'_>,
    attributes: &Attributes,
    place: Place<'_>,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let whole = Attributes {
        tree: attributes.attr,
        attr: MountAttr::default(),
        ..*attributes
    };
    match bind(source, true, &whole, place, propagation, taken) {
        Err(Failure {
            call: Call::MountSetattr,
            errno: Errno::NOSYS,
        }) => bind(source, true, attributes, place, propagation, taken),
        result => result,
    }
}

/// A new file system, mounted nowhere yet.
fn make_filesystem(new: &NewFilesystem<'_>, attributes: &Attributes) -> Result<OwnedFd> {
    let fs = rustix::mount::fsopen(new.kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(Failure::of(Call::Fsopen))?;
    rustix::mount::fsconfig_set_string(fs.as_fd(), c"source", new.name)
        .map_err(Failure::of(Call::Fsconfig))?;
    configure(fs.as_fd(), new.options)?;
    rustix::mount::fsconfig_create(fs.as_fd()).map_err(Failure::of(Call::Fsconfig))?;
    rustix::mount::fsmount(
        fs.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        // Every attribute that the kernel has so far is within 32 bits.
        MountAttrFlags::from_bits_retain(u32::try_from(attributes.attr.set).unwrap_or(0)),
    )
    .map_err(Failure::of(Call::Fsmount))
}

fn configure(fs: BorrowedFd<'_>, options: &[(CString, Option<CString>)]) -> Result<()> {
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(fs, key.as_c_str(), value.as_c_str()),
            None => rustix::mount::fsconfig_set_flag(fs, key.as_c_str()),
        }
        .map_err(Failure::of(Call::Fsconfig))?;
    }
    Ok(())
}

/// Changes what is mounted at the target already.
pub(crate) fn change_mount(
    root: BorrowedFd<'_>,
    options: &[(CString, Option<CString>)],
    attributes: &Attributes,
    target: &Target,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let mount = open_target(root, target, Make::Directory)?;
    if !options.is_empty() {
        let flags = FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH;
        let fs =
            rustix::mount::fspick(mount.as_fd(), c"", flags).map_err(Failure::of(Call::Fspick))?;
        configure(fs.as_fd(), options)?;
        rustix::mount::fsconfig_reconfigure(fs.as_fd()).map_err(Failure::of(Call::Fsconfig))?;
    }
    if !set_attributes(mount.as_fd(), attributes)? {
        set_attributes_attached(mount.as_fd(), attributes, taken)?;
    }
    set_propagation(mount.as_fd(), propagation, taken)
}

pub(crate) fn mount_bind(
    root: BorrowedFd<'_>,
    (source, recursive): (&CStr, bool),
    attributes: &Attributes,
    target: &Target,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let source = open_source(source, OFlags::empty())?;
    let fd = open_target(root, target, make_for(source.as_fd())?)?;
    let place = Place {
        fd: fd.as_fd(),
        root,
        path: &target.path,
    };
    bind(
        source.as_fd(),
        recursive,
        attributes,
        place,
        propagation,
        taken,
    )
}

pub(crate) fn mount_detached(
    root: BorrowedFd<'_>,
    mount: BorrowedFd<'_>,
    attributes: &Attributes,
    target: &Target,
    propagation: Option<PropagationChange>,
    taken: &Taken,
) -> Result<()> {
    let target = open_target(root, target, make_for(mount)?)?;
    attach(mount, attributes, target.as_fd(), propagation, taken)
}

/// What can be covered by it.
fn make_for(mount: BorrowedFd<'_>) -> Result<Make> {
    Ok(match file_type(mount)? {
        FileType::Directory => Make::Directory,
        _ => Make::File,
    })
}

/// Makes a link that nothing is in the way of.
pub(crate) fn make_link(root: BorrowedFd<'_>, target: &Target, to: &CStr) -> Result<()> {
    let Some((_, name)) = target.components.last() else {
        return Ok(());
    };
    let parent = open_parent(root, target)?;
    match rustix::fs::symlinkat(to, &parent, name.as_c_str()) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(Failure::of(Call::Symlinkat)(errno)),
    }
}

/// The directory of a target, made if it is missing.
pub(crate) fn open_parent(root: BorrowedFd<'_>, target: &Target) -> Result<OwnedFd> {
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

pub(crate) fn mask(root: BorrowedFd<'_>, path: &CStr, taken: &Taken) -> Result<()> {
    let Some(target) = open_existing(root, path)? else {
        return Ok(());
    };
    let place = Place {
        fd: target.as_fd(),
        root,
        path,
    };
    if file_type(target.as_fd())? != FileType::Directory {
        let null = open_device(
            c"/dev/null",
            FileType::CharacterDevice,
            rustix::fs::makedev(1, 3),
        )?;
        let attributes = Attributes::default();
        return bind(null.as_fd(), false, &attributes, place, None, taken);
    }
    let new = NewFilesystem {
        kind: c"tmpfs",
        name: c"tmpfs",
        options: &[],
        data: c"",
        or_bind: None,
        copy_up: CopyUp::Nothing,
    };
    match mount_modern(&new, &READ_ONLY, place, None, taken) {
        Err(failure) if is_missing(failure) => {
            taken.note(Fallbacks::CLASSIC_MOUNT);
            mount_classic(&new, &READ_ONLY, place, None, taken)
        }
        result => result,
    }
}

pub(crate) fn read_only_path(root: BorrowedFd<'_>, path: &CStr, taken: &Taken) -> Result<()> {
    let Some(target) = open_existing(root, path)? else {
        return Ok(());
    };
    let place = Place {
        fd: target.as_fd(),
        root,
        path,
    };
    bind_whole(target.as_fd(), &READ_ONLY, place, None, taken)
}

/// Makes a mount that is there read-only.
pub(crate) fn read_only_mount(root: BorrowedFd<'_>, path: &CStr, taken: &Taken) -> Result<()> {
    let mount = open_inside(root, path, O_PATH).map_err(Failure::of(Call::Openat2))?;
    read_only_root(mount.as_fd(), false, taken)
}

const READ_ONLY: Attributes = Attributes {
    attr: MountAttr {
        set: 1,
        clear: 0,
        propagation: 0,
        userns_fd: 0,
    },
    tree: MountAttr {
        set: 0,
        clear: 0,
        propagation: 0,
        userns_fd: 0,
    },
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

pub(crate) fn read_only_root(root: BorrowedFd<'_>, recursive: bool, taken: &Taken) -> Result<()> {
    let mut attributes = READ_ONLY;
    if recursive {
        std::mem::swap(&mut attributes.attr, &mut attributes.tree);
    }
    if set_attributes(root, &attributes)? {
        Ok(())
    } else {
        set_attributes_attached(root, &attributes, taken)
    }
}

/// Makes `root` the root of this process alone.
pub(crate) fn change_root(root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(root).map_err(Failure::of(Call::Fchdir))?;
    rustix::process::chroot(c".").map_err(Failure::of(Call::Chroot))
}

/// Makes `root` the root of this process and lets go of the old one.
pub(crate) fn pivot_root(root: BorrowedFd<'_>) -> Result<()> {
    rustix::process::fchdir(root).map_err(Failure::of(Call::Fchdir))?;
    // The old root is stacked on the new one and taken off again; no directory is needed for it.
    rustix::process::pivot_root(c".", c".").map_err(Failure::of(Call::PivotRoot))?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).map_err(Failure::of(Call::Umount))?;
    rustix::process::chdir(c"/").map_err(Failure::of(Call::Chdir))
}
