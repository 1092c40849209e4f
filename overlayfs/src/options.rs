//! The mount options of overlayfs, as types.

use crate::error::{Error, Result};

/// What happens when a directory that has a lower part is renamed (`redirect_dir`, Linux 4.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "redirect_dir")]
pub enum RedirectDir {
    /// The rename is recorded in the upper layer, and such records are followed.
    On,
    /// Renames fail with `EXDEV`; records in the layers are followed.
    Follow,
    /// Renames fail with `EXDEV`; records in the layers are not followed.
    NoFollow,
    /// Renames fail with `EXDEV`; whether records are followed is up to the module's setting.
    Off,
}

/// Whether changing only metadata copies up only metadata (`metacopy`, Linux 4.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "metacopy")]
pub enum Metacopy {
    /// Contents stay below until they are written.
    On,
    /// The whole file is copied.
    Off,
}

/// Whether copied-up files stay one inode under several hard links (`index`, Linux 4.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "index")]
pub enum Index {
    /// Hard links survive a copy-up.
    On,
    /// Hard links are broken by a copy-up.
    Off,
}

/// How inode numbers of several filesystems are made unique (`xino`, Linux 4.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "xino")]
pub enum Xino {
    /// The layer's index goes into the high bits, whether or not the filesystem leaves them free.
    On,
    /// As `On` where the filesystem is known to leave the bits free.
    Auto,
    /// Inode numbers are those of the layers, device numbers are made up.
    Off,
}

/// Whether the overlay can be exported by NFS (`nfs_export`, Linux 4.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "nfs_export")]
pub enum NfsExport {
    /// File handles can be made.
    On,
    /// File handles cannot be made.
    Off,
}

/// How the overlay's UUID comes about (`uuid`; `Off` Linux 5.8, the others 6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "uuid")]
pub enum Uuid {
    /// A new UUID, kept in the upper layer.
    On,
    /// As `On` for an upper layer that is new.
    Auto,
    /// No UUID, and the UUIDs of the layers are not recorded.
    Off,
    /// No UUID for the overlay.
    Null,
}

/// Whether the contents below a metacopy are checked with fs-verity (`verity`, Linux 6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "verity")]
pub enum Verity {
    /// Checked where a digest is recorded.
    On,
    /// Every metacopy must have a digest.
    Require,
    /// Recorded digests are ignored.
    Off,
}

/// When what is copied up, and what is synced, reaches the disk (`fsync`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "volatile")]
#[doc(alias = "fsync")]
pub enum Fsync {
    /// Contents are synced before a copied-up file takes its place, and callers' syncs are
    /// obeyed. What the kernel does unless told otherwise.
    Auto,
    /// As `Auto`, and directories and copied-up metadata are synced too (`fsync=strict`,
    /// Linux 7.0 and 6.18.21).
    Strict,
    /// All syncing is left out (`volatile`, Linux 5.10). After a crash the upper layer must
    /// be thrown away; a later mount over it is refused.
    Volatile,
}

/// In which extended attributes the marks of overlayfs are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[doc(alias = "userxattr")]
pub enum Marks {
    /// `trusted.overlay.*`: only for processes with `CAP_SYS_ADMIN` in the initial user namespace.
    Trusted,
    /// `user.overlay.*` (`userxattr`, Linux 5.11): the way of an ordinary user.
    User,
}

impl Marks {
    /// What the calling process can use: `Trusted` if it may, else `User`.
    ///
    /// Found by trying on a file that has no name, not by looking at user ids.
    pub fn of_this_process() -> Self {
        use rustix::fs::{MemfdFlags, XattrFlags, fsetxattr, memfd_create};
        let refused = memfd_create(c"cofferdam", MemfdFlags::CLOEXEC).is_ok_and(|file| {
            fsetxattr(&file, c"trusted.overlay.probe", b"", XattrFlags::empty())
                == Err(rustix::io::Errno::PERM)
        });
        if refused { Marks::User } else { Marks::Trusted }
    }
}

/// The options of a mount. What is not set is left to the kernel's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub(crate) redirect_dir: Option<RedirectDir>,
    pub(crate) metacopy: Option<Metacopy>,
    pub(crate) index: Option<Index>,
    pub(crate) xino: Option<Xino>,
    pub(crate) nfs_export: Option<NfsExport>,
    pub(crate) uuid: Option<Uuid>,
    pub(crate) verity: Option<Verity>,
    pub(crate) fsync: Option<Fsync>,
    pub(crate) marks: Option<Marks>,
}

impl Options {
    /// Leaves everything to the kernel's configuration.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets what renaming a directory does.
    pub fn redirect_dir(mut self, value: RedirectDir) -> Self {
        self.redirect_dir = Some(value);
        self
    }

    /// Sets whether metadata is copied up alone.
    pub fn metacopy(mut self, value: Metacopy) -> Self {
        self.metacopy = Some(value);
        self
    }

    /// Sets whether hard links survive a copy-up.
    pub fn index(mut self, value: Index) -> Self {
        self.index = Some(value);
        self
    }

    /// Sets how inode numbers are made unique.
    pub fn xino(mut self, value: Xino) -> Self {
        self.xino = Some(value);
        self
    }

    /// Sets whether the overlay can be exported by NFS.
    pub fn nfs_export(mut self, value: NfsExport) -> Self {
        self.nfs_export = Some(value);
        self
    }

