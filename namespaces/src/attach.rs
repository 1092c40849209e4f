//! Putting mounts in place with their attributes: by the new mount API, or by `mount(2)` where the
//! kernel is older. The rules of [`crate::execute`] hold here too.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use crate::fallback::{Fallbacks, Taken};
use crate::inside::{O_PATH, open_inside};
use crate::plan::{Attributes, PropagationChange};
use crate::protocol::{Call, Failure, Result};
use crate::sys::{self, MountAttr};

/// `/proc/self/fd/N` on the stack, for the calls that take only paths.
pub(crate) struct FdPath([u8; 32]);

impl FdPath {
    pub(crate) fn new(fd: BorrowedFd<'_>) -> Self {
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

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or(c"")
    }
}

/// Whether a call of the new mount API is one that the kernel does not have, or that a seccomp
/// filter does not know.
pub(crate) fn is_missing(failure: Failure) -> bool {
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
    pub(crate) fn reopen(&self) -> Result<OwnedFd> {
        open_inside(self.root, self.path, O_PATH).map_err(Failure::of(Call::Openat2))
    }
}

/// A detached copy of the mounts at `source`.
pub(crate) fn clone_tree(source: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(source, c"", flags).map_err(Failure::of(Call::OpenTree))
}

pub(crate) fn move_onto(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
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
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, attributes: &Attributes) -> Result<bool> {
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
pub(crate) fn set_attributes_attached(
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

pub(crate) fn set_propagation(
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
pub(crate) fn attach(
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
