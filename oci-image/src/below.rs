//! Looking into the layers below, each in a directory of its own with overlayfs's whiteouts.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fstat, openat, readlinkat, symlinkat, utimensat,
};
use rustix::io::{Errno, Result};

use crate::rootdir::{file_type, is_whiteout, parts, proc_path};

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory `path` as the layers below show it: the topmost one counts.
pub(crate) fn directory(layers: &[Arc<OwnedFd>], path: &[u8]) -> Result<Option<Stat>> {
    Ok(find(layers, path)?
        .map(|(_, stat)| stat)
        .filter(|stat| file_type(stat) == FileType::Directory))
}

/// The file `path`, of any kind that may have several names, as the layers below show it.
pub(crate) fn file(layers: &[Arc<OwnedFd>], path: &[u8]) -> Result<Option<(OwnedFd, Stat)>> {
    Ok(find(layers, path)?
        .filter(|(_, stat)| matches!(file_type(stat), FileType::RegularFile | FileType::Symlink)))
}

fn find(layers: &[Arc<OwnedFd>], path: &[u8]) -> Result<Option<(OwnedFd, Stat)>> {
    for layer in layers {
        match look(layer, path)? {
            Look::Found(fd, stat) => return Ok(Some((fd, stat))),
            Look::Hidden => return Ok(None),
            Look::Absent => {}
        }
    }
    Ok(None)
}

enum Look {
    Found(OwnedFd, Stat),
    /// Not here, and what is further below is hidden.
    Hidden,
    Absent,
}

fn look(layer: &OwnedFd, path: &[u8]) -> Result<Look> {
    let mut here = openat(layer, ".", LOOK | OFlags::DIRECTORY, Mode::empty())?;
    let mut opaque = false;
    for part in parts(path) {
        let next = match openat(&here, OsStr::from_bytes(part), LOOK, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(if opaque { Look::Hidden } else { Look::Absent }),
            // The layer has something here that is no directory; it hides all below.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Look::Hidden),
            Err(errno) => return Err(errno),
        };
        let stat = fstat(&next)?;
        if is_whiteout(&stat) {
            return Ok(Look::Hidden);
        }
        if file_type(&stat) == FileType::Directory {
            opaque |= is_opaque(&next);
        }
        here = next;
    }
    let stat = fstat(&here)?;
    Ok(Look::Found(here, stat))
}

pub(crate) fn is_opaque(dir: &OwnedFd) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0u8; 1];
        matches!(rustix::fs::getxattr(proc_path(dir), *name, &mut value), Ok(1) if value == *b"y")
    })
}

/// Copies `file` with all that it has to `name` in `directory`.
pub(crate) fn copy(
    file: &OwnedFd,
    stat: &Stat,
    directory: &OwnedFd,
    name: &[u8],
) -> io::Result<()> {
    let name = OsStr::from_bytes(name);
    let made = if file_type(stat) == FileType::Symlink {
        let target = readlinkat(file, "", Vec::new())?;
        symlinkat(target, directory, name)?;
        openat(directory, name, LOOK, Mode::empty())?
    } else {
        let mut from = File::open(proc_path(file))?;
        let mut to = File::from(openat(
            directory,
            name,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        )?);
        io::copy(&mut from, &mut to)?;
        OwnedFd::from(to)
    };
    chownat(
        &made,
        "",
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
        AtFlags::EMPTY_PATH,
    )?;
    if file_type(stat) != FileType::Symlink {
        rustix::fs::chmod(proc_path(&made), Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        for (attribute, value) in xattrs(file)? {
            rustix::fs::setxattr(
                proc_path(&made),
                attribute.as_slice(),
                &value,
                XattrFlags::empty(),
            )?;
        }
    }
    let time = Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(&made, "", &times, AtFlags::EMPTY_PATH)?;
    Ok(())
}

/// The extended attributes of an open file, by name; those that only the kernel may set are left out.
pub(crate) fn xattrs(file: impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = proc_path(&file);
    let mut size = match rustix::fs::listxattr_query(path.as_str()) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(size) => size,
        Err(errno) => return Err(errno.into()),
    };
    // A list that grows meanwhile is asked for again.
    let names = loop {
        let mut names = vec![0u8; size];
        match rustix::fs::listxattr(path.as_str(), names.as_mut_slice()) {
            Ok(n) => {
                names.truncate(n);
                break names;
            }
            Err(Errno::RANGE) => size *= 2,
            Err(errno) => return Err(errno.into()),
        }
    };
    let mut found = Vec::new();
    for name in names.split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0u8; 256];
        let value = loop {
            match rustix::fs::getxattr(path.as_str(), name, value.as_mut_slice()) {
                Ok(n) => {
                    value.truncate(n);
                    break Some(value);
                }
                Err(Errno::RANGE) if value.len() < 64 << 10 => {
                    let longer = value.len() * 4;
                    value.resize(longer, 0);
                }
                Err(Errno::NODATA | Errno::OPNOTSUPP) => break None,
                Err(errno) => return Err(errno.into()),
            }
        };
        if let Some(value) = value {
            found.push((name.to_vec(), value));
        }
    }
    found.sort();
    Ok(found)
}
