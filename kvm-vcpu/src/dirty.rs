use std::fs::File;
use std::os::unix::fs::FileExt;

use kvm_bindings::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2;
use vm_memory::bitmap::{AtomicBitmap, Bitmap};

use crate::error::ioctl;
use crate::memory::Mapping;
use crate::{Error, PAGE_SIZE, Region, Result, Vm, sys};

/// Pages that the kernel takes in one `KVM_CLEAR_DIRTY_LOG` have to begin and end at multiples of this.
const CLEAR_UNIT: u64 = 64;

impl Vm {
    /// Which pages of the region that starts at `start` were written since the last time, by the
    /// guest or by this program through [`GuestMemory`](crate::GuestMemory); forgets them.
    ///
    /// What another process writes to a shared file or memfd is not among them.
    ///
    /// # Errors
    ///
    /// [`Error::NotLogged`] when no region with [`Region::log_dirty`] starts there;
    /// [`Error::Ioctl`] when the kernel does not answer.
    #[doc(alias = "KVM_GET_DIRTY_LOG")]
    pub fn take_dirty(&self, start: u64) -> Result<DirtyPages> {
        let (slot, mapping) = self.logged(start)?;
        let mut dirty = self.guest_log(slot, start, mapping.size())?;
        if self.inner.clears_dirty_itself() || self.inner.dirty_rings().is_some() {
            self.clear_guest_log(slot, &dirty)?;
        }
        if let Some(log) = mapping.bitmap() {
            dirty.add(log.get_and_reset());
        }
        Ok(dirty)
    }

    /// Which pages were written, without forgetting them: [`Vm::clear_dirty`] does. Clear first and copy
    /// then, so that what is written while it is copied is logged anew.
    ///
    /// # Errors
    ///
    /// [`Error::NeedsManualLog`] without [`Vm::log_dirty_until_cleared`]; those of [`Vm::take_dirty`].
    #[doc(alias = "KVM_GET_DIRTY_LOG")]
    pub fn dirty(&self, start: u64) -> Result<DirtyPages> {
        let (slot, mapping) = self.logged(start)?;
        if !self.inner.clears_dirty_itself() {
            return Err(Error::NeedsManualLog);
        }
        let mut dirty = self.guest_log(slot, start, mapping.size())?;
        if let Some(log) = mapping.bitmap() {
            dirty.add(host_pages(log));
        }
        Ok(dirty)
    }

    /// Forgets these pages, and no others: those that are copied next. The kernel protects them anew,
    /// instead of the whole region at once.
    ///
    /// # Errors
    ///
    /// [`Error::NeedsManualLog`] without [`Vm::log_dirty_until_cleared`]; those of [`Vm::take_dirty`].
    #[doc(alias = "KVM_CLEAR_DIRTY_LOG")]
    pub fn clear_dirty(&self, pages: &DirtyPages) -> Result<()> {
        let (slot, mapping) = self.logged(pages.start)?;
        if !self.inner.clears_dirty_itself() {
            return Err(Error::NeedsManualLog);
        }
        if let Some(log) = mapping.bitmap() {
            for page in pages.iter() {
                let offset = (page - pages.start) as usize;
                log.reset_addr_range(offset, PAGE_SIZE as usize);
            }
        }
        self.clear_guest_log(slot, pages)
    }

    /// Keeps pages in the log until [`Vm::clear_dirty`] (or [`Vm::take_dirty`]) takes them out.
    ///
    /// Minimum kernel: 5.2.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] on older kernels.
    #[doc(alias = "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2")]
    pub fn log_dirty_until_cleared(&self) -> Result<()> {
        if self.inner.dirty_rings().is_some() {
            // What is read out of the rings stays until it is cleared as it is.
            self.inner.note_manual_log();
            return Ok(());
        }
        let cap = kvm_bindings::kvm_enable_cap {
            cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            args: [1, 0, 0, 0],
            ..Default::default()
        };
        self.fd().enable_cap(&cap).map_err(|_| Error::Unsupported {
            capability: "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
            advice: "use a kernel of 5.2 or newer, or Vm::take_dirty alone",
        })?;
        self.inner.note_manual_log();
        Ok(())
    }

