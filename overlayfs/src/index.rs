//! The index of hard links (`index=on`): which copy belongs to which file below.

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, statat};
use rustix::io::Errno;

use crate::error::{Error, Result, Role};
use crate::layer::Layer;
use crate::marks::Origin;
use crate::root::{self, Root};
use crate::sys;

/// The directory `index` in a work directory. Each entry is a hard link to a copied-up
/// file; its name is the origin of that copy in hexadecimal digits.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) root: Root,
    /// By type and bytes of the file handle. The UUID of the filesystem is left out: the
    /// kernel fills in one that a process cannot always ask for.
    entries: HashMap<(u8, Vec<u8>), OsString>,
}

impl Index {
    /// Reads the index in a work directory, which may have none. An empty index is one too:
    /// it says that no file has a copy.
    pub(crate) fn open(work: &Layer) -> Result<Option<Self>> {
        let work = Root::open(work, Role::Work)?;
        let place = Path::new("index");
        let top = work.directory(Path::new(""))?;
        if statat(&top, place, AtFlags::SYMLINK_NOFOLLOW)
            .is_err_and(|source| source == Errno::NOENT)
        {
            return Ok(None);
        }
        let directory = work.directory(place)?;
        let mut entries = HashMap::new();
        for name in root::names(&directory, &work.name(place))? {
            // Names of another form are temporary files, which the kernel leaves after a crash.
            let origin = unhex(&name).and_then(|value| Origin::decode(&value).ok().flatten());
            if let Some(origin) = origin {
                entries.insert((origin.handle_type, origin.handle), name);
            }
        }
        let root = Root::open(&Layer::from(directory), Role::Work)?;
        Ok(Some(Index { root, entries }))
    }

    pub(crate) fn try_clone(&self) -> Result<Self> {
        Ok(Index {
            root: self.root.try_clone()?,
            entries: self.entries.clone(),
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The name of the copy of a file of a lower layer, if it has one.
    pub(crate) fn find(
        &self,
        directory: BorrowedFd<'_>,
        name: &OsStr,
        shown: &Path,
    ) -> Result<Option<&OsStr>> {
        if self.entries.is_empty() {
            return Ok(None);
        }
        let Ok(name) = CString::new(name.as_bytes()) else {
            return Ok(None);
        };
        let (kind, bytes) = sys::file_handle(directory.as_fd(), &name)
            .map_err(|source| Error::io("get the file handle of", shown, source))?;
        let Ok(kind) = u8::try_from(kind) else {
            return Ok(None);
        };
        Ok(self.entries.get(&(kind, bytes)).map(OsString::as_os_str))
    }
}

fn unhex(name: &OsStr) -> Option<Vec<u8>> {
    let (pairs, []) = name.as_bytes().as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}
