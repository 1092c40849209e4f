//! The marks by which layers say what the files alone cannot: deleted, replaced, moved.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, Stat, major, minor, mknodat, openat, statat,
};

use crate::error::{Error, Result};
use crate::options::Marks;
use crate::xattr;

/// How a whiteout is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Whiteout {
    /// A character device with the number 0/0. Anyone may make one since Linux 5.8.
    Device,
    /// An empty regular file with the attribute `overlay.whiteout` (Linux 6.7), which
    /// survives where device nodes do not, as in an overlay that is itself a layer.
    Attribute,
}

/// What an `overlay.opaque` attribute says of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Opaque {
    /// `y`: nothing below shows through.
    Replaces,
    /// `x`: the directory holds whiteouts in the form of attributes (Linux 6.7). It is
    /// merged with what is below as any other.
    HasAttributeWhiteouts,
}

/// Where the lower part of a renamed directory, or the contents of a metacopy, are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Redirect {
    /// Another name in the same directory.
    Sibling(OsString),
    /// A path from the root of the layers below.
    Absolute(PathBuf),
}

/// The digest that a metacopy may record of the contents below (`verity`, Linux 6.6).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VerityDigest {
    /// The number of the algorithm in fs-verity: 1 is SHA-256, 2 is SHA-512.
    pub algorithm: u8,
    /// The digest.
    pub digest: Vec<u8>,
}

/// The file below from which an entry was copied up, as a file handle.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The UUID of the filesystem that the handle is of; all zero where it has none.
    pub uuid: [u8; 16],
    /// The type of the handle, as `name_to_handle_at(2)` gives it.
    pub handle_type: u8,
    /// The handle.
    pub handle: Vec<u8>,
    /// Whether the handle is of an entry of the upper layer.
    pub is_upper: bool,
}

/// All marks of one entry of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryMarks {
    /// The entry is a whiteout: what is below at its name is deleted.
    pub whiteout: Option<Whiteout>,
    /// The directory replaces what is below, or holds a kind of whiteouts.
    pub opaque: Option<Opaque>,
    /// What is below goes by another name.
    pub redirect: Option<Redirect>,
    /// The entry is metadata only; its contents are below. The inner value is the digest
    /// that they must have.
    pub metacopy: Option<Option<VerityDigest>>,
    /// What the entry was copied from. `Some(None)` says: from a file that has no handle.
    pub origin: Option<Option<Origin>>,
    /// The directory holds entries that were copied up, so that inode numbers in it are not
    /// those of its filesystem.
    pub impure: bool,
}

/// Why the value of a mark makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadMark {
    /// An empty redirect, or one with an empty component.
    #[error("an empty name")]
    EmptyName,
    /// `.` or `..`.
    #[error("a component that is . or ..")]
    Dots,
    /// A relative redirect with more than one component.
    #[error("a slash in a relative name")]
    Slash,
    /// A NUL byte in a name.
    #[error("a NUL byte")]
    Nul,
    /// The value ends too early or its length disagrees with what it says.
    #[error("a wrong length")]
    Length,
    /// A version of the format that is not known.
    #[error("an unknown version")]
    Version,
    /// The value does not begin as it must.
    #[error("a wrong magic number")]
    Magic,
    /// Neither `y` nor `x`.
    #[error("a value other than y and x")]
    Value,
    /// The handle was made by a machine of the other byte order.
    #[error("the other byte order")]
    ByteOrder,
}

impl Opaque {
    /// Reads the value of `overlay.opaque`.
    ///
    /// # Errors
    ///
    /// [`BadMark::Value`] for values that the kernel ignores.
    pub fn decode(value: &[u8]) -> Result<Self, BadMark> {
        match value {
            b"y" => Ok(Opaque::Replaces),
            b"x" => Ok(Opaque::HasAttributeWhiteouts),
            _ => Err(BadMark::Value),
        }
    }

