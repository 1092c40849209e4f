use crate::error::PageTableProblem;
use crate::{Error, GuestMemory, PAGE_SIZE, Result};

bitflags::bitflags! {
    /// What a mapping allows.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct MapFlags: u64 {
        /// Writes.
        const WRITE = 1 << 1;
        /// Access from privilege level 3.
        const USER = 1 << 2;
        /// No instruction is fetched from it.
        const NO_EXECUTE = 1 << 63;
    }
}

/// The size of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PageSize {
    /// 4 KiB.
    Small,
    /// 2 MiB.
    Large,
    /// 1 GiB; the CPU has to have them (`pdpe1gb`).
    Huge,
}

impl PageSize {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        1 << self.shift()
    }

    fn shift(self) -> u32 {
        12 + 9 * self.level()
    }

    /// The level of the tables whose entries are such pages, 0 being the lowest.
    fn level(self) -> u32 {
        match self {
            Self::Small => 0,
            Self::Large => 1,
            Self::Huge => 2,
        }
    }
}

/// Builds the four-level page tables of long mode.
///
/// Tables are laid out from `base` on, and no more than `room` bytes of them.
///
/// ```
/// use kvm_vcpu::{MapFlags, PageSize, PageTables};
///
/// let mut tables = PageTables::new(0x1_0000, 0x8000);
/// tables.map(0, 0, 0x20_0000, PageSize::Large, MapFlags::WRITE)?;
/// // The same memory once more, in the upper half, read-only.
/// tables.map(0xffff_8000_0000_0000, 0, 0x1000, PageSize::Small, MapFlags::empty())?;
/// let there = tables.walk(0xffff_8000_0000_0123).unwrap();
/// assert_eq!(there.physical, 0x123);
/// assert!(!there.flags.contains(MapFlags::WRITE));
/// assert_eq!(tables.walk(0x20_0000), None);
/// # Ok::<(), kvm_vcpu::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct PageTables {
    base: u64,
    room: u64,
    tables: Vec<Box<[u64; 512]>>,
}

/// Where a virtual address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address.
    pub physical: u64,
    /// What all levels together allow.
    pub flags: MapFlags,
    /// The size of the page that it is in.
    pub size: PageSize,
}

const PRESENT: u64 = 1;
/// A page that is not there and stays so. The CPU ignores all bits of an entry that is not present.
const GUARD: u64 = 1 << 9;
const PAGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Where the addresses end that an entry can hold.
const END: u64 = 1 << 52;

impl PageTables {
    /// No mappings yet; tables go to guest-physical `base`, `room` bytes at most.
    pub fn new(base: u64, room: u64) -> Self {
        Self {
            base,
            room,
            tables: vec![Box::new([0; 512])],
        }
    }

