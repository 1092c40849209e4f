//! What a registry client tells while it works.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::digest::Digest;

/// Something that happened during a pull or a push. Blobs are handled side by side, so events of several are mixed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// A blob begins to move.
    Started {
        /// The blob.
        digest: Digest,
        /// Its size in bytes.
        size: u64,
    },
    /// Some bytes of a blob have moved.
    Moved {
        /// The blob.
        digest: Digest,
        /// Bytes since the event before.
        bytes: u64,
    },
    /// A blob has moved as a whole and was verified.
    Finished {
        /// The blob.
        digest: Digest,
    },
    /// A blob is there already.
    Present {
        /// The blob.
        digest: Digest,
    },
    /// The registry took a blob over from another of its repositories.
    Mounted {
        /// The blob.
        digest: Digest,
        /// The other repository.
        from: String,
    },
    /// A request failed and will be tried again.
    Retrying {
        /// Where, without the query.
        url: String,
        /// Which attempt has failed, from 1.
        attempt: u32,
        /// How long it waits before the next.
        wait: Duration,
        /// Why it failed.
        reason: String,
    },
    /// A blob goes on from here, after a break.
    Resumed {
        /// The blob.
        digest: Digest,
        /// Bytes that are there already.
        offset: u64,
    },
}

/// Who is told.
#[derive(Clone, Default)]
pub(crate) struct Listener(pub(crate) Option<Arc<Listen>>);

type Listen = dyn Fn(&Progress) + Send + Sync;

impl Listener {
    pub(crate) fn tell(&self, event: impl FnOnce() -> Progress) {
        if let Some(listener) = &self.0 {
            listener(&event());
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some" } else { "None" })
    }
}
