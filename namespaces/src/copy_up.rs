//! Copying what a new file system covers into it. The rules of [`crate::execute`] hold here too:
//! every buffer is on the stack.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::plan::CopyUp;
use crate::protocol::{Call, Failure};

type Result<T> = std::result::Result<T, Failure>;

/// How deep directories may be: each level takes some of the stack.
const DEPTH: u32 = 64;

const NOFOLLOW: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC);

/// Copies from one directory, which may be an `O_PATH` descriptor, to another.
pub(crate) fn copy(what: CopyUp, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    if what == CopyUp::Nothing {
        return Ok(());
    }
    let from = open(from, c".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let to = open(to, c".", OFlags::RDONLY | OFlags::DIRECTORY)?;
    copy_entries(from.as_fd(), to.as_fd(), DEPTH)?;
    if what == CopyUp::Directory {
        let stat = rustix::fs::fstat(&from).map_err(Failure::of(Call::Fstat))?;
        set_metadata(to.as_fd(), &stat)?;
    }
    Ok(())
}

fn open(at: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::openat(at, name, flags | NOFOLLOW, Mode::empty()).map_err(Failure::of(Call::Openat))
}

fn copy_entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Failure::of(Call::Openat)(Errno::LOOP));
    };
    let mut buffer = [MaybeUninit::<u8>::uninit(); 1024];
    let mut entries = RawDir::new(from, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(Failure::of(Call::Getdents))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(from, to, name, depth)?;
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, depth: u32) -> Result<()> {
    let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(Failure::of(Call::Fstat))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let from = open(from, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(Failure::of(Call::Mkdirat))?;
            let to = open(to, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
            copy_entries(from.as_fd(), to.as_fd(), depth)?;
            set_metadata(to.as_fd(), &stat)
        }
        FileType::RegularFile => copy_file(from, to, name),
        FileType::Symlink => {
            copy_link(from, to, name)?;
            set_owner(to, name, &stat)?;
            set_times(to, name, &stat);
            Ok(())
        }
        kind @ (FileType::Fifo | FileType::CharacterDevice | FileType::BlockDevice) => {
            let mode = Mode::from_raw_mode(stat.st_mode);
            match rustix::fs::mknodat(to, name, kind, mode, stat.st_rdev) {
                Ok(()) => {
                    set_owner(to, name, &stat)?;
                    set_times(to, name, &stat);
                    Ok(())
                }
                // In a user namespace.
                Err(Errno::PERM) => Ok(()),
                Err(errno) => Err(Failure::of(Call::Mknodat)(errno)),
            }
        }
        // Nobody listens at a copy of a socket.
        _ => Ok(()),
    }
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // Somebody who shares the directory may put something else there; a fifo would block.
    let from = open(from, name, OFlags::RDONLY | OFlags::NONBLOCK)?;
    let stat = rustix::fs::fstat(&from).map_err(Failure::of(Call::Fstat))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Failure::of(Call::Openat)(Errno::AGAIN));
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | NOFOLLOW;
    let to = rustix::fs::openat(to, name, flags, Mode::RUSR | Mode::WUSR)
        .map_err(Failure::of(Call::Openat))?;
    loop {
        match rustix::fs::sendfile(&to, &from, None, 1 << 20) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::of(Call::Sendfile)(errno)),
        }
    }
    set_metadata(to.as_fd(), &stat)
}

fn copy_link(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // One byte longer than any link.
    let mut buffer = [0_u8; 4097];
    let length = rustix::fs::readlinkat_raw(from, name, &mut buffer[..4096])
        .map_err(Failure::of(Call::Readlinkat))?;
    let link = buffer
        .get(..=length)
        .and_then(|bytes| CStr::from_bytes_until_nul(bytes).ok())
        .ok_or(Failure::of(Call::Readlinkat)(Errno::NAMETOOLONG))?;
    rustix::fs::symlinkat(link, to, name).map_err(Failure::of(Call::Symlinkat))
}

/// Owner, mode and times. The owner first: changing it takes set-user-id bits away.
fn set_metadata(file: BorrowedFd<'_>, stat: &Stat) -> Result<()> {
    set_owner(file, c"", stat)?;
    rustix::fs::fchmod(file, Mode::from_raw_mode(stat.st_mode))
        .map_err(Failure::of(Call::Chmod))?;
    set_times(file, c"", stat);
    Ok(())
}

const ITSELF: AtFlags = AtFlags::SYMLINK_NOFOLLOW.union(AtFlags::EMPTY_PATH);

/// Of a file in a directory, or of `at` itself where the name is empty.
fn set_times(at: BorrowedFd<'_>, name: &CStr, stat: &Stat) {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        // Below a thousand million.
        tv_nsec: nanoseconds.try_into().unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    };
    // A file system that has no such times keeps its own.
    let _ = rustix::fs::utimensat(at, name, &times, ITSELF);
}

/// Of a file in a directory, or of `at` itself where the name is empty.
fn set_owner(at: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match rustix::fs::chownat(at, name, Some(uid), Some(gid), ITSELF) {
        // An owner without a number in the user namespace.
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => Ok(()),
        Err(errno) => Err(Failure::of(Call::Chown)(errno)),
    }
}