    /// The value to be stored.
    pub fn encode(self) -> &'static [u8] {
        match self {
            Opaque::Replaces => b"y",
            Opaque::HasAttributeWhiteouts => b"x",
        }
    }
}

impl Redirect {
    /// Reads the value of `overlay.redirect`.
    ///
    /// # Errors
    ///
    /// Says what the kernel, or a walk that must not leave the layer, objects to.
    pub fn decode(value: &[u8]) -> Result<Self, BadMark> {
        if value.contains(&0) {
            return Err(BadMark::Nul);
        }
        let check = |part: &[u8]| match part {
            b"" => Err(BadMark::EmptyName),
            b"." | b".." => Err(BadMark::Dots),
            _ => Ok(()),
        };
        if let Some(path) = value.strip_prefix(b"/") {
            path.split(|byte| *byte == b'/').try_for_each(check)?;
            return Ok(Redirect::Absolute(
                OsString::from_vec(value.to_vec()).into(),
            ));
        }
        if value.contains(&b'/') {
            return Err(BadMark::Slash);
        }
        check(value)?;
        Ok(Redirect::Sibling(OsString::from_vec(value.to_vec())))
    }

    /// The value to be stored.
    pub fn encode(&self) -> &[u8] {
        match self {
            Redirect::Sibling(name) => name.as_bytes(),
            Redirect::Absolute(path) => path.as_os_str().as_bytes(),
        }
    }
}

impl VerityDigest {
    /// Reads the value of `overlay.metacopy`. Without a digest it is empty or four bytes.
    ///
    /// # Errors
    ///
    /// [`BadMark::Length`] or [`BadMark::Version`].
    pub fn decode(value: &[u8]) -> Result<Option<Self>, BadMark> {
        let [version, length, _flags, algorithm, digest @ ..] = value else {
            return if value.is_empty() {
                Ok(None)
            } else {
                Err(BadMark::Length)
            };
        };
        if *version != 0 {
            return Err(BadMark::Version);
        }
        if usize::from(*length) != value.len() || digest.len() > 64 {
            return Err(BadMark::Length);
        }
        Ok((!digest.is_empty()).then(|| VerityDigest {
            algorithm: *algorithm,
            digest: digest.to_vec(),
        }))
    }

    /// The value to be stored; a digest is cut to the 64 bytes that there is room for.
    pub fn encode(digest: Option<&Self>) -> Vec<u8> {
        let Some(digest) = digest else {
            return Vec::new();
        };
        let bytes = &digest.digest[..digest.digest.len().min(64)];
        let length = u8::try_from(bytes.len() + 4).unwrap_or(u8::MAX);
        [&[0, length, 0, digest.algorithm], bytes].concat()
    }
}

impl Origin {
    const MAGIC: u8 = 0xfb;
    const BIG_ENDIAN: u8 = 1;
    const ANY_ENDIAN: u8 = 2;
    const UPPER: u8 = 4;

    /// Reads the value of `overlay.origin`; an empty one says that there is no handle.
    ///
    /// # Errors
    ///
    /// Says which part of the header is not as it must be.
    pub fn decode(value: &[u8]) -> Result<Option<Self>, BadMark> {
        if value.is_empty() {
            return Ok(None);
        }
        let [version, magic, length, flags, handle_type, rest @ ..] = value else {
            return Err(BadMark::Length);
        };
        if *magic != Self::MAGIC {
            return Err(BadMark::Magic);
        }
        if *version != 0 {
            return Err(BadMark::Version);
        }
        if usize::from(*length) != value.len() {
            return Err(BadMark::Length);
        }
        let foreign = (flags & Self::BIG_ENDIAN != 0) != cfg!(target_endian = "big");
        if flags & Self::ANY_ENDIAN == 0 && foreign {
            return Err(BadMark::ByteOrder);
        }
        let Some((uuid, handle)) = rest.split_first_chunk::<16>() else {
            return Err(BadMark::Length);
        };
        Ok(Some(Origin {
            uuid: *uuid,
            handle_type: *handle_type,
            handle: handle.to_vec(),
            is_upper: flags & Self::UPPER != 0,
        }))
    }

