use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::error::{RegionList, RegionProblem};
use crate::{Error, Result, sys};

/// Bytes in a page, the unit in which guest memory is laid out.
pub const PAGE_SIZE: u64 = 4096;

/// The plain-old-data types that [`GuestMemory`] reads and writes whole.
pub use vm_memory::ByteValued as Pod;

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
    /// ([`GuestMemory::file_at`]): it can neither shrink nor grow.
    ///
    /// Minimum kernel: 3.17.
    #[doc(alias = "memfd_create")]
    pub fn memfd(start: u64, len: u64) -> Self {
        Self::with(start, len, Backing::Memfd)
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

    /// Keeps a log of the pages that the guest writes: [`Vm::take_dirty`](crate::Vm::take_dirty).
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

    fn refuse(&self, problem: RegionProblem) -> Error {
        Error::Region {
            start: self.start,
            len: self.len,
            problem,
        }
    }

    /// Checks what can be said of a region alone; returns its end.
    fn check(&self) -> Result<u64> {
        if self.len == 0 {
            return Err(self.refuse(RegionProblem::Empty));
        }
        if !self.start.is_multiple_of(PAGE_SIZE) || !self.len.is_multiple_of(PAGE_SIZE) {
            return Err(self.refuse(RegionProblem::Unaligned));
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
    fn map(&self) -> Result<MmapRegion> {
        let len = usize::try_from(self.len).map_err(|_| self.refuse(RegionProblem::TooHigh))?;
        let builder =
            MmapRegionBuilder::new(len).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
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

/// The memory of a virtual machine.
///
/// A cheap clone of a handle: the memory itself lives as long as any handle, machine or vCPU that
/// uses it. All accesses are checked against the machine's regions and are volatile, because the
/// guest may write at the same time.
#[derive(Debug, Clone)]
pub struct GuestMemory {
    map: Arc<GuestMemoryMmap>,
    /// As many as the map has, in the same order.
    regions: Arc<[Region]>,
}

impl GuestMemory {
    /// Memory with these regions, for [`Vm::with_memory`](crate::Vm::with_memory).
    ///
    /// # Errors
    ///
    /// [`Error::Region`] when a region is empty, unaligned, too high, or overlaps another;
    /// [`Error::MapMemory`] when the host has no memory for it.
    pub fn new(regions: &[Region]) -> Result<Self> {
        let mut sorted = regions.to_vec();
        sorted.sort_by_key(|r| r.start);
        let mut free_from = 0;
        for region in &sorted {
            let end = region.check()?;
            if region.start < free_from {
                return Err(region.refuse(RegionProblem::Overlap));
            }
            free_from = end;
        }
        let mut mapped = Vec::with_capacity(sorted.len());
        for region in &sorted {
            mapped.push(
                GuestRegionMmap::new(region.map()?, GuestAddress(region.start))
                    .ok_or_else(|| region.refuse(RegionProblem::TooHigh))?,
            );
        }
        // An empty collection is fine here, and `from_regions` refuses it.
        let map = if mapped.is_empty() {
            GuestMemoryMmap::new()
        } else {
            GuestMemoryMmap::from_regions(mapped).map_err(|e| Error::MapMemory {
                len: sorted.iter().map(|r| r.len).sum(),
                source: io::Error::other(e),
            })?
        };
        Ok(Self {
            map: Arc::new(map),
            regions: sorted.into(),
        })
    }

    /// The same memory as `vm-memory`'s type, for `virtio-queue` and others that work on it.
    pub fn as_vm_memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.map
    }

    /// The regions, by address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The file that the region with this address maps, and the address's offset in it; `None` for
    /// memory that no file is behind.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when no region has the address.
    pub fn file_at(&self, address: u64) -> Result<Option<(BorrowedFd<'_>, u64)>> {
        let region = self
            .map
            .find_region(GuestAddress(address))
            .ok_or_else(|| self.out_of_bounds(address, 1))?;
        Ok(region.file_offset().map(|f| {
            let offset = f.start() + (address - region.start_addr().0);
            (f.file().as_fd(), offset)
        }))
    }

    /// How many bytes the guest has in all regions.
    pub fn size(&self) -> u64 {
        self.map.iter().map(GuestMemoryRegion::len).sum()
    }

    /// How many bytes of it the host has pages for: what the guest has touched so far.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not tell.
    #[doc(alias = "mincore")]
    pub fn resident(&self) -> Result<u64> {
        self.map.iter().try_fold(0, |sum, region| {
            let bytes = sys::resident(&region.get_mmap()).map_err(|source| Error::Ioctl {
                operation: "mincore (counting the guest's resident pages)",
                source,
            })?;
            Ok(sum + bytes)
        })
    }

    /// Each region with its mapping.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (&Region, Arc<MmapRegion>)> {
        let mappings = self.map.iter().map(GuestRegionMmap::get_mmap);
        self.regions.iter().zip(mappings)
    }

    fn out_of_bounds(&self, address: u64, len: usize) -> Error {
        Error::OutOfBounds {
            address,
            len,
            regions: RegionList(
                self.map
                    .iter()
                    .map(|r| (r.start_addr().0, r.len()))
                    .collect(),
            ),
        }
    }

    /// Checks that these bytes exist, so that an access is made whole or not at all.
    fn check(&self, address: u64, len: usize) -> Result<GuestAddress> {
        let start = GuestAddress(address);
        if len == 0 || GuestMemoryBackend::check_range(&*self.map, start, len) {
            Ok(start)
        } else {
            Err(self.out_of_bounds(address, len))
        }
    }

    /// Copies bytes into the guest.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; nothing is written then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let start = self.check(address, bytes.len())?;
        self.map
            .write_slice(bytes, start)
            .map_err(|_| self.out_of_bounds(address, bytes.len()))
    }

    /// Copies bytes out of the guest.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; `out` is unchanged then.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<()> {
        let start = self.check(address, out.len())?;
        let len = out.len();
        self.map
            .read_slice(out, start)
            .map_err(|_| self.out_of_bounds(address, len))
    }

    /// Writes one value, in the host's (little-endian) byte order.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses.
    pub fn write_value<T: ByteValued>(&self, address: u64, value: T) -> Result<()> {
        self.write(address, value.as_slice())
    }

    /// Reads one value, in the host's (little-endian) byte order.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses.
    pub fn read_value<T: ByteValued + Default>(&self, address: u64) -> Result<T> {
        let mut value = T::default();
        self.read(address, value.as_mut_slice())?;
        Ok(value)
    }

    /// Fills a range with one byte.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; nothing is written then.
    pub fn fill(&self, address: u64, len: usize, byte: u8) -> Result<()> {
        self.check(address, len)?;
        let chunk = [byte; 4096];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(chunk.len());
            self.write(address + done as u64, &chunk[..n])?;
            done += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(regions: &[Region]) -> RegionProblem {
        match GuestMemory::new(regions) {
            Err(Error::Region { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn bad_regions_are_named() {
        let r = Region::anonymous;
        assert_eq!(problem(&[r(0, 0)]), RegionProblem::Empty);
        assert_eq!(problem(&[r(1, 4096)]), RegionProblem::Unaligned);
        assert_eq!(problem(&[r(0, 4097)]), RegionProblem::Unaligned);
        assert_eq!(
            problem(&[r(0x2000, 0x1000), r(0, 0x3000)]),
            RegionProblem::Overlap
        );
        assert_eq!(problem(&[r(u64::MAX - 4095, 8192)]), RegionProblem::TooHigh);
    }

    #[test]
    fn accesses_are_whole_or_not_at_all() {
        let m = GuestMemory::new(&[
            Region::anonymous(0x3000, 0x1000),
            Region::anonymous(0, 0x2000),
        ])
        .unwrap();
        assert_eq!(m.size(), 0x3000);
        m.write(0xfff, &[1, 2]).unwrap();
        assert_eq!(m.read_value::<u16>(0xfff).unwrap(), 0x0201);
        let e = m.write(0x1fff, &[7, 7]).unwrap_err();
        assert_eq!(
            e.to_string(),
            "guest memory has no 2 bytes at 0x1fff: the machine's regions are 0x0..0x2000, 0x3000..0x4000"
        );
        assert_eq!(m.read_value::<u8>(0x1fff).unwrap(), 0);
        assert_eq!(m.resident().unwrap(), 0x2000);
        m.fill(0x3000, 0x1000, 0xab).unwrap();
        assert_eq!(m.resident().unwrap(), 0x3000);
        assert_eq!(m.read_value::<u32>(0x3ffc).unwrap(), 0xabab_abab);
        assert!(m.fill(0x3001, 0x1000, 0).is_err());
        assert!(m.read(u64::MAX, &mut [0; 2]).is_err());
    }
}