    /// Maps `len` bytes from virtual `virt` to guest-physical `physical`, in pages of one size.
    ///
    /// # Errors
    ///
    /// [`Error::PageTable`] when an address is not canonical, unaligned, too high or mapped already,
    /// or there is no room for another table. Pages before the one at fault stay mapped.
    pub fn map(
        &mut self,
        virt: u64,
        physical: u64,
        len: u64,
        size: PageSize,
        flags: MapFlags,
    ) -> Result<()> {
        let step = size.bytes();
        let refuse = |virt, problem| Error::PageTable { virt, problem };
        if [virt, physical, len]
            .iter()
            .any(|n| !n.is_multiple_of(step))
        {
            return Err(refuse(virt, PageTableProblem::Unaligned(step)));
        }
        if physical.checked_add(len).is_none_or(|end| end > END) {
            return Err(refuse(virt, PageTableProblem::TooHigh));
        }
        for offset in (0..len).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
            let virt = virt.wrapping_add(offset);
            self.map_page(virt, physical + offset, size, flags)
                .map_err(|problem| refuse(virt, problem))?;
        }
        Ok(())
    }

    /// Maps the first `len` bytes to themselves, writable, in pages of 2 MiB.
    ///
    /// # Errors
    ///
    /// As [`PageTables::map`].
    pub fn identity(&mut self, len: u64) -> Result<()> {
        self.map_start(0, len, MapFlags::WRITE)
    }

    /// Maps the first `len` bytes of guest-physical memory to the upper half, at
    /// `0xffff_8000_0000_0000`, writable and not executable, in pages of 2 MiB: where a kernel
    /// keeps its view of all memory.
    ///
    /// # Errors
    ///
    /// As [`PageTables::map`].
    pub fn higher_half(&mut self, len: u64) -> Result<()> {
        let flags = MapFlags::WRITE | MapFlags::NO_EXECUTE;
        self.map_start(Self::HIGHER_HALF, len, flags)
    }

    /// Maps the first `len` bytes of guest-physical memory.
    fn map_start(&mut self, virt: u64, len: u64, flags: MapFlags) -> Result<()> {
        let size = PageSize::Large;
        let len = len
            .checked_next_multiple_of(size.bytes())
            .ok_or(Error::PageTable {
                virt,
                problem: PageTableProblem::TooHigh,
            })?;
        self.map(virt, 0, len, size, flags)
    }

    /// Where the upper half of the addresses begins.
    pub const HIGHER_HALF: u64 = 0xffff_8000_0000_0000;

    /// Sets the page of 4 KiB at `virt` aside: it stays without memory, so that an access (a stack
    /// that overflows, as a rule) faults, and mapping it is an error.
    ///
    /// # Errors
    ///
    /// As [`PageTables::map`].
    pub fn guard(&mut self, virt: u64) -> Result<()> {
        let refuse = |problem| Error::PageTable { virt, problem };
        if !virt.is_multiple_of(PAGE_SIZE) {
            return Err(refuse(PageTableProblem::Unaligned(PAGE_SIZE)));
        }
        let slot = self.entry(virt, PageSize::Small).map_err(refuse)?;
        *slot = GUARD;
        Ok(())
    }

    /// The entry of a page that is not mapped, with the tables above it.
    fn entry(&mut self, virt: u64, size: PageSize) -> Result<&mut u64, PageTableProblem> {
        if !canonical(virt) {
            return Err(PageTableProblem::NotCanonical);
        }
        if !self.base.is_multiple_of(PAGE_SIZE) {
            return Err(PageTableProblem::Unaligned(PAGE_SIZE));
        }
        let mut table = 0;
        for level in (size.level() + 1..4).rev() {
            let slot = index(virt, level);
            let entry = self.tables[table][slot];
            table = if entry & PRESENT == 0 {
                let next = self.tables.len();
                let end = (next as u64 + 1) * PAGE_SIZE;
                if end > self.room {
                    return Err(PageTableProblem::NoRoom(self.room));
                }
                let address = self.base.checked_add(end).filter(|end| *end <= END);
                let address = address.ok_or(PageTableProblem::TooHigh)? - PAGE_SIZE;
                self.tables.push(Box::new([0; 512]));
                // The upper levels allow everything; the page itself says what is allowed.
                let all = MapFlags::WRITE | MapFlags::USER;
                self.tables[table][slot] = address | PRESENT | all.bits();
                next
            } else if entry & PAGE != 0 {
                return Err(PageTableProblem::Mapped);
            } else {
                self.table_at(entry)
            };
        }
        let slot = &mut self.tables[table][index(virt, size.level())];
        if *slot & PRESENT != 0 {
            return Err(PageTableProblem::Mapped);
        }
        if *slot & GUARD != 0 {
            return Err(PageTableProblem::Guarded);
        }
        Ok(slot)
    }

    fn map_page(
        &mut self,
        virt: u64,
        physical: u64,
        size: PageSize,
        flags: MapFlags,
    ) -> Result<(), PageTableProblem> {
        let page = if size == PageSize::Small { 0 } else { PAGE };
        *self.entry(virt, size)? = physical | PRESENT | page | flags.bits();
        Ok(())
    }

    fn table_at(&self, entry: u64) -> usize {
        // Every entry without PAGE was made by `entry` and points to one of our tables.
        ((entry & ADDRESS) - self.base) as usize / PAGE_SIZE as usize
    }

    /// Where a virtual address leads; `None` where an access would fault.
    pub fn walk(&self, virt: u64) -> Option<Translation> {
        if !canonical(virt) {
            return None;
        }
        let mut table = 0;
        let mut flags = MapFlags::WRITE | MapFlags::USER;
        for (level, size) in [
            (3, None),
            (2, Some(PageSize::Huge)),
            (1, Some(PageSize::Large)),
            (0, Some(PageSize::Small)),
        ] {
            let entry = self.tables[table][index(virt, level)];
            if entry & PRESENT == 0 {
                return None;
            }
            let here = MapFlags::from_bits_truncate(entry);
            let both = MapFlags::WRITE | MapFlags::USER;
            flags = (flags & here & both) | ((flags | here) & MapFlags::NO_EXECUTE);
            match size {
                Some(size) if level == 0 || entry & PAGE != 0 => {
                    let offset = size.bytes() - 1;
                    return Some(Translation {
                        physical: (entry & ADDRESS & !offset) | (virt & offset),
                        flags,
                        size,
                    });
                }
                _ => table = self.table_at(entry),
            }
        }
        None
    }

    /// How many bytes the tables take.
    pub fn len(&self) -> u64 {
        self.tables.len() as u64 * PAGE_SIZE
    }

    /// Whether there is no table; there is always one.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the tables into guest memory; returns the root, for `CR3`.
    ///
    /// # Errors
    ///
    /// [`Error::PageTable`] when there is no room for the topmost table, and
    /// [`Error::OutOfBounds`] when the guest has no memory where they go.
    pub fn install(&self, memory: &GuestMemory) -> Result<u64> {
        if self.len() > self.room {
            return Err(Error::PageTable {
                virt: 0,
                problem: PageTableProblem::NoRoom(self.room),
            });
        }
        for (table, address) in self.tables.iter().zip((self.base..).step_by(4096)) {
            let bytes: Vec<u8> = table.iter().flat_map(|e| e.to_le_bytes()).collect();
            memory.write(address, &bytes)?;
        }
        Ok(self.base)
    }
}

