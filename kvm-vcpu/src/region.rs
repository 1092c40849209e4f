use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::FileOffset;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};

use crate::error::RegionProblem;
use crate::memory::{HostLog, Mapping};
use crate::{Error, PAGE_SIZE, Result};

/// A range of guest-physical addresses that has memory.
///
/// Addresses and lengths are in bytes and must be multiples of [`PAGE_SIZE`]; they are checked when
/// the memory is made. What no region covers is a hole, where accesses are
/// [`Exit::MmioRead`](crate::Exit::MmioRead) and [`Exit::MmioWrite`](crate::Exit::MmioWrite).
#[derive(Debug, Clone)]
pub struct Region {
    start: u64,
    len: u64,
    backing: Backing,
    read_only: bool,
    log_dirty: bool,
}

#[derive(Debug, Clone)]
enum Backing {
    Anonymous,
    HugePages,
    File {
        file: Arc<File>,
        offset: u64,
        shared: bool,
    },
    Memfd,
    /// The file is made with the machine that it belongs to.
    GuestMemfd(Option<Arc<File>>),
}

impl Region {
    /// Zeroed memory that the host gives as the guest touches it.
    pub fn anonymous(start: u64, len: u64) -> Self {
        Self::with(start, len, Backing::Anonymous)
    }

    /// Zeroed memory in huge pages of the default size, which the host has to have set aside
    /// (`/proc/sys/vm/nr_hugepages`).
    #[doc(alias = "MAP_HUGETLB")]
    pub fn huge_pages(start: u64, len: u64) -> Self {
        Self::with(start, len, Backing::HugePages)
    }

    /// Zeroed memory in a new sealed memfd, which can be handed to another process
    /// ([`GuestMemory::file_at`](crate::GuestMemory::file_at)): it can neither shrink nor grow.
    ///
    /// Minimum kernel: 3.17.
    #[doc(alias = "memfd_create")]
    pub fn memfd(start: u64, len: u64) -> Self {
        Self::with(start, len, Backing::Memfd)
    }

    /// Zeroed memory in a `guest_memfd`: a file that belongs to one machine alone, which other processes
    /// can map only if they are handed it ([`GuestMemory::file_at`](crate::GuestMemory::file_at)), and
    /// nobody can read or write otherwise. Give it to [`Kvm::create_vm`](crate::Kvm::create_vm); it can be neither
    /// read-only nor logged.
    ///
    /// Minimum kernel: 6.18, the first that lets an ordinary machine's be mapped.
    #[doc(alias = "KVM_CREATE_GUEST_MEMFD")]
    #[doc(alias = "KVM_MEM_GUEST_MEMFD")]
    pub fn guest_memfd(start: u64, len: u64) -> Self {
        Self::with(start, len, Backing::GuestMemfd(None))
    }

    /// A file's contents from `offset` on: what the guest writes reaches the file.
    ///
    /// The file must stay as long as it is: touching a page that was cut off ends the program
    /// with `SIGBUS`.
    #[doc(alias = "MAP_SHARED")]
    pub fn file_shared(start: u64, len: u64, file: impl Into<File>, offset: u64) -> Self {
        Self::with(start, len, Backing::file(file, offset, true))
    }

    /// A file's contents from `offset` on, copied page by page when they are written: the file is
    /// not changed, and pages are read when they are needed.
    ///
    /// The file must stay as long as it is: touching a page that was cut off ends the program
    /// with `SIGBUS`.
    #[doc(alias = "MAP_PRIVATE")]
    pub fn file_private(start: u64, len: u64, file: impl Into<File>, offset: u64) -> Self {
        Self::with(start, len, Backing::file(file, offset, false))
    }

    fn with(start: u64, len: u64, backing: Backing) -> Self {
        Self {
            start,
            len,
            backing,
            read_only: false,
            log_dirty: false,
        }
    }

    /// Lets the guest read but not write it: writes become
    /// [`Exit::MmioWrite`](crate::Exit::MmioWrite). The host can write it.
    #[doc(alias = "KVM_MEM_READONLY")]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Keeps a log of the pages that are written, by the guest or by this program through
    /// [`GuestMemory`](crate::GuestMemory): [`Vm::take_dirty`](crate::Vm::take_dirty).
    #[doc(alias = "KVM_MEM_LOG_DIRTY_PAGES")]
    pub fn log_dirty(mut self) -> Self {
        self.log_dirty = true;
        self
    }

    /// The guest-physical address of the first byte.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no bytes; no machine takes such a region.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the guest cannot write it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether the pages that are written are logged.
    pub fn is_logged(&self) -> bool {
        self.log_dirty
    }

    /// Whether pages can be given back, and if so whether others see it: `None` for a file whose content
    /// would be lost.
    pub(crate) fn discards_shared(&self) -> Option<bool> {
        match self.backing {
            Backing::File { shared: true, .. } => None,
            Backing::Memfd | Backing::GuestMemfd(_) => Some(true),
            _ => Some(false),
        }
    }

