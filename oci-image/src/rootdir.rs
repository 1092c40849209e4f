//! Walking below a directory that an image fills: everything relative to fds, nothing ever outside.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, mkdirat, openat, openat2,
    readlinkat, statat, unlinkat,
};
use rustix::io::{Errno, Result};

/// How many links are followed at most, as in the kernel.
const MAX_LINKS: usize = 40;

/// `openat2` that takes `root` for `/`: absolute links and `..` stay in it. Needs Linux 5.6.
pub(crate) fn openat2_in_root(
    root: BorrowedFd<'_>,
    path: impl rustix::path::Arg + Copy,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    // The kernel gives up with EAGAIN when something is renamed at the same time.
    for _ in 0..128 {
        match openat2(root, path, flags, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

const DIRECTORY: OFlags = OFlags::PATH
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

/// Opens the directory `path`, which has no empty, `.` or `..` parts, following links within the root.
pub(crate) fn open_directory(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd> {
    if path.is_empty() {
        return openat(root, ".", DIRECTORY, Mode::empty());
    }
    openat2_in_root(
        root,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::empty(),
    )
}

/// Like [`open_directory`], where at most `most` directories are above the one that is found. Links may lead deeper than
/// any name says, and so deep that nobody can remove it any more.
pub(crate) fn open_directory_within(
    root: BorrowedFd<'_>,
    path: &[u8],
    most: u64,
) -> Result<OwnedFd> {
    if path.is_empty() {
        return open_directory(root, path);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat2_in_root(root, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS) {
        Err(Errno::LOOP) => {}
        // As deep as its name.
        result => return result,
    }
    let fd = open_directory(root, path)?;
    let depth = |fd: BorrowedFd<'_>| -> Result<usize> {
        let path = readlinkat(rustix::fs::CWD, proc_path(fd), Vec::new())?;
        Ok(parts(path.as_bytes()).count())
    };
    let deeper = depth(fd.as_fd())?.saturating_sub(depth(root)?);
    if deeper as u64 > most {
        return Err(Errno::NAMETOOLONG);
    }
    Ok(fd)
}

/// Like [`open_directory`], but makes what is missing: `made` is told each directory that was made, with the path
/// from the root to it, all links resolved.
pub(crate) fn make_directories(
    root: BorrowedFd<'_>,
    path: &[u8],
    mut made: impl FnMut(BorrowedFd<'_>, &[u8]) -> Result<()>,
) -> Result<OwnedFd> {
    // The directories from the root down to where we are, with their names.
    let mut stack = vec![(openat(root, ".", DIRECTORY, Mode::empty())?, Vec::new())];
    let mut todo: VecDeque<Vec<u8>> = parts(path).map(<[u8]>::to_vec).collect();
    let mut links = 0;
    while let Some(part) = todo.pop_front() {
        if part == b".." {
            if stack.len() > 1 {
                stack.pop();
            }
            continue;
        }
        let Some((here, _)) = stack.last() else {
            return Err(Errno::INVAL);
        };
        let name = OsStr::from_bytes(&part);
        match openat(here, name, DIRECTORY, Mode::empty()) {
            Ok(fd) => stack.push((fd, part)),
            Err(Errno::NOENT) => {
                mkdirat(here, name, Mode::from_raw_mode(0o755))?;
                let fd = openat(here, name, DIRECTORY, Mode::empty())?;
                stack.push((fd, part));
                let path = stack[1..]
                    .iter()
                    .map(|(_, name)| name.as_slice())
                    .collect::<Vec<_>>()
                    .join(&b'/');
                let Some((fd, _)) = stack.last() else {
                    return Err(Errno::INVAL);
                };
                made(fd.as_fd(), &path)?;
            }
            // O_DIRECTORY | O_NOFOLLOW on a link says "not a directory".
            Err(Errno::NOTDIR | Errno::LOOP) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = match readlinkat(here, name, Vec::new()) {
                    Ok(target) => target.into_bytes(),
                    Err(Errno::INVAL) => return Err(Errno::NOTDIR),
                    Err(errno) => return Err(errno),
                };
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                for part in parts(&target).rev() {
                    todo.push_front(part.to_vec());
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    stack.pop().map(|(fd, _)| fd).ok_or(Errno::INVAL)
}

/// The parts of a path, without empty ones and `.`.
pub(crate) fn parts(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&b| b == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
}

/// The path by which the kernel leads back to an open file; the only way to set what has no call for `O_PATH` fds.
pub(crate) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether it is what overlayfs takes for a whiteout.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Names in a directory, without `.` and `..`.
pub(crate) fn names(dir: &OwnedFd) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Whether there is nothing in a directory that is open for listing.
pub(crate) fn is_empty(dir: &OwnedFd) -> Result<bool> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The process's mask for the modes of new files, or all bits if it cannot be known; since Linux 4.7.
pub(crate) fn umask() -> u32 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let mask = status
                .lines()
                .find_map(|line| line.strip_prefix("Umask:"))?;
            u32::from_str_radix(mask.trim(), 8).ok()
        })
        .unwrap_or(0o777)
}

const READ_DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens a directory for listing. One whose mode forbids that is made accessible first; it is about to be removed or
/// gets its own mode later.
pub(crate) fn open_to_list(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    let name = OsStr::from_bytes(name);
    match openat(parent, name, READ_DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let fd = openat(parent, name, DIRECTORY, Mode::empty())?;
            rustix::fs::chmod(proc_path(&fd), Mode::RWXU)?;
            openat(parent, name, READ_DIRECTORY, Mode::empty())
        }
        result => result,
    }
}

/// Removes `name` in `parent` with all that is in it, except where `keep` says so of a name in a directory (by the
/// directory's inode). Returns whether it is gone.
pub(crate) fn remove(
    parent: BorrowedFd<'_>,
    name: &[u8],
    keep: &dyn Fn(u64, &[u8]) -> bool,
) -> Result<bool> {
    let os_name = OsStr::from_bytes(name);
    // Most things are not directories.
    let kept_here = keep(inode(parent)?, name);
    if !kept_here {
        match unlinkat(parent, os_name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    let stat = match statat(parent, os_name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(true),
        Err(errno) => return Err(errno),
    };
    if file_type(&stat) != FileType::Directory {
        if kept_here {
            return Ok(false);
        }
        unlinkat(parent, os_name, AtFlags::empty())?;
        return Ok(true);
    }
    let dir = open_to_list(parent, name)?;
    let emptied = remove_contents(&dir, keep)?;
    if kept_here || !emptied {
        return Ok(false);
    }
    match unlinkat(parent, os_name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Removes what is in `dir`, except where `keep` says so. Returns whether nothing is left.
pub(crate) fn remove_contents(dir: &OwnedFd, keep: &dyn Fn(u64, &[u8]) -> bool) -> Result<bool> {
    let mut emptied = true;
    for name in names(dir)? {
        emptied &= remove(dir.as_fd(), &name, keep)?;
    }
    Ok(emptied)
}

/// The inode number of an open file.
pub(crate) fn inode(fd: BorrowedFd<'_>) -> Result<u64> {
    Ok(fstat(fd)?.st_ino)
}