fn canonical(virt: u64) -> bool {
    let top = virt.cast_signed() >> 47;
    top == 0 || top == -1
}

fn index(virt: u64, level: u32) -> usize {
    (virt >> (12 + 9 * level)) as usize & 511
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(result: Result<()>) -> PageTableProblem {
        match result {
            Err(Error::PageTable { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn tables_where_no_entry_can_point_are_refused() {
        for (base, expected) in [
            (END - PAGE_SIZE, PageTableProblem::TooHigh),
            (END, PageTableProblem::TooHigh),
            (u64::MAX - 0xfff, PageTableProblem::TooHigh),
            (0x800, PageTableProblem::Unaligned(PAGE_SIZE)),
        ] {
            let mut tables = PageTables::new(base, u64::MAX);
            assert_eq!(problem(tables.identity(0x1000)), expected, "{base:#x}");
            assert_eq!(problem(tables.guard(0x1000)), expected, "{base:#x}");
            assert_eq!(tables.walk(0), None);
        }
        PageTables::new(END - 3 * PAGE_SIZE, u64::MAX)
            .identity(0x1000)
            .unwrap();
    }

    #[test]
    fn more_memory_than_there_can_be_is_refused() {
        for len in [u64::MAX, END + 1] {
            let mut tables = PageTables::new(0, 0x8000);
            assert_eq!(problem(tables.identity(len)), PageTableProblem::TooHigh);
            assert_eq!(problem(tables.higher_half(len)), PageTableProblem::TooHigh);
        }
    }
}
