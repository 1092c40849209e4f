//! Owner, attributes and times.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, Gid, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, utimensat};
use rustix::io::Errno;

use super::{Extractor, failed};
use crate::acl::{self, Acl};
use crate::error::{Result, excerpt};
use crate::ownership::Ownership;
use crate::report::SkipReason;
use crate::rootdir::proc_path;
use crate::tar_reader::TarEntry;
use crate::unpack::Xattrs;

/// Access control lists as attributes: names and values.
pub(super) type Acls = Box<[(&'static [u8], Vec<u8>)]>;

impl Extractor<'_> {
    /// Gives a file the owner that the options make of the entry's.
    pub(super) fn own(
        &mut self,
        entry: &TarEntry,
        fd: BorrowedFd<'_>,
        existed: bool,
    ) -> Result<()> {
        let (uid, gid) = self.options.ownership.apply(entry.uid, entry.gid)?;
        if matches!(self.options.ownership, Ownership::Squash { .. })
            && (entry.uid, entry.gid) != (0, 0)
        {
            self.report.squashed += 1;
        }
        let inherits = self.parent.as_ref().is_some_and(|parent| parent.setgid);
        self.set_owner(fd, uid, gid, existed || inherits)
    }

    pub(super) fn set_owner(
        &self,
        fd: BorrowedFd<'_>,
        uid: u32,
        gid: u32,
        always: bool,
    ) -> Result<()> {
        if !always && (uid, gid) == (self.own_uid, self.own_gid) {
            return Ok(());
        }
        chownat(
            fd,
            "",
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::EMPTY_PATH,
        )
        .map_err(failed("set the owner"))
    }

    /// Sets the attributes that need not wait for the mode.
    pub(super) fn set_xattrs(&mut self, entry: &TarEntry, fd: BorrowedFd<'_>) -> Result<()> {
        for (name, value) in &entry.xattrs {
            if is_overlay(name) {
                let name = excerpt(&String::from_utf8_lossy(name));
                self.report
                    .skip(&entry.path, SkipReason::OverlayXattr(name));
            } else if !is_acl(name) {
                self.set_xattr(&entry.path, fd, name, value)?;
            }
        }
        Ok(())
    }

    fn set_xattr(
        &mut self,
        entry: &[u8],
        fd: BorrowedFd<'_>,
        name: &[u8],
        value: &[u8],
    ) -> Result<()> {
        match rustix::fs::setxattr(proc_path(fd), name, value, XattrFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL)
                if self.options.xattrs == Xattrs::Lenient =>
            {
                self.skip_xattr(entry, name);
                Ok(())
            }
            Err(errno) => Err(failed("set an extended attribute")(errno)),
        }
    }

    fn skip_xattr(&mut self, entry: &[u8], name: &[u8]) {
        let name = excerpt(&String::from_utf8_lossy(name));
        self.report.skip(entry, SkipReason::Xattr(name));
    }

    /// The attributes of the entry's access control lists. They come after the mode, which would change them.
    pub(super) fn acls(&mut self, entry: &TarEntry) -> Result<Acls> {
        let mut found = Vec::new();
        for (name, text) in [
            (acl::ACCESS, &entry.acl_access),
            (acl::DEFAULT, &entry.acl_default),
        ] {
            let attribute = entry.xattrs.iter().find(|(known, _)| known == name);
            let list = match (text, attribute) {
                (Some(text), _) => Acl::from_text(text),
                (None, Some((_, value))) => Acl::from_attribute(value),
                (None, None) => continue,
            };
            let owned = match list {
                Some(list) => list.owned(&self.options.ownership)?,
                None => None,
            };
            match owned {
                Some(list) => found.push((name, list.to_attribute())),
                None if self.options.xattrs == Xattrs::Lenient => {
                    self.skip_xattr(&entry.path, name);
                }
                None => return Err(failed("set an access control list")(Errno::INVAL)),
            }
        }
        Ok(found.into())
    }

    pub(super) fn set_acls(&mut self, entry: &[u8], fd: BorrowedFd<'_>, acls: &Acls) -> Result<()> {
        acls.iter()
            .try_for_each(|(name, value)| self.set_xattr(entry, fd, name, value))
    }

    /// Gives a new file the access control list of its entry, or none.
    pub(super) fn finish_acls(&mut self, entry: &TarEntry, fd: BorrowedFd<'_>) -> Result<()> {
        if self.parent()?.default_acl {
            remove_xattr(fd, acl::ACCESS)?;
        }
        let acls = self.acls(entry)?;
        self.set_acls(&entry.path, fd, &acls)
    }
}

/// Removes the attributes that a directory has from below and the entry has not.
pub(super) fn drop_xattrs(fd: BorrowedFd<'_>, entry: &TarEntry) -> Result<()> {
    let there = crate::below::xattr_names(fd)
        .map_err(failed("list the extended attributes of a directory"))?;
    for name in there {
        let stays = is_overlay(&name)
            // The machine's own.
            || matches!(name.as_slice(), b"security.selinux" | b"security.ima" | b"security.evm")
            || entry.xattrs.iter().any(|(new, _)| *new == name);
        if !stays {
            remove_xattr(fd, &name)?;
        }
    }
    Ok(())
}

pub(super) fn remove_xattr(fd: BorrowedFd<'_>, name: &[u8]) -> Result<()> {
    match rustix::fs::removexattr(proc_path(fd), name) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(failed("remove an extended attribute")(errno)),
    }
}

/// Attributes of overlayfs itself, which would make it follow the image's orders.
fn is_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn is_acl(name: &[u8]) -> bool {
    name == acl::ACCESS || name == acl::DEFAULT
}

/// Reading sets no time that an image knows, so both are that of the last modification.
pub(super) fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

pub(super) fn set_times(fd: BorrowedFd<'_>, mtime: (i64, u32)) -> Result<()> {
    // futimens does not take O_PATH fds; an empty path does.
    utimensat(fd, "", &timestamps(mtime), AtFlags::EMPTY_PATH).map_err(failed("set the time"))
}

pub(super) fn mtime_of(stat: &Stat) -> (i64, u32) {
    (
        stat.st_mtime,
        u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
}
