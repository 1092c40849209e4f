use crate::error::ImageProblem;
use crate::load::{self, u32_at};
use crate::{Error, GuestMemory, Loaded, Mode, Result, load_flat};

/// Where a multiboot header may be, and how it is aligned.
const SEARCHED: usize = 8192;
const MAGIC: u32 = 0x1bad_b002;
/// Header flags 0 to 15 that are not among these ask for what a loader must refuse if it cannot give it:
/// modules on page boundaries and a memory map it can.
const KNOWN: u32 = 0b11;
/// The header itself says where to load.
const ADDRESSES: u32 = 1 << 16;

/// What the information for the guest says: memory sizes, command line, memory map, loader's name.
const INFO: u32 = 1 | 1 << 2 | 1 << 6 | 1 << 9;
/// Where in the information its variable parts begin.
const INFO_LEN: usize = 120;
const AVAILABLE: u32 = 1;

/// Loads a kernel by the Multiboot protocol (version 1), with its boot information at `info`: a command
/// line and a map of the guest's memory. Returns where it is and the mode that enters it.
///
/// The image is an ELF32 or ELF64 executable, or one whose multiboot header says where it goes.
///
/// # Errors
///
/// [`Error::Image`], which says what is wrong with the file; [`Error::OutOfBounds`] when the guest has no
/// memory at `info`.
pub fn load_multiboot(
    memory: &GuestMemory,
    image: &[u8],
    command_line: &str,
    info: u32,
) -> Result<(Loaded, Mode)> {
    let header = find_header(image)?;
    let flags = u32_at(image, header + 4)?;
    if flags & 0xffff & !KNOWN != 0 {
        return Err(ImageProblem::MultibootFeature(flags & 0xffff & !KNOWN).into());
    }
    let loaded = if flags & ADDRESSES == 0 {
        load::load_elf(memory, image)?
    } else {
        load_by_addresses(memory, image, header)?
    };
    let entry =
        u32::try_from(loaded.entry).map_err(|_| ImageProblem::EntryOutside(loaded.entry))?;
    memory.write(info.into(), &information(memory, command_line, info))?;
    Ok((loaded, Mode::multiboot(entry, info)))
}

fn find_header(image: &[u8]) -> Result<usize, ImageProblem> {
    if image.is_empty() {
        return Err(ImageProblem::Empty);
    }
    (0..image.len().min(SEARCHED))
        .step_by(4)
        .find(|&at| {
            let word = |i: usize| u32_at(image, at + 4 * i).unwrap_or(0);
            word(0) == MAGIC && word(0).wrapping_add(word(1)).wrapping_add(word(2)) == 0
        })
        .ok_or(ImageProblem::NotMultiboot)
}

fn load_by_addresses(memory: &GuestMemory, image: &[u8], header: usize) -> Result<Loaded> {
    let field = |i: usize| u32_at(image, header + 12 + 4 * i);
    let (header_address, start) = (field(0)?, field(1)?);
    let (data_end, bss_end, entry) = (field(2)?, field(3)?, field(4)?);
    // The header's own place in the file tells where the file's part begins.
    let before = header_address
        .checked_sub(start)
        .ok_or(ImageProblem::Truncated)?;
    let from = header
        .checked_sub(before as usize)
        .ok_or(ImageProblem::Truncated)?;
    let bytes = match data_end {
        0 => image.get(from..),
        end => end
            .checked_sub(start)
            .and_then(|len| image.get(from..from.checked_add(len as usize)?)),
    }
    .ok_or(ImageProblem::Truncated)?;
    let mut loaded = load_flat(memory, bytes, start.into())?;
    if let Some(rest) = u64::from(bss_end).checked_sub(loaded.end) {
        let end = u64::from(bss_end);
        let too_big = |_: Error| ImageProblem::TooBig {
            start: loaded.start,
            end,
        };
        memory.fill(loaded.end, rest as usize, 0).map_err(too_big)?;
        loaded.end = end;
    }
    loaded.entry = entry.into();
    if (loaded.start..loaded.end).contains(&loaded.entry) {
        Ok(loaded)
    } else {
        Err(ImageProblem::EntryOutside(loaded.entry).into())
    }
}

/// The structure that `ebx` points to, with what it points to behind it.
fn information(memory: &GuestMemory, command_line: &str, at: u32) -> Vec<u8> {
    let mut info = vec![0; INFO_LEN];
    let mut put = |offset: usize, value: u32| {
        info[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    };
    let kib = |start: u64| {
        let regions = memory.regions().iter();
        let mut ends = regions.map(|r| (r.start(), r.start() + r.len()));
        let there = ends.find(|(first, end)| (*first..*end).contains(&start));
        let len = there.map_or(0, |(_, end)| end - start);
        u32::try_from(len >> 10).unwrap_or(u32::MAX)
    };
    let map: Vec<u8> = memory
        .regions()
        .iter()
        .flat_map(|region| {
            let mut entry = Vec::from(20u32.to_le_bytes());
            entry.extend(region.start().to_le_bytes());
            entry.extend(region.len().to_le_bytes());
            entry.extend(AVAILABLE.to_le_bytes());
            entry
        })
        .collect();
    let name = b"cofferdam\0";
    let map_at = INFO_LEN;
    let name_at = map_at + map.len();
    let line_at = name_at + name.len();
    put(0, INFO);
    // In KiB: below 1 MiB, at most 640, and from there on.
    put(4, kib(0).min(640));
    put(8, kib(1 << 20));
    put(16, at.wrapping_add(line_at as u32));
    put(44, map.len() as u32);
    put(48, at.wrapping_add(map_at as u32));
    put(64, at.wrapping_add(name_at as u32));
    info.extend(map);
    info.extend(name);
    info.extend(command_line.as_bytes());
    info.push(0);
    info
}
