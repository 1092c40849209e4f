//! Walking a tree of groups.

use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{DirEntry, FileType, Mode, OFlags, openat};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

/// The names of the groups directly below `dir`.
pub(crate) fn children(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    entries(dir)?
        .map(|entry| Ok(entry?.file_name().to_owned()))
        .collect()
}

/// Whether there are groups directly below `dir` other than that with the inode `child`.
pub(crate) fn has_children_beside(dir: BorrowedFd<'_>, child: u64) -> Result<bool, Errno> {
    for entry in entries(dir)? {
        if entry?.ino() != child {
            return Ok(true);
        }
    }
    Ok(false)
}

fn entries(dir: BorrowedFd<'_>) -> Result<impl Iterator<Item = Result<DirEntry, Errno>>, Errno> {
    let is_group = |entry: &DirEntry| {
        entry.file_type() == FileType::Directory && ![c".", c".."].contains(&entry.file_name())
    };
    let all = rustix::fs::Dir::read_from(dir)?;
    Ok(all.filter(move |entry| entry.as_ref().map_or(true, is_group)))
}

pub(crate) fn to_path(name: CString) -> PathBuf {
    PathBuf::from(OsString::from_vec(name.into_bytes()))
}

/// Visits every group below `top`, children before parents, with the parent's directory, the
/// name in it, and the group's own directory. Groups that vanish meanwhile are passed over.
///
/// Whoever owns a subtree may nest it as deep as they like, so this neither recurses nor holds a
/// descriptor for each level.
pub(crate) fn post_order<E: From<Errno>>(
    top: BorrowedFd<'_>,
    mut visit: impl FnMut(BorrowedFd<'_>, &CStr, BorrowedFd<'_>) -> Result<(), E>,
) -> Result<(), E> {
    struct Level {
        name: CString,
        children: Vec<CString>,
    }
    let mut levels: Vec<Level> = Vec::new();
    let mut here = openat(top, c".", DIRECTORY, Mode::empty()).map_err(E::from)?;
    let mut pending = children(here.as_fd()).map_err(E::from)?;
    loop {
        if let Some(name) = pending.pop() {
            let below = match enter(here.as_fd(), &name) {
                Err(Errno::NOENT | Errno::NODEV) => continue,
                other => other.map_err(E::from)?,
            };
            let (fd, grandchildren) = below;
            here = fd;
            levels.push(Level {
                name,
                children: std::mem::replace(&mut pending, grandchildren),
            });
            continue;
        }
        let Some(level) = levels.pop() else {
            return Ok(());
        };
        let parent = openat(&here, c"..", DIRECTORY, Mode::empty()).map_err(E::from)?;
        visit(parent.as_fd(), &level.name, here.as_fd())?;
        here = parent;
        pending = level.children;
    }
}

fn enter(parent: BorrowedFd<'_>, name: &CStr) -> Result<(OwnedFd, Vec<CString>), Errno> {
    let fd = openat(parent, name, DIRECTORY, Mode::empty())?;
    let children = children(fd.as_fd())?;
    Ok((fd, children))
}
