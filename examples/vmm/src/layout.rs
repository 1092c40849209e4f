//! Where everything is in the guest's physical memory, and which interrupt lines it has.
//!
//! ```text
//! 0x0000_6000  what the boot protocol hands over: PVH's start info, Multiboot's information,
//! 0x0000_7000  or Linux's boot parameters ("zero page")
//! 0x0000_8000  page tables for the 64-bit entry
//! 0x0002_0000  the command line, at most 64 KiB
//! 0x000a_0000  (a PC's video memory and firmware: no memory that an operating system may use)
//! 0x000e_0000  ACPI tables
//! 0x0010_0000  free memory; kernels are loaded here or above, initial RAM disks at the top
//! 0xc000_0000  the hole: no memory up to 4 GiB
//! 0xd000_0000    virtio devices, a page each
//! 0xfec0_0000    I/O interrupt controller
//! 0xfee0_0000    local interrupt controllers
//! 0x1_0000_0000 the memory that did not fit below the hole
//! ```

use std::ops::Range;

use kvm_vcpu::Region;

pub(crate) const HANDOVER: u64 = 0x6000;
pub(crate) const BOOT_PARAMETERS: u64 = 0x7000;
pub(crate) const PAGE_TABLES: Range<u64> = 0x8000..0x2_0000;
pub(crate) const COMMAND_LINE: Range<u64> = 0x2_0000..0x3_0000;
/// The end of conventional memory; a PC's firmware keeps the last KiB below 640.
pub(crate) const LOW_END: u64 = 0x9_fc00;
pub(crate) const ACPI: Range<u64> = 0xe_0000..0x10_0000;
/// Where a PC's firmware is jumped to for a restart (ffff:0000), in the same range.
pub(crate) const RESET_VECTOR: u64 = 0xf_fff0;
pub(crate) const HIGH_START: u64 = 0x10_0000;

/// Devices are between 3 and 4 GiB on a PC, and so no memory is.
pub(crate) const HOLE: Range<u64> = 3 << 30..4 << 30;
pub(crate) const VIRTIO: u64 = 0xd000_0000;
pub(crate) const VIRTIO_SIZE: u64 = 0x1000;
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

/// The lines of the I/O interrupt controller in the kernel.
pub(crate) const LINES: u32 = 24;
pub(crate) const SERIAL_LINE: u32 = 4;
/// Tells the guest that it was restored: see `acpi.rs`.
pub(crate) const EVENT_LINE: u32 = 5;
/// One line for each virtio device, so many are possible.
pub(crate) const VIRTIO_LINES: Range<u32> = 6..LINES;

pub(crate) const SERIAL: Range<u16> = 0x3f8..0x400;
/// As QEMU's isa-debug-exit.
pub(crate) const EXIT_PORT: u16 = 0xf4;
/// The keyboard controller, of which only the reset is there.
pub(crate) const KEYBOARD: u16 = 0x64;
/// Writing [`RESTART`] here restarts (ACPI's reset register).
pub(crate) const RESET_PORT: u16 = 0x600;
/// ACPI's sleep control register, and the status register after it.
pub(crate) const SLEEP_PORT: u16 = 0x601;
/// Where a guest says that it panicked, as QEMU's pvpanic.
pub(crate) const PANIC_PORT: u16 = 0x505;
pub(crate) const RESTART: u8 = 1;

/// The ranges of memory of a machine with so many bytes.
pub(crate) fn ranges(memory: u64) -> Vec<Range<u64>> {
    let low = 0..memory.min(HOLE.start);
    let high = HOLE.end..HOLE.end + memory.saturating_sub(HOLE.start);
    [low, high].into_iter().filter(|r| !r.is_empty()).collect()
}

/// The same as regions for KVM.
pub(crate) fn regions(memory: u64, log_dirty: bool) -> Vec<Region> {
    let region = |r: Range<u64>| {
        let region = Region::anonymous(r.start, r.end - r.start);
        if log_dirty {
            region.log_dirty()
        } else {
            region
        }
    };
    ranges(memory).into_iter().map(region).collect()
}

/// What the guest may use of the memory, and what it must leave alone: the map that a PC's firmware
/// gives ("E820").
pub(crate) fn map(memory: u64) -> Vec<(Range<u64>, Usable)> {
    let mut map = vec![(0..LOW_END.min(memory), Usable::Yes), (ACPI, Usable::No)];
    for range in ranges(memory) {
        let range = range.start.max(HIGH_START)..range.end;
        if !range.is_empty() {
            map.push((range, Usable::Yes));
        }
    }
    map
}

/// Whether a range of memory is the guest's to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Usable {
    Yes,
    No,
}

impl Usable {
    /// The number that E820, PVH and Multiboot all have for it.
    pub(crate) fn kind(self) -> u32 {
        match self {
            Self::Yes => 1,
            Self::No => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        let ends = |memory| -> Vec<(u64, u64)> {
            let ranges = ranges(memory);
            ranges.into_iter().map(|r| (r.start, r.end)).collect()
        };
        assert_eq!(ends(16 << 20), [(0, 16 << 20)]);
        assert_eq!(ends(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ends(5 << 30), [(0, 3 << 30), (4 << 30, 6 << 30)]);
    }

    #[test]
    fn the_map_leaves_the_tables_out() {
        for memory in [2u64 << 20, 3 << 30, 9 << 30] {
            let map = map(memory);
            let usable: u64 = map
                .iter()
                .filter(|(_, u)| *u == Usable::Yes)
                .map(|(r, _)| r.end - r.start)
                .sum();
            assert_eq!(usable, memory - (HIGH_START - LOW_END));
            assert!(map.is_sorted_by_key(|(r, _)| r.start));
        }
    }
}
