//! Mounts, made by the child.
//!
//! Every path inside the root is resolved to a descriptor, and mounts are moved onto that: see
//! [`crate::inside`]. The rules of [`crate::execute`] hold here too.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags};

use crate::attach::{
    FdPath, Place, attach, bind, is_missing, move_onto, set_attributes, set_attributes_attached,
    set_propagation,
};
use crate::copy_up;
use crate::devices::open_device;
use crate::fallback::{Fallbacks, Taken};
use crate::inside::{Make, O_PATH, file_type, open_existing, open_inside, open_target};
use crate::new_root::read_only_root;
use crate::plan::{Attributes, CopyUp, PropagationChange, Target};
use crate::protocol::{Call, Failure, Result};
use crate::sys::{self, MountAttr};

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

pub(crate) const READ_ONLY: Attributes = Attributes {
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
