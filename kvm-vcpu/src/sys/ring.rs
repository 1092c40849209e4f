//! The ring of pages that a vCPU wrote, which the kernel fills and this program empties.

use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use kvm_bindings::KVM_DIRTY_LOG_PAGE_OFFSET;
use kvm_ioctls::VmFd;

use super::done;
use crate::PAGE_SIZE;

/// `_IO(KVMIO, 0xc7)`
const KVM_RESET_DIRTY_RINGS: libc::Ioctl = 0xAEC7;

/// The kernel has filled the entry (`KVM_DIRTY_GFN_F_DIRTY`).
const DIRTY: u32 = 1;
/// This program has read it (`KVM_DIRTY_GFN_F_RESET`).
const RESET: u32 = 2;

/// `struct kvm_dirty_gfn`, which the kernel writes at the same time as we read.
#[repr(C)]
#[derive(Debug)]
struct Entry {
    flags: AtomicU32,
    slot: AtomicU32,
    /// In the slot.
    page: AtomicU64,
}

/// How long one entry is in bytes.
pub(crate) const ENTRY: u64 = size_of::<Entry>() as u64;

/// A vCPU's ring. The mapping keeps the vCPU's file open, not the guest's memory, which a vCPU that
/// nobody can run does not touch.
#[derive(Debug)]
pub(crate) struct DirtyRing {
    base: NonNull<Entry>,
    entries: u32,
    /// The entry to be read next.
    next: u32,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is read through `&mut self` alone.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of a vCPU whose machine has rings of this many entries.
    pub(crate) fn map(vcpu: &impl AsRawFd, entries: u32) -> io::Result<Self> {
        let offset = u64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_SIZE;
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                Self::bytes(entries),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                offset.cast_signed(),
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self {
            base,
            entries,
            next: 0,
        })
    }

    fn bytes(entries: u32) -> usize {
        entries as usize * ENTRY as usize
    }

    /// Reads what the kernel has filled, at most once around: the memory slot, and the page in it.
    pub(crate) fn harvest(&mut self, mut each: impl FnMut(u32, u64)) -> u32 {
        for count in 0..self.entries {
            let Entry { flags, slot, page } = self.entry(self.next);
            // The kernel writes the rest before the flag.
            if flags.load(Ordering::Acquire) & DIRTY == 0 {
                return count;
            }
            each(slot.load(Ordering::Relaxed), page.load(Ordering::Relaxed));
            // And uses the entry again only after it has seen this one.
            flags.store(RESET, Ordering::Release);
            self.next = (self.next + 1) % self.entries;
        }
        self.entries
    }

    fn entry(&self, index: u32) -> &Entry {
        let index = index % self.entries;
        // SAFETY: the index is below the mapping's length in entries.
        let entry = unsafe { self.base.add(index as usize) };
        // SAFETY: the entry lies in the mapping, which lives as long as `self`, and is aligned, as the
        // mapping is to a page. What the kernel changes meanwhile are atomics.
        unsafe { entry.as_ref() }
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` made, and no reference into it outlives a call.
        unsafe { libc::munmap(self.base.as_ptr().cast(), Self::bytes(self.entries)) };
    }
}

/// Lets the kernel use the entries that were read again, and protects their pages anew.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> io::Result<()> {
    // SAFETY: KVM_RESET_DIRTY_RINGS takes no argument.
    done(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_RESET_DIRTY_RINGS, 0) })
}
