//! Multiboot 1, which GRUB made and many teaching kernels have: 32-bit protected mode.
//!
//! See <https://www.gnu.org/software/grub/manual/multiboot/multiboot.html>.

use std::fs::File;
use std::path::Path;

use kvm_vcpu::{GuestMemory, Mode};

use super::{Entry, put_command_line, put_ramdisk};
use crate::error::Error;
use crate::layout::{self, BOOT_PARAMETERS, COMMAND_LINE, HANDOVER, LOW_END};

const MAGIC: u32 = 0x1bad_b002;
/// What the kernel finds in `eax`.
const LOADER_MAGIC: u32 = 0x2bad_b002;
/// The header is in the first so many bytes.
const SEARCHED: usize = 8192;
/// The header says where it has to be loaded.
const HAS_ADDRESSES: u32 = 1 << 16;
/// Requirements that this loader can meet: modules on pages, and a memory map.
const KNOWN: u32 = 0b11;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    at: usize,
    flags: u32,
}

/// Whether a file has a Multiboot header.
pub(crate) fn is_multiboot(image: &[u8]) -> bool {
    header(image).is_some()
}

fn word(image: &[u8], at: usize) -> Option<u32> {
    let bytes = image.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn header(image: &[u8]) -> Option<Header> {
    (0..SEARCHED.min(image.len())).step_by(4).find_map(|at| {
        let (magic, flags, sum) = (word(image, at)?, word(image, at + 4)?, word(image, at + 8)?);
        let sums_up = magic.wrapping_add(flags).wrapping_add(sum) == 0;
        (magic == MAGIC && sums_up).then_some(Header { at, flags })
    })
}

/// Where a kernel was put, and where it starts.
struct Placed {
    entry: u32,
    end: u64,
}

/// Loads a kernel with a Multiboot header; an initial RAM disk is its first module.
pub(crate) fn load(
    path: &Path,
    image: &[u8],
    initrd: Option<(&Path, &mut File)>,
    command_line: &str,
    memory: &GuestMemory,
) -> Result<Entry, Error> {
    let bad = |problem| Error::NotBootable {
        path: path.to_owned(),
        problem,
    };
    let header = header(image).ok_or_else(|| bad("it has no Multiboot header"))?;
    if header.flags & 0xffff & !KNOWN != 0 {
        return Err(bad(
            "its Multiboot header requires what there is not (a video mode, for instance)",
        ));
    }
    let placed = if header.flags & HAS_ADDRESSES == 0 {
        place_elf32(image, memory)
    } else {
        place_by_header(image, header, memory)
    }
    .ok_or_else(|| bad("its addresses do not fit the file or the machine's memory"))?;
    put_command_line(memory, command_line, u64::MAX)?;
    let ramdisk = initrd
        .map(|initrd| put_ramdisk(memory, initrd, u64::from(u32::MAX), placed.end))
        .transpose()?;

    // Memory sizes, command line, modules, map.
    let flags = 1u32 | 1 << 2 | 1 << 3 | 1 << 6;
    let low32 = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let low_end = memory.size().min(layout::HOLE.start);
    let modules = BOOT_PARAMETERS;
    let map_at = BOOT_PARAMETERS + 16;
    if let Some(r) = ramdisk {
        memory.write_value(modules, low32(r.start))?;
        memory.write_value(modules + 4, low32(r.start + r.len))?;
    }
    let map = layout::map(memory.size());
    for ((range, usable), i) in map.iter().zip(0u64..) {
        let at = map_at + 24 * i;
        memory.write_value(at, 20u32)?;
        memory.write_value(at + 4, range.start)?;
        memory.write_value(at + 12, range.end - range.start)?;
        memory.write_value(at + 20, usable.kind())?;
    }
    let put = |at: u64, value: u32| memory.write_value(HANDOVER + at, value);
    put(0, flags)?;
    put(4, low32(LOW_END >> 10))?;
    put(8, low32(low_end.saturating_sub(layout::HIGH_START) >> 10))?;
    put(16, low32(COMMAND_LINE.start))?;
    put(20, u32::from(ramdisk.is_some()))?;
    put(24, low32(modules))?;
    put(44, 24 * low32(map.len() as u64))?;
    put(48, low32(map_at))?;
    Ok(Entry {
        rax: LOADER_MAGIC.into(),
        rbx: HANDOVER,
        ..Entry::new(Mode::protected(placed.entry).with_stack(LOW_END & !0xf))
    })
}

/// Loads what the header's own addresses say.
fn place_by_header(image: &[u8], header: Header, memory: &GuestMemory) -> Option<Placed> {
    let field = |i: usize| word(image, header.at + 12 + 4 * i);
    let (header_at, load, load_end, bss_end, entry) =
        (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let skipped = usize::try_from(header_at.checked_sub(load)?).ok()?;
    let from = header.at.checked_sub(skipped)?;
    let len = match load_end {
        0 => image.len() - from,
        end => usize::try_from(end.checked_sub(load)?).ok()?,
    };
    let bytes = image.get(from..from.checked_add(len)?)?;
    let end = u64::from(load) + len as u64;
    memory.write(load.into(), bytes).ok()?;
    let bss = u64::from(bss_end).saturating_sub(end);
    memory.fill(end, usize::try_from(bss).ok()?, 0).ok()?;
    Some(Placed {
        entry,
        end: end + bss,
    })
}

/// Loads the segments of a 32-bit ELF file.
fn place_elf32(image: &[u8], memory: &GuestMemory) -> Option<Placed> {
    const PT_LOAD: u32 = 1;
    if image.get(..5)? != b"\x7fELF\x01" {
        return None;
    }
    let half = |at: usize| Some(u16::from_le_bytes(image.get(at..at + 2)?.try_into().ok()?));
    let table = word(image, 28)? as usize;
    let (size, count) = (usize::from(half(42)?), usize::from(half(44)?));
    let mut end = 0;
    for i in 0..count {
        let at = table.checked_add(size * i)?;
        if word(image, at)? != PT_LOAD {
            continue;
        }
        let field = |i: usize| word(image, at + 4 * i);
        let (offset, to, in_file, in_memory) = (field(1)?, field(3)?, field(4)?, field(5)?);
        let offset = offset as usize;
        let bytes = image.get(offset..offset.checked_add(in_file as usize)?)?;
        memory.write(to.into(), bytes).ok()?;
        let file_end = u64::from(to) + u64::from(in_file);
        let zeros = in_memory.saturating_sub(in_file) as usize;
        memory.fill(file_end, zeros, 0).ok()?;
        end = end.max(file_end + zeros as u64);
    }
    Some(Placed {
        entry: word(image, 24)?,
        end,
    })
}
