use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, kvm_enable_cap};

use crate::error::ioctl;
use crate::sys::{DirtyRing, RING_ENTRY, reset_dirty_rings};
use crate::{Error, PAGE_SIZE, Result, Vm};

/// The rings of a machine's vCPUs, and what has been read out of them.
#[derive(Debug)]
pub(crate) struct DirtyRings {
    entries: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rings: Vec<DirtyRing>,
    /// Whether pages were lost.
    overflowed: bool,
    /// By memory slot, a bit for each page.
    pages: BTreeMap<u32, Vec<u64>>,
}

impl Vm {
    /// Logs dirty pages in a ring of this many entries for each vCPU, instead of in a bitmap for each
    /// region: the cost of asking is that of the pages written, not of all pages. Before the
    /// first vCPU.
    ///
    /// [`Vm::take_dirty`] and the others work as before. A ring that is full stops its vCPU with
    /// [`Exit::DirtyRingFull`](crate::Exit::DirtyRingFull): call [`Vm::harvest_dirty_rings`], or one of
    /// those, and run on.
    ///
    /// Minimum kernel: 5.11.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] on older kernels; [`Error::Order`] when there are vCPUs already;
    /// [`Error::DirtyRingSize`] for a number of entries that cannot be.
    #[doc(alias = "KVM_CAP_DIRTY_LOG_RING")]
    #[doc(alias = "KVM_CAP_DIRTY_LOG_RING_ACQ_REL")]
    pub fn log_dirty_in_rings(&self, entries: u32) -> Result<()> {
        self.before_vcpus("log_dirty_in_rings")?;
        // The same on x86, whose stores are in order; newer kernels may have the former alone.
        let found = [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING]
            .map(|cap| (cap, self.extent_of(cap)))
            .into_iter()
            .find(|(_, bytes)| *bytes > 0);
        let Some((cap, max_bytes)) = found else {
            return Err(Error::Unsupported {
                capability: "KVM_CAP_DIRTY_LOG_RING",
                advice: "use a kernel of 5.11 or newer, or the log without rings",
            });
        };
        let refuse = || Error::DirtyRingSize {
            entries,
            max: max_bytes / RING_ENTRY as u32,
        };
        let bytes = u64::from(entries) * RING_ENTRY;
        if !entries.is_power_of_two() || bytes < PAGE_SIZE || bytes > max_bytes.into() {
            return Err(refuse());
        }
        self.fd()
            .enable_cap(&kvm_enable_cap {
                cap,
                args: [bytes, 0, 0, 0],
                ..Default::default()
            })
            .map_err(|e| match e.errno() {
                // Fewer entries than the CPU may log between two exits; or a second time.
                libc::EINVAL => refuse(),
                _ => ioctl(
                    "KVM_ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING (making rings of dirty pages)",
                )(e),
            })?;
        self.inner.note_dirty_rings(DirtyRings {
            entries,
            state: Mutex::default(),
        });
        Ok(())
    }

    /// Empties the vCPUs' rings of dirty pages, also while they run, so that those go on whose ring is
    /// full; returns how many pages there were. They stay in the log until [`Vm::take_dirty`] or
    /// [`Vm::clear_dirty`].
    ///
    /// # Errors
    ///
    /// [`Error::NoDirtyRings`] without [`Vm::log_dirty_in_rings`]; [`Error::DirtyRingOverflow`] when the
    /// kernel stopped a vCPU too late; [`Error::Ioctl`] when it refuses.
    #[doc(alias = "KVM_RESET_DIRTY_RINGS")]
    pub fn harvest_dirty_rings(&self) -> Result<u64> {
        let rings = self.inner.dirty_rings().ok_or(Error::NoDirtyRings)?;
        rings.harvest(self)
    }
}

impl DirtyRings {
    /// Takes a new vCPU's ring in.
    pub(crate) fn add(&self, vcpu: &impl AsRawFd) -> Result<()> {
        let ring = DirtyRing::map(vcpu, self.entries).map_err(|source| Error::Ioctl {
            operation: "mmap (of a vCPU's ring of dirty pages)",
            source,
        })?;
        self.lock().rings.push(ring);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn harvest(&self, vm: &Vm) -> Result<u64> {
        let State {
            rings,
            overflowed,
            pages,
        } = &mut *self.lock();
        let mut count = 0;
        for ring in rings {
            let harvested = ring.harvest(|slot, page| {
                // The upper half is the address space, system management's being the second.
                let bits = pages.entry(slot & 0xffff).or_default();
                let word = (page / 64) as usize;
                if word >= bits.len() {
                    bits.resize(word + 1, 0);
                }
                bits[word] |= 1 << (page % 64);
            });
            // The kernel stops the vCPU while some entries are free. If none is, it may have written over
            // others, and has lost its place.
            *overflowed |= harvested == self.entries;
            count += u64::from(harvested);
        }
        if *overflowed {
            return Err(Error::DirtyRingOverflow {
                entries: self.entries,
            });
        }
        // Before the pages are copied, so that what is written meanwhile is logged anew.
        reset_dirty_rings(vm.fd()).map_err(|source| Error::Ioctl {
            operation: "KVM_RESET_DIRTY_RINGS (emptying the rings of dirty pages)",
            source,
        })?;
        Ok(count)
    }

    /// What a slot's pages are now, in this many words.
    pub(crate) fn pages(&self, vm: &Vm, slot: u32, words: usize) -> Result<Vec<u64>> {
        self.harvest(vm)?;
        let mut bits = self.lock().pages.get(&slot).cloned().unwrap_or_default();
        bits.resize(words, 0);
        Ok(bits)
    }

    /// Forgets these pages of a slot.
    pub(crate) fn clear(&self, slot: u32, cleared: &[u64]) {
        if let Some(bits) = self.lock().pages.get_mut(&slot) {
            for (word, cleared) in bits.iter_mut().zip(cleared) {
                *word &= !cleared;
            }
        }
    }
}
