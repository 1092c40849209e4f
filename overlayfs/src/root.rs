//! A layer that is read: paths in it never lead out of it.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::error::{Error, Result, Role};
use crate::layer::Layer;

/// The longest path given to one system call; the kernel's limit is 4,096.
const PATH_CHUNK: usize = 3072;

/// The top directory of a layer.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    pub(crate) fn open(layer: &Layer, role: Role) -> Result<Self> {
        let opened = layer.open(role)?;
        let fd = opened
            .as_fd()
            .try_clone_to_owned()
            .map_err(|source| Error::io("open", &opened.path, source))?;
        Ok(Root {
            fd,
            path: opened.path.clone(),
        })
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn try_clone(&self) -> Result<Self> {
        let fd = self
            .fd
            .try_clone()
            .map_err(|source| Error::io("open", &self.path, source))?;
        Ok(Root {
            fd,
            path: self.path.clone(),
        })
    }

    /// What tells the directory from every other one.
    pub(crate) fn identity(&self) -> Option<(u64, u64)> {
        crate::legacy::identity(self.fd.as_fd()).ok()
    }

    /// The name of a place in the layer, for messages.
    pub(crate) fn name(&self, place: &Path) -> PathBuf {
        self.path.join(place)
    }

    /// Opens a directory of the layer for reading.
    ///
    /// Symbolic links are not followed and mounts are not entered: the kernel's overlay sees
    /// neither.
    pub(crate) fn directory(&self, place: &Path) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.resolve(place, flags).map_err(|source| match source {
            Errno::XDEV => Error::MountInLayer {
                path: self.name(place),
            },
            _ => Error::io("open", self.name(place), source),
        })
    }

    fn resolve(&self, place: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let step = |at: &OwnedFd, path: &Path, flags| loop {
            match openat2(at, path, flags, Mode::empty(), within) {
                // A rename elsewhere raced with the resolution.
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        };
        let mut rest = place.as_os_str().as_bytes();
        let mut at: Option<OwnedFd> = None;
        while rest.len() > PATH_CHUNK {
            let cut = rest[..PATH_CHUNK]
                .iter()
                .rposition(|byte| *byte == b'/')
                .unwrap_or(PATH_CHUNK);
            let (head, tail) = rest.split_at(cut);
            let passing = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            at = Some(step(
                at.as_ref().unwrap_or(&self.fd),
                Path::new(OsStr::from_bytes(head)),
                passing,
            )?);
            rest = tail.strip_prefix(b"/").unwrap_or(tail);
        }
        let rest = if rest.is_empty() { b"." } else { rest };
        step(
            at.as_ref().unwrap_or(&self.fd),
            Path::new(OsStr::from_bytes(rest)),
            flags,
        )
    }
}

/// The names in a directory, sorted.
pub(crate) fn names(directory: &OwnedFd, path: &Path) -> Result<Vec<OsString>> {
    let fail = |source| Error::io("list", path, source);
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Opens a directory by its name in another one, for reading.
pub(crate) fn open_directory_in(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(parent, name, flags, Mode::empty())
}
