use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::bitmap::{AtomicBitmap, MS};
use vm_memory::{
    AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion, VolatileSlice,
};

use crate::error::{RegionList, RegionProblem};
use crate::{Error, Region, Result, sys};

/// Bytes in a page, the unit in which guest memory is laid out.
pub const PAGE_SIZE: u64 = 4096;

/// The plain-old-data types that [`GuestMemory`] reads and writes whole.
pub use vm_memory::ByteValued as Pod;

/// The pages of a region that this program wrote; `None` for a region without a log.
pub type HostLog = Option<AtomicBitmap>;

/// The type of `vm-memory` that a machine's memory is: [`GuestMemory::as_vm_memory`].
///
/// What is written through it, by `virtio-queue` for one, is in the log of dirty pages too.
pub type VmMemory = GuestMemoryMmap<HostLog>;

pub(crate) type Mapping = MmapRegion<HostLog>;

/// A part of the memory, whose writes are logged.
type Slice<'a> = VolatileSlice<'a, MS<'a, VmMemory>>;

/// The memory of a virtual machine.
///
/// A cheap clone of a handle: the memory itself lives as long as any handle, machine or vCPU that
/// uses it. All accesses are checked against the machine's regions and are volatile, because the
/// guest may write at the same time.
#[derive(Debug, Clone)]
pub struct GuestMemory {
    map: Arc<VmMemory>,
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
        sorted.sort_by_key(Region::start);
        let mut free_from = 0;
        for region in &sorted {
            let end = region.check()?;
            if region.start() < free_from {
                return Err(region.refuse(RegionProblem::Overlap));
            }
            free_from = end;
        }
        let mut mapped = Vec::with_capacity(sorted.len());
        for region in &sorted {
            mapped.push(
                GuestRegionMmap::new(region.map()?, GuestAddress(region.start()))
                    .ok_or_else(|| region.refuse(RegionProblem::TooHigh))?,
            );
        }
        // An empty collection is fine here, and `from_regions` refuses it.
        let map = if mapped.is_empty() {
            VmMemory::new()
        } else {
            VmMemory::from_regions(mapped).map_err(|e| Error::MapMemory {
                len: sorted.iter().map(Region::len).sum(),
                source: io::Error::other(e),
            })?
        };
        Ok(Self {
            map: Arc::new(map),
            regions: sorted.into(),
        })
    }

    /// The same memory as `vm-memory`'s type, for `virtio-queue` and others that work on it.
    pub fn as_vm_memory(&self) -> &Arc<VmMemory> {
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

    /// Gives the host back what these bytes are kept in: whole pages, which read as zeros afterwards,
    /// or as the file where a region maps one privately.
    ///
    /// It is for a guest that has said that it does not need them (a balloon).
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when no single region has the range; [`Error::Ioctl`] when it is no whole
    /// pages, or the region is a file whose content would be lost, or the kernel refuses.
    #[doc(alias = "MADV_DONTNEED")]
    pub fn discard(&self, address: u64, len: u64) -> Result<()> {
        let (region, mapping) = self.region_of(address, len)?;
        let failed = |source| Error::Ioctl {
            operation: "madvise (giving pages of guest memory back to the host)",
            source,
        };
        let shared = region
            .discards_shared()
            .ok_or_else(|| failed(io::ErrorKind::Unsupported.into()))?;
        let offset = (address - region.start()) as usize;
        sys::discard(&mapping, offset, len as usize, shared).map_err(failed)
    }

    /// Says that the host should keep these bytes in huge pages where it can: they are about to be used
    /// all. Touching them takes less time then, on the host's side and on the guest's.
    ///
    /// It is advice: a host without transparent huge pages goes on without.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when no single region has the range.
    #[doc(alias = "MADV_HUGEPAGE")]
    pub fn prefer_huge_pages(&self, address: u64, len: u64) -> Result<()> {
        let (region, mapping) = self.region_of(address, len)?;
        // madvise(2) wants whole pages, and a region is made of them.
        let offset = address - region.start();
        let start = offset / PAGE_SIZE * PAGE_SIZE;
        let end = (offset + len).next_multiple_of(PAGE_SIZE);
        // A kernel without them refuses.
        let _ = sys::prefer_huge_pages(&mapping, start as usize, (end - start) as usize);
        Ok(())
    }

    /// Reads from a file at an offset into ranges of guest memory (address and length), one after
    /// another, with one system call and without a copy in between; says how many bytes it read. There
    /// may be fewer than there is room for, as for any read: 0 at the file's end, and no more than fit
    /// into the first 1024 ranges.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; nothing is read then.
    /// [`Error::Ioctl`] when the file cannot be read.
    #[doc(alias = "preadv")]
    pub fn read_from(
        &self,
        file: impl AsFd,
        offset: u64,
        ranges: &[(u64, usize)],
    ) -> Result<usize> {
        let failed = |source| Error::Ioctl {
            operation: "preadv (reading a file into guest memory)",
            source,
        };
        let offset = i64::try_from(offset).map_err(|e| failed(io::Error::other(e)))?;
        sys::read_at(file.as_fd(), offset, &self.slices(ranges)?).map_err(failed)
    }

    /// Writes ranges of guest memory (address and length) to a file at an offset, as
    /// [`GuestMemory::read_from`] reads them.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; nothing is written then.
    /// [`Error::Ioctl`] when the file cannot be written.
    #[doc(alias = "pwritev")]
    pub fn write_to(&self, file: impl AsFd, offset: u64, ranges: &[(u64, usize)]) -> Result<usize> {
        let failed = |source| Error::Ioctl {
            operation: "pwritev (writing guest memory to a file)",
            source,
        };
        let offset = i64::try_from(offset).map_err(|e| failed(io::Error::other(e)))?;
        sys::write_at(file.as_fd(), offset, &self.slices(ranges)?).map_err(failed)
    }

    /// The host's side of these ranges, each of which may lie in more than one region.
    fn slices(&self, ranges: &[(u64, usize)]) -> Result<Vec<Slice<'_>>> {
        let mut slices = Vec::with_capacity(ranges.len());
        for &(address, len) in ranges {
            let start = self.check(address, len)?;
            for slice in GuestMemoryBackend::get_slices(&*self.map, start, len) {
                slices.push(slice.map_err(|_| self.out_of_bounds(address, len))?);
            }
        }
        Ok(slices)
    }

    /// The single region that has a range.
    fn region_of(&self, address: u64, len: u64) -> Result<(&Region, Arc<Mapping>)> {
        let outside = || self.out_of_bounds(address, len as usize);
        let end = address.checked_add(len).ok_or_else(outside)?;
        self.mappings()
            .find(|(r, _)| r.start() <= address && end <= r.start() + r.len())
            .ok_or_else(outside)
    }

    /// Each region with its mapping.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = (&Region, Arc<Mapping>)> {
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

    /// Writes values one after another, in the host's (little-endian) byte order.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; nothing is written then.
    pub fn write_values<T: ByteValued>(&self, address: u64, values: &[T]) -> Result<()> {
        self.check(address, size_of_val(values))?;
        let mut at = address;
        for value in values {
            self.write(at, value.as_slice())?;
            at += size_of::<T>() as u64;
        }
        Ok(())
    }

    /// Reads values one after another, in the host's (little-endian) byte order.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; `out` is unchanged then.
    pub fn read_values<T: ByteValued>(&self, address: u64, out: &mut [T]) -> Result<()> {
        self.check(address, size_of_val(out))?;
        let mut at = address;
        for value in out {
            self.read(at, value.as_mut_slice())?;
            at += size_of::<T>() as u64;
        }
        Ok(())
    }

    /// Loads an integer in one access, as another CPU would: `u32`, for instance.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; [`Error::Misaligned`] when the
    /// address is no multiple of the integer's size.
    pub fn load<T: AtomicAccess>(&self, address: u64, order: Ordering) -> Result<T> {
        let at = self.check_atomic::<T>(address)?;
        self.map
            .load(at, order)
            .map_err(|_| self.out_of_bounds(address, size_of::<T>()))
    }

    /// Stores an integer in one access, as another CPU would.
    ///
    /// # Errors
    ///
    /// Those of [`GuestMemory::load`].
    pub fn store<T: AtomicAccess>(&self, address: u64, value: T, order: Ordering) -> Result<()> {
        let at = self.check_atomic::<T>(address)?;
        self.map
            .store(value, at, order)
            .map_err(|_| self.out_of_bounds(address, size_of::<T>()))
    }

    fn check_atomic<T>(&self, address: u64) -> Result<GuestAddress> {
        let size = size_of::<T>();
        if !address.is_multiple_of(size as u64) {
            return Err(Error::Misaligned { address, size });
        }
        self.check(address, size)
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
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;
    use vm_memory::bitmap::Bitmap as _;

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
    fn values_and_integers_are_checked_before_they_are_accessed() {
        const AT: Ordering = Ordering::SeqCst;
        let m = GuestMemory::new(&[Region::anonymous(0, 0x1000)]).unwrap();
        m.write_values(0xff4, &[1u32, 2, 3]).unwrap();
        let mut values = [0u32; 3];
        m.read_values(0xff4, &mut values).unwrap();
        assert_eq!(values, [1, 2, 3]);
        assert!(m.write_values(0xff8, &[9u32; 3]).is_err());
        assert!(m.read_values(0xff8, &mut values).is_err());
        assert_eq!(values, [1, 2, 3]);
        assert_eq!(m.load::<u64>(0xff8, AT).unwrap(), 3 << 32 | 2);
        m.store(0xffc, 7u32, AT).unwrap();
        assert_eq!(m.load::<u8>(0xffc, AT).unwrap(), 7);
        assert!(matches!(
            m.load::<u32>(0xffe, AT),
            Err(Error::Misaligned {
                address: 0xffe,
                size: 4
            })
        ));
        assert!(matches!(
            m.store(0x1000, 0u64, AT),
            Err(Error::OutOfBounds { .. })
        ));
    }

    #[test]
    fn files_are_read_and_written_where_they_are_asked() {
        let m = GuestMemory::new(&[
            Region::anonymous(0, 0x1000).log_dirty(),
            Region::anonymous(0x1000, 0x3000).log_dirty(),
        ])
        .unwrap();
        let memfd = rustix::fs::memfd_create("file", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(memfd.unwrap());
        file.write_all_at(b"0123456789", 0).unwrap();
        // Over the end of a region, in an order of its own, and no further than the file goes.
        let ranges = [(0xffe, 4), (0x2000, 0), (0x2004, 100)];
        assert_eq!(m.read_from(&file, 1, &ranges).unwrap(), 9);
        assert_eq!(m.read_value::<u32>(0xffe).unwrap().to_le_bytes(), *b"1234");
        let mut rest = [0; 6];
        m.read(0x2004, &mut rest).unwrap();
        assert_eq!(&rest, b"56789\0");
        assert_eq!(m.read_from(&file, 10, &[(0, 1)]).unwrap(), 0);
        // What the kernel wrote is in the log, and no more.
        let dirty = |at: u64| {
            let region = m.map.find_region(GuestAddress(at)).unwrap();
            let offset = (at - region.start_addr().0) as usize;
            region.bitmap().dirty_at(offset)
        };
        assert_eq!(
            [0, 0x1000, 0x2000, 0x3000].map(dirty),
            [true, true, true, false]
        );
        assert_eq!(
            m.write_to(&file, 12, &[(0x2004, 2), (0xffe, 2)]).unwrap(),
            4
        );
        let mut all = [0; 16];
        file.read_exact_at(&mut all, 0).unwrap();
        assert_eq!(&all, b"0123456789\0\x005612");
        for bad in [(0x3fff, 2), (u64::MAX, 1)] {
            let ranges = [(0, 1), bad];
            assert!(matches!(
                m.read_from(&file, 0, &ranges),
                Err(Error::OutOfBounds { .. })
            ));
            assert!(m.write_to(&file, 0, &ranges).is_err());
        }
        assert!(m.read_from(&file, u64::MAX, &[(0, 1)]).is_err());
        // More ranges than the kernel takes at once.
        let many = vec![(0, 1); 2000];
        assert_eq!(m.write_to(&file, 0, &many).unwrap(), 1024);
    }

    #[test]
    fn memory_in_huge_pages_is_the_same_memory() {
        let m = GuestMemory::new(&[Region::anonymous(0, 8 << 20)]).unwrap();
        m.write_value(0x123, 7u8).unwrap();
        m.prefer_huge_pages(0x100, 6 << 20).unwrap();
        m.write_value(5 << 20, 8u8).unwrap();
        assert_eq!(m.read_value::<u8>(0x123).unwrap(), 7);
        assert_eq!(m.read_value::<u8>(5 << 20).unwrap(), 8);
        assert!(m.prefer_huge_pages(7 << 20, 2 << 20).is_err());
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
        assert!(m.discard(0x1000, 0x3000).is_err());
        assert!(m.discard(0x800, 0x1000).is_err());
        m.discard(0x3000, 0x1000).unwrap();
        assert_eq!(m.resident().unwrap(), 0x2000);
        assert_eq!(m.read_value::<u32>(0x3ffc).unwrap(), 0);
        assert!(m.read(u64::MAX, &mut [0; 2]).is_err());
    }
}