    /// Sets how the overlay gets its UUID.
    pub fn uuid(mut self, value: Uuid) -> Self {
        self.uuid = Some(value);
        self
    }

    /// Sets whether contents are checked with fs-verity.
    pub fn verity(mut self, value: Verity) -> Self {
        self.verity = Some(value);
        self
    }

    /// Sets when things reach the disk.
    pub fn fsync(mut self, value: Fsync) -> Self {
        self.fsync = Some(value);
        self
    }

    /// Sets where the marks are kept. Unset, it is [`Marks::of_this_process`].
    pub fn marks(mut self, value: Marks) -> Self {
        self.marks = Some(value);
        self
    }

    /// Which marks the mount uses.
    pub(crate) fn mark_names(&self) -> Marks {
        self.marks.unwrap_or_else(Marks::of_this_process)
    }

    /// The options in the kernel's words, in a fixed order.
    pub(crate) fn words(&self) -> Vec<Word> {
        let mut words = Vec::new();
        let mut add = |key, value, since| words.push(Word { key, value, since });
        if self.mark_names() == Marks::User {
            add("userxattr", None, "5.11");
        }
        if let Some(value) = self.redirect_dir {
            let value = match value {
                RedirectDir::On => "on",
                RedirectDir::Follow => "follow",
                RedirectDir::NoFollow => "nofollow",
                RedirectDir::Off => "off",
            };
            add("redirect_dir", Some(value), "4.10");
        }
        if let Some(value) = self.metacopy {
            add("metacopy", Some(on(value == Metacopy::On)), "4.19");
        }
        if let Some(value) = self.index {
            add("index", Some(on(value == Index::On)), "4.13");
        }
        if let Some(value) = self.xino {
            let value = match value {
                Xino::On => "on",
                Xino::Auto => "auto",
                Xino::Off => "off",
            };
            add("xino", Some(value), "4.17");
        }
        if let Some(value) = self.nfs_export {
            add("nfs_export", Some(on(value == NfsExport::On)), "4.16");
        }
        if let Some(value) = self.uuid {
            let (value, since) = match value {
                Uuid::On => {
                    // Before 6.6 the kernel has a word "on" too, which stands for no UUID: to be
                    // asked for what it does not know stops it from taking that for this.
                    add("uuid", Some("auto"), "6.6");
                    ("on", "6.6")
                }
                Uuid::Auto => ("auto", "6.6"),
                Uuid::Null => ("null", "6.6"),
                Uuid::Off => ("off", "5.8"),
            };
            add("uuid", Some(value), since);
        }
        if let Some(value) = self.verity {
            let value = match value {
                Verity::On => "on",
                Verity::Require => "require",
                Verity::Off => "off",
            };
            add("verity", Some(value), "6.6");
        }
        match self.fsync {
            Some(Fsync::Volatile) => add("volatile", None, "5.10"),
            Some(Fsync::Strict) => add("fsync", Some("strict"), "7.0 or 6.18.21"),
            // Older kernels do the same, but do not know the word.
            Some(Fsync::Auto) | None => {}
        }
        words
    }

    /// Whether something was asked for that an upper layer without extended attributes cannot
    /// do, and that the kernel would then leave out.
    pub(crate) fn needs_xattrs(&self) -> bool {
        self.redirect_dir == Some(RedirectDir::On)
            || self.metacopy == Some(Metacopy::On)
            || self.index == Some(Index::On)
            || self.nfs_export == Some(NfsExport::On)
            || matches!(self.uuid, Some(Uuid::On | Uuid::Auto))
            || matches!(self.verity, Some(Verity::On | Verity::Require))
    }

    /// Refuses what the kernel would refuse with a bare `EINVAL`. An overlay that is not
    /// `writable` renames nothing, so that following redirects is all that it can do.
    pub(crate) fn check(&self, writable: bool) -> Result<()> {
        let marks = self.mark_names();
        let metacopy = self.metacopy == Some(Metacopy::On);
        let conflicts = [
            (
                marks == Marks::User && self.redirect_dir == Some(RedirectDir::On),
                "userxattr",
                "redirect_dir=on",
            ),
            (
                marks == Marks::User && self.redirect_dir == Some(RedirectDir::Follow),
                "userxattr",
                "redirect_dir=follow",
            ),
            (marks == Marks::User && metacopy, "userxattr", "metacopy=on"),
            (
                metacopy && self.nfs_export == Some(NfsExport::On),
                "metacopy=on",
                "nfs_export=on",
            ),
            (
                metacopy
                    && self.redirect_dir.is_some_and(|value| {
                        value != RedirectDir::On && (writable || value != RedirectDir::Follow)
                    }),
                "metacopy=on",
                "redirect_dir other than on",
            ),
            (
                self.nfs_export == Some(NfsExport::On) && self.index == Some(Index::Off),
                "nfs_export=on",
                "index=off",
            ),
            (
                self.metacopy == Some(Metacopy::Off)
                    && self.verity.is_some_and(|v| v != Verity::Off),
                "metacopy=off",
                "verity",
            ),
        ];
        match conflicts.into_iter().find(|(found, ..)| *found) {
            Some((_, first, second)) => Err(Error::ConflictingOptions { first, second }),
            None => Ok(()),
        }
    }
}

fn on(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// One option as the kernel reads it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    pub(crate) key: &'static str,
    pub(crate) value: Option<&'static str>,
    /// The kernel that brought it.
    pub(crate) since: &'static str,
}
