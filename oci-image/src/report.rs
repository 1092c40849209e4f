//! What unpacking did, and what it left out.

/// What unpacking did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnpackReport {
    /// Entries of the layer, whiteouts included.
    pub entries: u64,
    /// Bytes of file contents that were written.
    pub bytes: u64,
    /// Whiteouts, opaque directories included.
    pub whiteouts: u64,
    /// Entries whose owner was replaced by [`Ownership::Squash`](crate::Ownership::Squash).
    pub squashed: u64,
    /// The layer hides everything below it. overlayfs does not look for that mark on a root: leave the layers below out
    /// of the mount.
    pub opaque_root: bool,
    /// What was left out, in the order of the layer; at most [`UnpackReport::MAX_SKIPPED`] of them.
    pub skipped: Vec<Skipped>,
    /// How many more were left out than [`skipped`](UnpackReport::skipped) names.
    pub skipped_more: u64,
}

/// Something of a layer that is not in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The entry's name, up to the 4096 bytes that a path can have.
    pub entry: String,
    /// What of it was left out, and why.
    pub reason: SkipReason,
}

/// What was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// A device node, as [`Devices::Skip`](crate::Devices::Skip) asks.
    Device {
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A character device 0/0, which overlayfs would take for a whiteout.
    WhiteoutDevice,
    /// An attribute of overlayfs, which would make it follow the image's orders.
    OverlayXattr(String),
    /// An attribute that the filesystem or the kernel refuses.
    Xattr(String),
    /// Bookkeeping of AUFS.
    Aufs,
}

impl UnpackReport {
    /// How many skipped things are named; an image may hold millions.
    pub const MAX_SKIPPED: usize = 1000;

    pub(crate) fn skip(&mut self, entry: &[u8], reason: SkipReason) {
        if self.skipped.len() < Self::MAX_SKIPPED {
            self.skipped.push(Skipped {
                entry: String::from_utf8_lossy(&entry[..entry.len().min(4096)]).into_owned(),
                reason,
            });
        } else {
            self.skipped_more += 1;
        }
    }

    /// Adds what another layer's unpacking did.
    pub fn add(&mut self, other: UnpackReport) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.whiteouts += other.whiteouts;
        self.squashed += other.squashed;
        self.opaque_root |= other.opaque_root;
        let room = Self::MAX_SKIPPED.saturating_sub(self.skipped.len());
        self.skipped_more += other.skipped_more + other.skipped.len().saturating_sub(room) as u64;
        self.skipped.extend(other.skipped.into_iter().take(room));
    }
}
