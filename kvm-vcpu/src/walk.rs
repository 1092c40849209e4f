use std::fmt;

use crate::regs::bits;
use crate::{GuestMemory, MapFlags, PageSize, Result, Translation, Vcpu};

/// A guest's own page tables, as the CPU walks them for one address in long mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageWalk {
    /// The virtual address.
    pub virt: u64,
    /// The entries that were looked at, from the topmost on.
    pub steps: Vec<WalkStep>,
    /// Where it leads; `None` when an access would fault.
    pub translation: Option<Translation>,
}

/// One entry of a page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalkStep {
    /// The level, 1 being the lowest.
    pub level: u8,
    /// The guest-physical address of the entry.
    pub address: u64,
    /// The entry; `None` when the guest has no memory there.
    pub entry: Option<u64>,
}

const PRESENT: u64 = 1;
const PAGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl PageWalk {
    /// Walks tables of this many levels (4 or 5) from `root` on.
    pub fn new(memory: &GuestMemory, root: u64, levels: u8, virt: u64) -> Self {
        let mut walk = Self {
            virt,
            steps: Vec::new(),
            translation: None,
        };
        let mut table = root & ADDRESS;
        let mut flags = MapFlags::WRITE | MapFlags::USER;
        for level in (1..=levels.clamp(1, 5)).rev() {
            let shift = 12 + 9 * (u32::from(level) - 1);
            let address = table + (virt >> shift & 511) * 8;
            let entry = memory.read_value::<u64>(address).ok();
            walk.steps.push(WalkStep {
                level,
                address,
                entry,
            });
            let Some(entry) = entry.filter(|entry| entry & PRESENT != 0) else {
                return walk;
            };
            let here = MapFlags::from_bits_truncate(entry);
            let both = MapFlags::WRITE | MapFlags::USER;
            flags = (flags & here & both) | ((flags | here) & MapFlags::NO_EXECUTE);
            let size = match level {
                1 => PageSize::Small,
                2 if entry & PAGE != 0 => PageSize::Large,
                3 if entry & PAGE != 0 => PageSize::Huge,
                _ => {
                    table = entry & ADDRESS;
                    continue;
                }
            };
            let offset = size.bytes() - 1;
            walk.translation = Some(Translation {
                physical: (entry & ADDRESS & !offset) | (virt & offset),
                flags,
                size,
            });
            return walk;
        }
        walk
    }
}

impl Vcpu {
    /// Walks the guest's page tables for an address; `None` when it is not in long mode.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not tell the registers.
    pub fn page_walk(&self, virt: u64) -> Result<Option<PageWalk>> {
        let sregs = self.system_registers()?;
        if sregs.cr0 & bits::CR0_PG == 0 || sregs.efer & bits::EFER_LMA == 0 {
            return Ok(None);
        }
        let levels = if sregs.cr4 & bits::CR4_LA57 != 0 {
            5
        } else {
            4
        };
        Ok(Some(PageWalk::new(self.memory(), sregs.cr3, levels, virt)))
    }
}

impl fmt::Display for PageWalk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "page walk of {:#x}:", self.virt)?;
        for step in &self.steps {
            write!(f, "  level {} at {:#010x}: ", step.level, step.address)?;
            match step.entry {
                None => writeln!(f, "no memory there")?,
                Some(entry) if entry & PRESENT == 0 => writeln!(f, "{entry:#018x}, not present")?,
                Some(entry) => writeln!(f, "{entry:#018x}")?,
            }
        }
        match self.translation {
            None => write!(f, "  not mapped"),
            Some(to) => {
                let may = |flag, text| if to.flags.contains(flag) { text } else { "" };
                write!(
                    f,
                    "  physical {:#x} in a page of {} KiB, read{}{}{}",
                    to.physical,
                    to.size.bytes() >> 10,
                    may(MapFlags::WRITE, ", write"),
                    may(MapFlags::USER, ", user"),
                    may(MapFlags::NO_EXECUTE, ", no execution")
                )
            }
        }
    }
}