    /// The value to be stored; none if the handle is longer than the format allows.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let length = u8::try_from(self.handle.len() + 21).ok()?;
        let order = if cfg!(target_endian = "big") {
            Self::BIG_ENDIAN
        } else {
            0
        };
        let upper = if self.is_upper { Self::UPPER } else { 0 };
        let header = [0, Self::MAGIC, length, order | upper, self.handle_type];
        Some([&header[..], &self.uuid, &self.handle].concat())
    }
}

impl EntryMarks {
    /// Reads the marks of the file, directory or whiteout at `path` in a layer.
    ///
    /// # Errors
    ///
    /// [`Error::BadMark`] for a value that makes no sense, [`Error::Io`] if the entry cannot
    /// be read.
    pub fn read(path: impl AsRef<Path>, marks: Marks) -> Result<Self> {
        let path = path.as_ref();
        let (directory, name) = split(path)?;
        let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|source| Error::io("read", path, source))?;
        let at = Reader {
            directory: directory.as_fd(),
            name,
            path,
            marks: Some(marks),
        };
        let mut found = EntryMarks {
            whiteout: at.whiteout(&stat)?,
            origin: at.decoded("origin", Origin::decode)?,
            redirect: at.redirect()?,
            ..Self::default()
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                found.opaque = at.decoded("opaque", Opaque::decode)?;
                found.impure = at.get("impure")?.as_deref() == Some(b"y");
            }
            FileType::RegularFile => {
                found.metacopy = at.decoded("metacopy", VerityDigest::decode)?;
            }
            _ => {}
        }
        Ok(found)
    }
}

/// Reads single marks of one entry.
pub(crate) struct Reader<'a> {
    pub(crate) directory: BorrowedFd<'a>,
    pub(crate) name: &'a OsStr,
    /// For messages.
    pub(crate) path: &'a Path,
    /// None for an ordinary tree, in which nothing is a mark.
    pub(crate) marks: Option<Marks>,
}

impl Reader<'_> {
    pub(crate) fn get(&self, mark: &str) -> Result<Option<Vec<u8>>> {
        let Some(marks) = self.marks else {
            return Ok(None);
        };
        xattr::get(self.directory, self.name, &marks.name(mark))
            .map_err(|source| Error::io("read the overlay attributes of", self.path, source))
    }

    fn decoded<T>(
        &self,
        mark: &'static str,
        decode: impl Fn(&[u8]) -> Result<T, BadMark>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(mark)? else {
            return Ok(None);
        };
        decode(&value).map(Some).map_err(|source| Error::BadMark {
            path: self.path.to_owned(),
            mark,
            source,
        })
    }

    pub(crate) fn whiteout(&self, stat: &Stat) -> Result<Option<Whiteout>> {
        if self.marks.is_some() && is_whiteout_device(stat) {
            return Ok(Some(Whiteout::Device));
        }
        let may_be =
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0;
        Ok((may_be && self.get("whiteout")?.is_some()).then_some(Whiteout::Attribute))
    }

    /// Whether the directory replaces what is below. As in the kernel, unknown values mean no.
    pub(crate) fn is_opaque(&self) -> Result<bool> {
        Ok(self.get("opaque")?.as_deref() == Some(b"y"))
    }

    pub(crate) fn redirect(&self) -> Result<Option<Redirect>> {
        self.decoded("redirect", Redirect::decode)
    }

    pub(crate) fn is_metacopy(&self) -> Result<bool> {
        Ok(self.decoded("metacopy", VerityDigest::decode)?.is_some())
    }
}

pub(crate) fn is_whiteout_device(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && major(stat.st_rdev) == 0
        && minor(stat.st_rdev) == 0
}

