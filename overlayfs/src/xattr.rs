//! Extended attributes of directory entries, without following symbolic links.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use rustix::io::{Errno, Result};

use crate::options::Marks;

impl Marks {
    /// What the names of the marks begin with.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Marks::Trusted => "trusted.overlay.",
            Marks::User => "user.overlay.",
        }
    }

    /// The full name of one mark.
    pub(crate) fn name(self, mark: &str) -> CString {
        CString::new(format!("{}{mark}", self.prefix())).unwrap_or_default()
    }
}

/// The entry `name` of `directory`, as a path that needs no descriptor of the entry itself:
/// the calls that take descriptors refuse `O_PATH` and cannot open devices safely.
/// An empty name means the directory.
fn entry(directory: BorrowedFd<'_>, name: &OsStr) -> CString {
    let mut path = format!("/proc/self/fd/{}/", directory.as_raw_fd()).into_bytes();
    path.extend(if name.is_empty() {
        b"."
    } else {
        name.as_bytes()
    });
    CString::new(path).unwrap_or_default()
}

/// The value of an attribute; none if the entry does not have it.
pub(crate) fn get(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    attribute: &CString,
) -> Result<Option<Vec<u8>>> {
    let path = entry(directory, name);
    let mut value = vec![0; 512];
    loop {
        match lgetxattr(&path, attribute, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                return Ok(Some(value));
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            // 64 KiB is the most that an attribute can hold.
            Err(Errno::RANGE) if value.len() < 1 << 16 => value = vec![0; 1 << 16],
            Err(other) => return Err(other),
        }
    }
}

/// The names of all attributes of an entry, sorted.
pub(crate) fn list(directory: BorrowedFd<'_>, name: &OsStr) -> Result<Vec<OsString>> {
    let path = entry(directory, name);
    let mut names = vec![0; 1024];
    loop {
        match llistxattr(&path, &mut names[..]) {
            Ok(length) => {
                names.truncate(length);
                break;
            }
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) if names.len() < 1 << 16 => names = vec![0; 1 << 16],
            Err(other) => return Err(other),
        }
    }
    let mut names: Vec<OsString> = names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| OsString::from_vec(name.to_vec()))
        .collect();
    names.sort();
    Ok(names)
}

pub(crate) fn set(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    attribute: &CString,
    value: &[u8],
) -> Result<()> {
    lsetxattr(
        entry(directory, name),
        attribute,
        value,
        XattrFlags::empty(),
    )
}

/// Removes an attribute. Those that the kernel does not let go, like security labels, stay.
pub(crate) fn remove(directory: BorrowedFd<'_>, name: &OsStr, attribute: &CString) -> Result<()> {
    match lremovexattr(entry(directory, name), attribute) {
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::ACCESS | Errno::PERM) => Ok(()),
        other => other,
    }
}

/// The attributes that a mount shows, name and value, sorted by name.
///
/// A mount hides its own marks, and shows attributes of the same class that were written
/// inside of it and stored with a doubled prefix (Linux 6.7).
pub(crate) fn visible(
    directory: BorrowedFd<'_>,
    name: &OsStr,
    marks: Option<Marks>,
) -> Result<Vec<(OsString, Vec<u8>)>> {
    let mut found = Vec::new();
    for stored in list(directory, name)? {
        let Some(shown) = shown_name(&stored, marks) else {
            continue;
        };
        let attribute = CString::new(stored.into_vec()).unwrap_or_default();
        if let Some(value) = get(directory, name, &attribute)? {
            found.push((shown, value));
        }
    }
    found.sort();
    Ok(found)
}

/// The name under which a mount shows an attribute of a layer; none if it hides it.
pub(crate) fn shown_name(stored: &OsStr, marks: Option<Marks>) -> Option<OsString> {
    let Some(marks) = marks else {
        return Some(stored.to_owned());
    };
    let Some(rest) = stored.as_bytes().strip_prefix(marks.prefix().as_bytes()) else {
        return Some(stored.to_owned());
    };
    let escaped = rest.strip_prefix(b"overlay.")?;
    Some(OsString::from_vec(
        [marks.prefix().as_bytes(), escaped].concat(),
    ))
}

/// The name of an attribute as it is.
pub(crate) fn plain_name(shown: &OsStr) -> CString {
    CString::new(shown.as_bytes()).unwrap_or_default()
}

/// The name under which a layer stores an attribute that a mount shows.
pub(crate) fn stored_name(shown: &OsStr, marks: Option<Marks>) -> CString {
    let Some(marks) = marks else {
        return plain_name(shown);
    };
    let stored = match shown.as_bytes().strip_prefix(marks.prefix().as_bytes()) {
        Some(rest) => [marks.prefix().as_bytes(), b"overlay.", rest].concat(),
        None => shown.as_bytes().to_vec(),
    };
    CString::new(stored).unwrap_or_default()
}
