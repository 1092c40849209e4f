use crate::error::ImageProblem;
use crate::{Error, GuestMemory, Result};

/// A program in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loaded {
    /// The address of its first instruction.
    pub entry: u64,
    /// The lowest guest-physical address that it takes.
    pub start: u64,
    /// The address after the highest.
    pub end: u64,
}

/// Loads a flat binary, whose first byte is its first instruction, at an address.
///
/// # Errors
///
/// [`Error::Image`] when it is empty or the guest has no memory for it.
pub fn load_flat(memory: &GuestMemory, image: &[u8], at: u64) -> Result<Loaded> {
    if image.is_empty() {
        return Err(ImageProblem::Empty.into());
    }
    let end = at.saturating_add(image.len() as u64);
    memory
        .write(at, image)
        .map_err(|_| ImageProblem::TooBig { start: at, end })?;
    Ok(Loaded {
        entry: at,
        start: at,
        end,
    })
}

const EHDR32_LEN: usize = 52;
const PHDR_LEN: usize = 56;
const PHDR32_LEN: usize = 32;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const EM_386: u16 = 3;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;

/// Loads a statically linked ELF64 executable for x86-64 at the physical addresses that its program
/// headers name; the entry point is what the file says.
///
/// Segments that are longer in memory than in the file are filled up with zeros.
///
/// # Errors
///
/// [`Error::Image`], which says what is wrong with the file.
pub fn load_elf64(memory: &GuestMemory, image: &[u8]) -> Result<Loaded> {
    let header = ElfHeader::read(image)?;
    if header.class == Class::Elf32 {
        return Err(ImageProblem::WrongMachine.into());
    }
    load_segments(memory, image, &header)
}

/// Loads an executable of 32 or 64 bits.
pub(crate) fn load_elf(memory: &GuestMemory, image: &[u8]) -> Result<Loaded> {
    load_segments(memory, image, &ElfHeader::read(image)?)
}

fn load_segments(memory: &GuestMemory, image: &[u8], header: &ElfHeader) -> Result<Loaded> {
    let headers = header.program_headers(image)?;
    let mut loaded: Option<Loaded> = None;
    let entry = header.entry;
    let mut entry_inside = false;
    for header in headers {
        if header.memory_size == 0 {
            continue;
        }
        let file_end = header.offset.checked_add(header.file_size);
        let bytes = file_end
            .and_then(|end| {
                let range = usize::try_from(header.offset).ok()?..usize::try_from(end).ok()?;
                image.get(range)
            })
            .ok_or(ImageProblem::Truncated)?;
        if header.file_size > header.memory_size {
            return Err(ImageProblem::Truncated.into());
        }
        let (start, end) = (
            header.physical,
            header.physical.saturating_add(header.memory_size),
        );
        let too_big = |_: Error| ImageProblem::TooBig { start, end };
        memory.write(start, bytes).map_err(too_big)?;
        let rest = usize::try_from(header.memory_size - header.file_size)
            .map_err(|_| ImageProblem::TooBig { start, end })?;
        memory
            .fill(start + header.file_size, rest, 0)
            .map_err(too_big)?;
        entry_inside |= entry
            .checked_sub(header.virt)
            .is_some_and(|offset| offset < header.memory_size)
            || (start..end).contains(&entry);
        let so_far = loaded.get_or_insert(Loaded { entry, start, end });
        so_far.start = so_far.start.min(start);
        so_far.end = so_far.end.max(end);
    }
    let loaded = loaded.ok_or(ImageProblem::NoSegments)?;
    if entry_inside {
        Ok(loaded)
    } else {
        Err(ImageProblem::EntryOutside(entry).into())
    }
}

struct ProgramHeader {
    offset: u64,
    virt: u64,
    physical: u64,
    file_size: u64,
    memory_size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Elf32,
    Elf64,
}

/// What an ELF file says of itself.
struct ElfHeader {
    class: Class,
    entry: u64,
    /// Where its program headers are, how long each is, and how many there are.
    table: u64,
    size: u16,
    count: u16,
}

impl ElfHeader {
    fn read(image: &[u8]) -> Result<Self, ImageProblem> {
        if image.is_empty() {
            return Err(ImageProblem::Empty);
        }
        if !image.starts_with(b"\x7fELF") {
            return Err(ImageProblem::NotElf);
        }
        if image.len() < EHDR32_LEN {
            return Err(ImageProblem::Truncated);
        }
        // ELFCLASS, little-endian, and the machine.
        let class = match (image[4], image[5], u16_at(image, 18)?) {
            (1, 1, EM_386) => Class::Elf32,
            (2, 1, EM_X86_64) => Class::Elf64,
            _ => return Err(ImageProblem::WrongMachine),
        };
        match u16_at(image, 16)? {
            ET_EXEC | ET_DYN => {}
            other => return Err(ImageProblem::NotExecutable(other)),
        }
        let (entry, table, sizes, least) = match class {
            Class::Elf32 => (
                u32_at(image, 24)?.into(),
                u32_at(image, 28)?.into(),
                42,
                PHDR32_LEN,
            ),
            Class::Elf64 => (u64_at(image, 24)?, u64_at(image, 32)?, 54, PHDR_LEN),
        };
        let (size, count) = (u16_at(image, sizes)?, u16_at(image, sizes + 2)?);
        if count > 0 && usize::from(size) < least {
            return Err(ImageProblem::Truncated);
        }
        Ok(Self {
            class,
            entry,
            table,
            size,
            count,
        })
    }

    /// The loadable segments.
    fn program_headers(&self, image: &[u8]) -> Result<Vec<ProgramHeader>, ImageProblem> {
        let table = usize::try_from(self.table).map_err(|_| ImageProblem::Truncated)?;
        let mut headers = Vec::new();
        for i in 0..usize::from(self.count) {
            let at = table
                .checked_add(i * usize::from(self.size))
                .ok_or(ImageProblem::Truncated)?;
            if u32_at(image, at)? != PT_LOAD {
                continue;
            }
            headers.push(match self.class {
                Class::Elf32 => ProgramHeader {
                    offset: u32_at(image, at + 4)?.into(),
                    virt: u32_at(image, at + 8)?.into(),
                    physical: u32_at(image, at + 12)?.into(),
                    file_size: u32_at(image, at + 16)?.into(),
                    memory_size: u32_at(image, at + 20)?.into(),
                },
                Class::Elf64 => ProgramHeader {
                    offset: u64_at(image, at + 8)?,
                    virt: u64_at(image, at + 16)?,
                    physical: u64_at(image, at + 24)?,
                    file_size: u64_at(image, at + 32)?,
                    memory_size: u64_at(image, at + 40)?,
                },
            });
        }
        Ok(headers)
    }
}

fn bytes_at<const N: usize>(image: &[u8], at: usize) -> Result<[u8; N], ImageProblem> {
    at.checked_add(N)
        .and_then(|end| image.get(at..end))
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or(ImageProblem::Truncated)
}

fn u16_at(image: &[u8], at: usize) -> Result<u16, ImageProblem> {
    bytes_at(image, at).map(u16::from_le_bytes)
}

pub(crate) fn u32_at(image: &[u8], at: usize) -> Result<u32, ImageProblem> {
    bytes_at(image, at).map(u32::from_le_bytes)
}

fn u64_at(image: &[u8], at: usize) -> Result<u64, ImageProblem> {
    bytes_at(image, at).map(u64::from_le_bytes)
}