    /// Brings a file that [`GuestMemory::save`](crate::GuestMemory::save) made up to date: writes the
    /// pages that were written since the log was last taken, and returns how many. The vCPUs must not
    /// run meanwhile.
    ///
    /// The file must not be one that a machine was restored from and still maps: pages that it has
    /// not touched yet would change under it. Make a copy (`cp --reflink=auto`) first.
    ///
    /// # Errors
    ///
    /// [`Error::CannotSave`] when a region keeps no log, and [`Error::MemoryFile`] when the file has
    /// another size or cannot be written. The pages are in the log again then.
    pub fn save_dirty(&self, file: &File) -> Result<u64> {
        let memory = self.memory();
        if !memory.regions().iter().all(Region::is_logged) {
            return Err(Error::CannotSave {
                what: "only what changed of memory whose changes are not logged",
                advice: "make every region with Region::log_dirty, or save all with GuestMemory::save",
            });
        }
        let write = |source| Error::MemoryFile {
            operation: "bring a file of the guest's memory up to date",
            source,
        };
        let found = file.metadata().map_err(write)?.len();
        if found != memory.size() {
            return Err(write(std::io::Error::other(format!(
                "the file has {found} bytes and the guest's memory {}",
                memory.size()
            ))));
        }
        let mut count = 0;
        let mut offset = 0;
        let mut page = [0; PAGE_SIZE as usize];
        for (region, mapping) in memory.mappings() {
            let dirty = self.take_dirty(region.start())?;
            let written = dirty.iter().try_for_each(|address| {
                memory.read(address, &mut page)?;
                let at = offset + (address - region.start());
                file.write_all_at(&page, at).map_err(write)
            });
            if let Err(e) = written {
                if let Some(log) = mapping.bitmap() {
                    for address in dirty.iter() {
                        log.set_addr_range((address - region.start()) as usize, PAGE_SIZE as usize);
                    }
                }
                return Err(e);
            }
            count += dirty.count();
            offset += region.len();
        }
        Ok(count)
    }

    /// The memory slot and mapping of the logged region that starts there.
    fn logged(&self, start: u64) -> Result<(u32, std::sync::Arc<Mapping>)> {
        (0..)
            .zip(self.memory().mappings())
            .find(|(_, (region, _))| region.start() == start && region.is_logged())
            .map(|(slot, (_, mapping))| (slot, mapping))
            .ok_or(Error::NotLogged { start })
    }

    fn guest_log(&self, slot: u32, start: u64, size: usize) -> Result<DirtyPages> {
        let pages = size as u64 / PAGE_SIZE;
        let bits = match self.inner.dirty_rings() {
            Some(rings) => rings.pages(self, slot, pages.div_ceil(64) as usize)?,
            None => self
                .fd()
                .get_dirty_log(slot, size)
                .map_err(ioctl("KVM_GET_DIRTY_LOG (asking which pages were written)"))?,
        };
        Ok(DirtyPages { start, pages, bits })
    }

    fn clear_guest_log(&self, slot: u32, dirty: &DirtyPages) -> Result<()> {
        if let Some(rings) = self.inner.dirty_rings() {
            rings.clear(slot, &dirty.bits);
            return Ok(());
        }
        // Runs of words in which there is anything, so that the rest stays as it is.
        let mut at = 0;
        for run in dirty.bits.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
            let first = at as u64 * CLEAR_UNIT;
            at += run.len();
            if run[0] == 0 {
                continue;
            }
            let pages = (run.len() as u64 * CLEAR_UNIT).min(dirty.pages - first);
            sys::clear_dirty_log(self.fd(), slot, first, pages, run).map_err(|source| {
                Error::Ioctl {
                    operation: "KVM_CLEAR_DIRTY_LOG (forgetting pages that were written)",
                    source,
                }
            })?;
        }
        Ok(())
    }
}

/// What the host wrote, as it stands.
fn host_pages(log: &AtomicBitmap) -> Vec<u64> {
    let mut bits = vec![0; log.len().div_ceil(64)];
    for page in (0..log.len()).filter(|page| log.dirty_at(page * PAGE_SIZE as usize)) {
        bits[page / 64] |= 1 << (page % 64);
    }
    bits
}

/// The pages of a region that were written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyPages {
    start: u64,
    /// How many the region has.
    pages: u64,
    bits: Vec<u64>,
}

impl DirtyPages {
    /// The guest-physical addresses of the pages, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.bits.iter().zip(0u64..).flat_map(move |(word, i)| {
            (0..64)
                .filter(move |bit| word >> bit & 1 != 0)
                .map(move |bit| self.start + (i * 64 + bit) * PAGE_SIZE)
        })
    }

    /// How many pages there are.
    pub fn count(&self) -> u64 {
        self.bits.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    fn add(&mut self, others: Vec<u64>) {
        for (word, other) in self.bits.iter_mut().zip(others) {
            *word |= other;
        }
    }
}
