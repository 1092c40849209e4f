//! Looking into the layers below, each in a directory of its own with overlayfs's whiteouts.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat,
    fstat, openat, readlinkat, symlinkat, utimensat,
};
use rustix::io::{Errno, Result};

use crate::rootdir::{file_type, is_whiteout, parts, proc_path};

const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory of a layer, which may still be on its way into it.
#[derive(Debug)]
pub(crate) struct Place {
    directory: Arc<OwnedFd>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Coming,
    Done,
    Failed,
}

impl Place {
    /// A directory that holds its layer.
    pub(crate) fn filled(directory: Arc<OwnedFd>) -> Place {
        Place {
            directory,
            state: Mutex::new(State::Done),
            changed: Condvar::new(),
        }
    }

    /// A directory into which a layer is to be unpacked.
    pub(crate) fn empty(directory: Arc<OwnedFd>) -> Place {
        Place {
            state: Mutex::new(State::Coming),
            ..Place::filled(directory)
        }
    }

    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Ends the wait of others when what is returned is dropped, whatever happens until then.
    pub(crate) fn finish_on_drop(&self) -> Finish<'_> {
        Finish {
            place: self,
            state: State::Failed,
        }
    }

    /// The directory, when the layer is in it.
    fn wait(&self) -> Result<&OwnedFd> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self
            .changed
            .wait_while(state, |state| *state == State::Coming)
            .unwrap_or_else(PoisonError::into_inner);
        match *state {
            State::Done => Ok(&self.directory),
            // The layer that failed tells why.
            State::Coming | State::Failed => Err(Errno::CANCELED),
        }
    }
}

/// Tells those who wait for a layer how it ended.
pub(crate) struct Finish<'a> {
    place: &'a Place,
    state: State,
}

impl Finish<'_> {
    /// It ended well.
    pub(crate) fn well(mut self) {
        self.state = State::Done;
    }
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        *self
            .place
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = self.state;
        self.place.changed.notify_all();
    }
}

/// The layers below another one, topmost first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Below(Vec<Arc<Place>>);

impl Below {
    pub(crate) fn new(topmost_first: impl IntoIterator<Item = Arc<Place>>) -> Below {
        Below(topmost_first.into_iter().collect())
    }

    /// The directory `path` as these layers show it: the topmost one counts.
    pub(crate) fn directory(&self, path: &[u8]) -> Result<Option<Stat>> {
        Ok(self
            .find(path)?
            .map(|(_, stat)| stat)
            .filter(|stat| file_type(stat) == FileType::Directory))
    }

    /// The file `path`, of any kind that may have several names, as these layers show it.
    pub(crate) fn file(&self, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>> {
        Ok(self.find(path)?.filter(|(_, stat)| {
            matches!(file_type(stat), FileType::RegularFile | FileType::Symlink)
        }))
    }

    fn find(&self, path: &[u8]) -> Result<Option<(OwnedFd, Stat)>> {
        for layer in &self.0 {
            match look(layer.wait()?, path)? {
                Look::Found(fd, stat) => return Ok(Some((fd, stat))),
                Look::Hidden => return Ok(None),
                Look::Absent => {}
            }
        }
        Ok(None)
    }
}

enum Look {
    Found(OwnedFd, Stat),
    /// Not here, and what is further below is hidden.
    Hidden,
    Absent,
}

fn look(layer: &OwnedFd, path: &[u8]) -> Result<Look> {
    let mut here = openat(layer, ".", LOOK | OFlags::DIRECTORY, Mode::empty())?;
    // A root that is opaque hides all layers below.
    let mut opaque = is_opaque(layer);
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

pub(crate) fn is_opaque(dir: &impl AsFd) -> bool {
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

/// The names of the extended attributes of an open file.
pub(crate) fn xattr_names(file: impl AsFd) -> Result<Vec<Vec<u8>>> {
    let path = proc_path(&file);
    let mut size = match rustix::fs::listxattr_query(path.as_str()) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(size) => size,
        Err(errno) => return Err(errno),
    };
    // A list that grows meanwhile is asked for again.
    loop {
        let mut names = vec![0u8; size];
        match rustix::fs::listxattr(path.as_str(), names.as_mut_slice()) {
            Ok(n) => {
                return Ok(names[..n]
                    .split(|&b| b == 0)
                    .filter(|name| !name.is_empty())
                    .map(<[u8]>::to_vec)
                    .collect());
            }
            Err(Errno::RANGE) => size *= 2,
            Err(errno) => return Err(errno),
        }
    }
}

/// The extended attributes of an open file, by name; those that only the kernel may set are left out.
pub(crate) fn xattrs(file: impl AsFd) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let path = proc_path(&file);
    let mut found = Vec::new();
    for name in xattr_names(&file)? {
        let mut value = vec![0u8; 256];
        let value = loop {
            match rustix::fs::getxattr(path.as_str(), name.as_slice(), value.as_mut_slice()) {
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
            found.push((name, value));
        }
    }
    found.sort();
    Ok(found)
}
