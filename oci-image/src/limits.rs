//! How much an image may take.

use crate::error::{Error, Result};

/// Caps on what an image may make this crate read, hold or write.
///
/// An image is somebody else's data: without caps, a few kilobytes could fill the disk or the memory. The defaults
/// let every ordinary image pass.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of a manifest, an index or a configuration, and of the list of what is in an archive of images; a registry's
    /// list of tags may have sixteen times as many. Default 4 MiB, which is also what registries accept.
    pub document_bytes: u64,
    /// Bytes of one uncompressed layer, holes of sparse files included. Default 64 GiB.
    pub layer_bytes: u64,
    /// Entries of one layer or archive. Default 4 million.
    pub entries: u64,
    /// Directories above one entry. Default 256.
    pub depth: u64,
    /// Bytes of the extended headers (PAX, GNU long names, sparse maps) of one entry. Default 1 MiB.
    pub extension_bytes: u64,
    /// Bytes of memory for directories of one layer that can be closed only in the end: those whose mode keeps their own
    /// user out, and those with access control lists. Default 16 MiB, which is some hundred thousand of them.
    pub deferred_bytes: u64,
    /// How many bytes a Zstandard frame may refer back, which the decoder must keep. Default 8 MiB, which is what RFC
    /// 8878 asks decoders for and what the `zstd` program needs up to level 19. A layer takes that much memory while it
    /// is read; counted in powers of two, up to 2 GiB.
    pub zstd_window_bytes: u64,
    /// Bytes of `/etc/passwd` and `/etc/group` each, when a user is looked up. Default 4 MiB.
    pub user_file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            document_bytes: 4 << 20,
            layer_bytes: 64 << 30,
            entries: 4_000_000,
            depth: 256,
            extension_bytes: 1 << 20,
            deferred_bytes: 16 << 20,
            zstd_window_bytes: 8 << 20,
            user_file_bytes: 4 << 20,
        }
    }
}

/// Refuses what has more bytes than `limit`, which is the field `setting` of [`Limits`].
pub(crate) fn check_bytes(
    what: &'static str,
    found: u64,
    limit: u64,
    setting: &'static str,
) -> Result<()> {
    if found > limit {
        return Err(Error::Limit {
            what,
            found,
            unit: "bytes",
            limit,
            setting,
        });
    }
    Ok(())
}
