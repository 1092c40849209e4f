//! What an archive says about a file.

/// What kind of file an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TarKind {
    /// A regular file.
    Regular,
    /// Another name of a file that came before.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl TarKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            TarKind::Regular => "regular file",
            TarKind::Hardlink => "hard link",
            TarKind::Symlink => "symbolic link",
            TarKind::Char => "character device",
            TarKind::Block => "block device",
            TarKind::Directory => "directory",
            TarKind::Fifo => "named pipe",
        }
    }
}

/// One entry of an archive, with extended headers applied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TarEntry {
    /// The name, as it stands in the archive.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: TarKind,
    /// The target of a link.
    pub link: Vec<u8>,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    /// The owner.
    pub uid: u64,
    /// The group.
    pub gid: u64,
    /// Last modification: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of the file's contents, holes included.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes in the archive's order.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// The access control list, as text (acl(5)), where the archive does not have it as an attribute.
    pub acl_access: Option<Vec<u8>>,
    /// The access control list for what is made in a directory, as text.
    pub acl_default: Option<Vec<u8>>,
    /// Offset and length of the parts that the archive holds, for a sparse file.
    pub sparse: Option<Vec<(u64, u64)>>,
    /// Where the entry's first header starts in the archive, in bytes.
    pub offset: u64,
}