/// A path as a directory that is open and a name in it.
fn split(path: &Path) -> Result<(OwnedFd, &OsStr)> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new(if path.is_absolute() { "/" } else { "." }),
    };
    let name = path.file_name().unwrap_or_else(|| OsStr::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, parent, flags, Mode::empty())
        .map_err(|source| Error::io("open", parent, source))?;
    Ok((directory, name))
}

impl Whiteout {
    /// Makes a whiteout at `path`, which must not exist.
    ///
    /// The attribute form counts only in a directory that [`write_opaque`] has marked with
    /// [`Opaque::HasAttributeWhiteouts`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`], with `EEXIST` if there is something at `path`.
    pub fn write(self, path: impl AsRef<Path>, marks: Marks) -> Result<()> {
        let path = path.as_ref();
        let fail = |source| Error::io("make the whiteout", path, source);
        let (directory, name) = split(path)?;
        match self {
            Whiteout::Device => mknodat(
                &directory,
                name,
                FileType::CharacterDevice,
                Mode::empty(),
                0,
            )
            .map_err(fail),
            Whiteout::Attribute => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(&directory, name, flags, Mode::empty()).map_err(fail)?;
                write(path, marks, "whiteout", b"")
            }
        }
    }
}

/// Marks the directory at `path` in a layer.
///
/// # Errors
///
/// [`Error::Io`], with `EPERM` for [`Marks::Trusted`] without `CAP_SYS_ADMIN`.
pub fn write_opaque(path: impl AsRef<Path>, marks: Marks, opaque: Opaque) -> Result<()> {
    write(path.as_ref(), marks, "opaque", opaque.encode())
}

/// Writes where the lower part of the directory or metacopy at `path` is.
///
/// # Errors
///
/// [`Error::BadMark`] for a redirect that the kernel would refuse, [`Error::Io`] otherwise.
pub fn write_redirect(path: impl AsRef<Path>, marks: Marks, redirect: &Redirect) -> Result<()> {
    let path = path.as_ref();
    Redirect::decode(redirect.encode()).map_err(|source| Error::BadMark {
        path: path.to_owned(),
        mark: "redirect",
        source,
    })?;
    write(path, marks, "redirect", redirect.encode())
}

/// Makes the regular file at `path` a metacopy: its contents are below.
///
/// # Errors
///
/// [`Error::Io`], with `EPERM` for [`Marks::Trusted`] without `CAP_SYS_ADMIN`.
pub fn write_metacopy(
    path: impl AsRef<Path>,
    marks: Marks,
    digest: Option<&VerityDigest>,
) -> Result<()> {
    write(
        path.as_ref(),
        marks,
        "metacopy",
        &VerityDigest::encode(digest),
    )
}

/// Writes what the entry at `path` was copied from.
///
/// # Errors
///
/// [`Error::BadMark`] for a handle that is too long, [`Error::Io`] otherwise.
pub fn write_origin(path: impl AsRef<Path>, marks: Marks, origin: Option<&Origin>) -> Result<()> {
    let path = path.as_ref();
    let value = match origin {
        None => Vec::new(),
        Some(origin) => origin.encode().ok_or_else(|| Error::BadMark {
            path: path.to_owned(),
            mark: "origin",
            source: BadMark::Length,
        })?,
    };
    write(path, marks, "origin", &value)
}

/// Marks the directory at `path` as one that holds copied-up entries.
///
/// # Errors
///
/// [`Error::Io`], with `EPERM` for [`Marks::Trusted`] without `CAP_SYS_ADMIN`.
pub fn write_impure(path: impl AsRef<Path>, marks: Marks) -> Result<()> {
    write(path.as_ref(), marks, "impure", b"y")
}

fn write(path: &Path, marks: Marks, mark: &str, value: &[u8]) -> Result<()> {
    let (directory, name) = split(path)?;
    xattr::set(directory.as_fd(), name, &marks.name(mark), value)
        .map_err(|source| Error::io("mark", path, source))
}
