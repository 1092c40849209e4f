//! Whiteouts: how a layer says that something below it is gone.

use crate::error::{Error, Result};

/// What becomes of the whiteouts in a layer.
///
/// In a layer's archive the file `.wh.name` hides `name` in the layers below, and `.wh..wh..opq` in a directory hides
/// everything in it that comes from below.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Whiteouts {
    /// As overlayfs has them: a character device 0/0, and the attribute `trusted.overlay.opaque`. Needs root. The
    /// directory then serves as a `lowerdir`.
    Overlay,
    /// As overlayfs has them when it is mounted with `userxattr` in a user namespace: a character device 0/0, which
    /// everybody may make since Linux 5.8, and the attribute `user.overlay.opaque`. Needs Linux 5.11 to be mounted, and
    /// a filesystem with user attributes (tmpfs has them since Linux 6.6).
    OverlayUser,
    /// They are carried out: the directory holds the layers below, and what a whiteout names is removed from it.
    Apply,
}

impl Whiteouts {
    pub(crate) fn opaque_attribute(self) -> Option<&'static str> {
        match self {
            Whiteouts::Overlay => Some("trusted.overlay.opaque"),
            Whiteouts::OverlayUser => Some("user.overlay.opaque"),
            Whiteouts::Apply => None,
        }
    }
}

/// What a file name in a layer means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// A file of that name.
    File,
    /// `.wh.name` hides `name`.
    Hides(&'a [u8]),
    /// `.wh..wh..opq` hides what is in the directory.
    Opaque,
    /// Bookkeeping of AUFS, which older tools left in layers; not part of the image.
    Aufs,
}

pub(crate) const PREFIX: &[u8] = b".wh.";
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";

pub(crate) fn meaning(name: &[u8]) -> Result<Meaning<'_>> {
    if name == OPAQUE {
        return Ok(Meaning::Opaque);
    }
    let Some(hidden) = name.strip_prefix(PREFIX) else {
        return Ok(Meaning::File);
    };
    match hidden {
        b"" | b"." | b".." => Err(Error::BadWhiteout {
            target: String::from_utf8_lossy(hidden).into_owned(),
        }),
        hidden if hidden.starts_with(PREFIX) => Ok(Meaning::Aufs),
        hidden => Ok(Meaning::Hides(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_meanings() {
        assert_eq!(meaning(b"a").unwrap(), Meaning::File);
        assert_eq!(meaning(b".wh").unwrap(), Meaning::File);
        assert_eq!(meaning(b".wh.a").unwrap(), Meaning::Hides(b"a"));
        assert_eq!(meaning(b".wh..a").unwrap(), Meaning::Hides(b".a"));
        assert_eq!(meaning(b".wh..wh..opq").unwrap(), Meaning::Opaque);
        assert_eq!(meaning(b".wh..wh.plnk").unwrap(), Meaning::Aufs);
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert!(meaning(bad).is_err());
        }
    }
}