    /// Whether it is all zeros but for what was touched since it was mapped.
    pub(crate) fn is_anonymous(&self) -> bool {
        matches!(self.backing, Backing::Anonymous | Backing::HugePages)
    }

    /// Whether it still lacks the file that only a machine can make.
    pub(crate) fn wants_guest_memfd(&self) -> bool {
        matches!(self.backing, Backing::GuestMemfd(None))
    }

    /// With the file that its machine made.
    pub(crate) fn with_guest_memfd(mut self, file: File) -> Self {
        self.backing = Backing::GuestMemfd(Some(Arc::new(file)));
        self
    }

    pub(crate) fn is_guest_memfd(&self) -> bool {
        matches!(self.backing, Backing::GuestMemfd(_))
    }

    /// The memory slot's flags.
    pub(crate) fn flags(&self) -> u32 {
        let read_only = if self.read_only { KVM_MEM_READONLY } else { 0 };
        let log = if self.log_dirty {
            KVM_MEM_LOG_DIRTY_PAGES
        } else {
            0
        };
        read_only | log
    }

    pub(crate) fn refuse(&self, problem: RegionProblem) -> Error {
        Error::Region {
            start: self.start,
            len: self.len,
            problem,
        }
    }

    /// Checks what can be said of a region alone; returns its end.
    pub(crate) fn check(&self) -> Result<u64> {
        if self.len == 0 {
            return Err(self.refuse(RegionProblem::Empty));
        }
        if !self.start.is_multiple_of(PAGE_SIZE) || !self.len.is_multiple_of(PAGE_SIZE) {
            return Err(self.refuse(RegionProblem::Unaligned));
        }
        if self.is_guest_memfd() && (self.read_only || self.log_dirty) {
            return Err(self.refuse(RegionProblem::GuestMemfdFlags));
        }
        if let Backing::File { file, offset, .. } = &self.backing {
            if !offset.is_multiple_of(PAGE_SIZE) {
                return Err(self.refuse(RegionProblem::Unaligned));
            }
            let size = file.metadata().map_err(|e| self.unmapped(e))?.len();
            if offset.checked_add(self.len).is_none_or(|end| end > size) {
                return Err(self.refuse(RegionProblem::FileTooShort));
            }
        }
        self.start
            .checked_add(self.len)
            .filter(|end| *end <= 1 << 52)
            .ok_or_else(|| self.refuse(RegionProblem::TooHigh))
    }

    fn unmapped(&self, source: io::Error) -> Error {
        let len = self.len;
        match self.backing {
            Backing::HugePages => Error::MapHugePages { len, source },
            _ => Error::MapMemory { len, source },
        }
    }

    /// Maps it. The host may always write, so that no access of ours can fault; what the guest may
    /// do is up to the memory slot.
    pub(crate) fn map(&self) -> Result<Mapping> {
        let len = usize::try_from(self.len).map_err(|_| self.refuse(RegionProblem::TooHigh))?;
        let builder = MmapRegionBuilder::new_with_bitmap(len, self.host_log(len))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
        let private = libc::MAP_PRIVATE | libc::MAP_NORESERVE;
        let builder = match &self.backing {
            Backing::Anonymous => builder.with_mmap_flags(private | libc::MAP_ANONYMOUS),
            // Reserved at once: a huge page that is missing later would be a SIGBUS.
            Backing::HugePages => builder
                .with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB)
                .with_hugetlbfs(true),
            Backing::File {
                file,
                offset,
                shared,
            } => builder
                .with_mmap_flags(if *shared { libc::MAP_SHARED } else { private })
                .with_file_offset(FileOffset::from_arc(file.clone(), *offset)),
            Backing::GuestMemfd(file) => {
                let file = file
                    .as_ref()
                    .ok_or_else(|| self.refuse(RegionProblem::NeedsMachine))?;
                builder
                    .with_mmap_flags(libc::MAP_SHARED)
                    .with_file_offset(FileOffset::from_arc(file.clone(), 0))
            }
            Backing::Memfd => {
                let file = self.sealed_memfd().map_err(|e| self.unmapped(e.into()))?;
                builder
                    .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
                    .with_file_offset(FileOffset::new(file, 0))
            }
        };
        builder.build().map_err(|e| {
            self.unmapped(match e {
                MmapRegionError::Mmap(e) => e,
                other => io::Error::other(other),
            })
        })
    }

    /// Where the host's own writes are noted, beside the kernel's log of the guest's.
    fn host_log(&self, len: usize) -> HostLog {
        const PAGE: NonZeroUsize = NonZeroUsize::new(PAGE_SIZE as usize).unwrap();
        self.log_dirty.then(|| AtomicBitmap::new(len, PAGE))
    }

    fn sealed_memfd(&self) -> rustix::io::Result<File> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("guest-memory", flags)?;
        ftruncate(&file, self.len)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals)?;
        Ok(file.into())
    }
}

impl Backing {
    fn file(file: impl Into<File>, offset: u64, shared: bool) -> Self {
        Self::File {
            file: Arc::new(file.into()),
            offset,
            shared,
        }
    }
}
