//! Which pages of this process were ever touched, by `/proc/self/pagemap`.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::PAGE_SIZE;

/// What the kernel says of each page; `None` where `/proc` is not mounted.
pub(crate) struct PageMap(Option<File>);

impl PageMap {
    pub(crate) fn open() -> Self {
        Self(File::open("/proc/self/pagemap").ok())
    }

    /// Whether any page of these `len` bytes is in memory or swapped out. If not, what is mapped
    /// there anonymously is all zeros. Where the kernel does not tell, a page may be.
    pub(crate) fn is_touched(&self, address: usize, len: usize) -> bool {
        const ENTRY: usize = 8;
        const PRESENT: u64 = 1 << 63;
        const SWAPPED: u64 = 1 << 62;
        let Some(file) = &self.0 else {
            return true;
        };
        let pages = len.div_ceil(PAGE_SIZE as usize);
        let mut entries = vec![0; pages * ENTRY];
        let at = (address / PAGE_SIZE as usize * ENTRY) as u64;
        if file.read_exact_at(&mut entries, at).is_err() {
            return true;
        }
        entries.as_chunks::<ENTRY>().0.iter().any(|entry| {
            let entry = u64::from_ne_bytes(*entry);
            entry & (PRESENT | SWAPPED) != 0
        })
    }
}
