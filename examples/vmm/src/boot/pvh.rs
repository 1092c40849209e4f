//! PVH: the entry that Xen defined and Linux, FreeBSD and others have, in 32-bit protected mode.
//!
//! See `xen/include/public/arch-x86/hvm/start_info.h`. An ELF note names the entry.

use std::fs::File;
use std::path::Path;

use kvm_vcpu::{GuestMemory, Mode, load_elf64};

use super::{Entry, put_command_line, put_ramdisk};
use crate::error::Error;
use crate::layout::{self, BOOT_PARAMETERS, COMMAND_LINE, HANDOVER};

const MAGIC: u32 = 0x336e_c578;
/// `XEN_ELFNOTE_PHYS32_ENTRY`.
const NOTE: u32 = 18;
const PT_NOTE: u32 = 4;

/// The entry that an ELF file's note names.
pub(crate) fn entry(image: &[u8]) -> Option<u32> {
    if image.get(..5)? != b"\x7fELF\x02" {
        return None;
    }
    let number = |at: usize, len: usize| -> Option<u64> {
        let mut bytes = [0; 8];
        bytes[..len].copy_from_slice(image.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(bytes))
    };
    let size = |at, len| number(at, len).and_then(|n| usize::try_from(n).ok());
    let (table, entry_size, count) = (size(32, 8)?, size(54, 2)?, size(56, 2)?);
    for i in 0..count {
        let header = table.checked_add(i.checked_mul(entry_size)?)?;
        if number(header, 4)? != u64::from(PT_NOTE) {
            continue;
        }
        let start = size(header.checked_add(8)?, 8)?;
        let end = start.checked_add(size(header.checked_add(32)?, 8)?)?;
        let mut notes = image.get(start..end)?;
        while let Some((head, rest)) = notes.split_first_chunk::<12>() {
            let field =
                |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
            let (name_len, len) = (field(0) as usize, field(4) as usize);
            let padded = name_len.checked_next_multiple_of(4)?;
            let Some(value) = rest.get(padded..padded.checked_add(len)?) else {
                break;
            };
            if field(8) == NOTE && rest.get(..4) == Some(b"Xen\0") {
                return Some(u32::from_le_bytes(value.get(..4)?.try_into().ok()?));
            }
            let next = padded.checked_add(len.checked_next_multiple_of(4)?)?;
            notes = rest.get(next..).unwrap_or(&[]);
        }
    }
    None
}

/// Loads an ELF kernel with a PVH entry.
pub(crate) fn load(
    path: &Path,
    image: &[u8],
    initrd: Option<(&Path, &mut File)>,
    command_line: &str,
    memory: &GuestMemory,
) -> Result<Entry, Error> {
    let entry = entry(image).ok_or_else(|| Error::NotBootable {
        path: path.to_owned(),
        problem: "it has no PVH entry (an ELF note of Xen, type 18)",
    })?;
    let loaded = load_elf64(memory, image).map_err(|source| Error::Load {
        path: path.to_owned(),
        source,
    })?;
    put_command_line(memory, command_line, 2047)?;
    // The modules and the memory map follow the start info, in the next page.
    let modules = BOOT_PARAMETERS;
    let map_at = BOOT_PARAMETERS + 32;
    let ramdisk = initrd
        .map(|initrd| put_ramdisk(memory, initrd, u64::from(u32::MAX), loaded.end))
        .transpose()?;
    if let Some(ramdisk) = ramdisk {
        memory.write_value(modules, ramdisk.start)?;
        memory.write_value(modules + 8, ramdisk.len)?;
    }
    let map = layout::map(memory.size());
    for ((range, usable), i) in map.iter().zip(0u64..) {
        let at = map_at + 24 * i;
        memory.write_value(at, range.start)?;
        memory.write_value(at + 8, range.end - range.start)?;
        memory.write_value(at + 16, u64::from(usable.kind()))?;
    }
    memory.write_value(HANDOVER, MAGIC)?;
    // Version 1, the first with a memory map; flags.
    memory.write_value(HANDOVER + 4, 1u64)?;
    memory.write_value(HANDOVER + 8, 0u32)?;
    memory.write_value(HANDOVER + 12, u32::from(ramdisk.is_some()))?;
    memory.write_value(HANDOVER + 16, modules)?;
    memory.write_value(HANDOVER + 24, COMMAND_LINE.start)?;
    memory.write_value(HANDOVER + 32, layout::ACPI.start)?;
    memory.write_value(HANDOVER + 40, map_at)?;
    memory.write_value(HANDOVER + 48, map.len() as u64)?;
    Ok(Entry {
        rbx: HANDOVER,
        ..Entry::new(Mode::protected(entry).with_stack(layout::LOW_END & !0xf))
    })
}
