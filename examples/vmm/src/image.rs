//! What kind of file a guest is, and how it is put into memory.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use kvm_vcpu::{
    GuestMemory, Loaded, Mode as CpuMode, PAGE_SIZE, PageSize, PageTables, Region, load_elf64,
    load_flat,
};

use crate::boot::{Entry, linux, multiboot, pvh};
use crate::config::{Machine, Mode};
use crate::error::Error;

/// Where a boot sector is loaded, and so a flat guest in real mode.
const REAL_LOAD: u16 = 0x7c00;
/// Where a flat guest is loaded otherwise: just above what a PC's firmware uses.
const FLAT_LOAD: u64 = 0x10_0000;

/// A guest's file: all of it, or of a bzImage no more than has to be looked at.
pub(crate) struct Image {
    pub(crate) bytes: Vec<u8>,
    /// Where the rest is, and how long it is.
    rest: Option<(File, u64)>,
}

impl Image {
    /// A file that is in memory.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn whole(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes.to_owned(),
            rest: None,
        }
    }

    /// The file's length.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64 + self.rest.as_ref().map_or(0, |(_, len)| *len)
    }

    /// Puts the file from this place on into the guest's memory; what was not read comes straight from
    /// the file.
    pub(crate) fn put(&self, from: usize, memory: &GuestMemory, at: u64) -> kvm_vcpu::Result<()> {
        let here = self.bytes.get(from..).unwrap_or_default();
        memory.write(at, here)?;
        let Some((file, len)) = &self.rest else {
            return Ok(());
        };
        let (mut offset, mut at, mut left) =
            (self.bytes.len() as u64, at + here.len() as u64, *len);
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX);
            // One that was cut short meanwhile will not boot.
            let done = memory.read_from(file, offset, &[(at, want)])? as u64;
            if done == 0 {
                break;
            }
            (offset, at, left) = (offset + done, at + done, left - done);
        }
        Ok(())
    }
}

/// Reads a guest's file, but never more than the guest's memory could hold.
pub(crate) fn read(machine: &Machine, file: File) -> Result<Image, Error> {
    let path = &machine.kernel;
    let error = |source| Error::ReadKernel {
        path: path.to_owned(),
        source,
    };
    let too_big = |size| Error::KernelTooBig {
        path: path.to_owned(),
        size,
        memory: machine.memory_mib,
    };
    let limit = machine.memory_mib << 20;
    // An ELF file may be larger than what it loads, by symbols and debug information.
    let limit = limit.saturating_mul(16).max(64 << 20);
    let metadata = file.metadata().map_err(error)?;
    let size = metadata.len();
    if size > limit {
        return Err(too_big(size));
    }
    let mut bytes = Vec::new();
    let mut start = (&file).take(linux::LONGEST_SETUP);
    start.read_to_end(&mut bytes).map_err(error)?;
    let may_be_linux = matches!(machine.mode, Mode::Auto | Mode::Linux) && metadata.is_file();
    if may_be_linux && linux::is_bzimage(&bytes) {
        let left = size.saturating_sub(bytes.len() as u64);
        return Ok(Image {
            bytes,
            rest: Some((file, left)),
        });
    }
    bytes.reserve_exact(
        usize::try_from(size)
            .unwrap_or(0)
            .saturating_sub(bytes.len()),
    );
    let left = limit + 1 - bytes.len() as u64;
    file.take(left).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > limit {
        return Err(too_big(bytes.len() as u64));
    }
    Ok(Image { bytes, rest: None })
}

/// How a guest is started: what the file is, unless the machine says it.
pub(crate) fn mode(chosen: Mode, bytes: &[u8]) -> Mode {
    let elf = bytes.starts_with(b"\x7fELF");
    match chosen {
        Mode::Auto if linux::is_bzimage(bytes) => Mode::Linux,
        Mode::Auto if pvh::entry(bytes).is_some() => Mode::Pvh,
        Mode::Auto if multiboot::is_multiboot(bytes) => Mode::Multiboot,
        Mode::Auto if elf => Mode::Long,
        Mode::Auto => Mode::Real,
        chosen => chosen,
    }
}

/// Whether a guest started so is a kernel, which expects a whole machine.
pub(crate) fn is_kernel(mode: Mode) -> bool {
    matches!(mode, Mode::Linux | Mode::Pvh | Mode::Multiboot)
}

/// Puts a guest into memory and says how its first CPU starts.
pub(crate) fn load(
    machine: &Machine,
    image: &Image,
    mode: Mode,
    initrd: Option<&mut File>,
    memory: &GuestMemory,
) -> Result<Entry, Error> {
    let (path, bytes) = (&machine.kernel, image.bytes.as_slice());
    let line = &machine.command_line;
    let initrd = machine.initrd.as_deref().zip(initrd);
    match mode {
        Mode::Linux if bytes.starts_with(b"\x7fELF") => {
            linux::load_vmlinux(path, bytes, initrd, line, memory)
        }
        Mode::Linux => linux::load(path, image, initrd, line, memory),
        Mode::Pvh => pvh::load(path, bytes, initrd, line, memory),
        Mode::Multiboot => multiboot::load(path, bytes, initrd, line, memory),
        _ => load_bare(path, bytes, mode, memory).map(Entry::new),
    }
}

/// Loads a guest that no protocol tells anything.
fn load_bare(
    path: &Path,
    bytes: &[u8],
    mode: Mode,
    memory: &GuestMemory,
) -> Result<CpuMode, Error> {
    let elf = bytes.starts_with(b"\x7fELF");
    if elf && mode == Mode::Real {
        return Err(Error::ElfInRealMode {
            path: path.to_owned(),
        });
    }
    let flat_at = if mode == Mode::Real {
        REAL_LOAD.into()
    } else {
        FLAT_LOAD
    };
    let loaded = if elf {
        load_elf64(memory, bytes)
    } else {
        load_flat(memory, bytes, flat_at)
    };
    let loaded = loaded.map_err(|source| match source {
        kvm_vcpu::Error::Image(kvm_vcpu::ImageProblem::TooBig { .. }) if !elf => {
            Error::KernelTooBig {
                path: path.to_owned(),
                size: bytes.len() as u64,
                memory: memory.size() >> 20,
            }
        }
        source => Error::Load {
            path: path.to_owned(),
            source,
        },
    })?;
    match mode {
        Mode::Protected => {
            let entry = u32::try_from(loaded.entry).map_err(|_| Error::EntryTooHigh {
                path: path.to_owned(),
                entry: loaded.entry,
            })?;
            let stack = top(path, bytes, 0, loaded, memory)?;
            Ok(CpuMode::protected(entry).with_stack(stack))
        }
        Mode::Long => {
            let end = memory.regions().last().map_or(0, |r| r.start() + r.len());
            // At least the 4 GiB where devices are, too.
            let mapped = end.max(4 << 30).next_multiple_of(PageSize::Huge.bytes());
            // A root, one table for each 512 GiB, and one for each GiB.
            let tables = 1 + mapped.div_ceil(1 << 39) + mapped.div_ceil(1 << 30);
            let room = tables * PAGE_SIZE;
            let base = top(path, bytes, room, loaded, memory)?;
            let mut tables = PageTables::new(base, room);
            tables.identity(mapped)?;
            let root = tables.install(memory)?;
            Ok(CpuMode::long(loaded.entry, root).with_stack(base))
        }
        _ => Ok(CpuMode::real(0, REAL_LOAD)),
    }
}

/// Sets `room` bytes aside at the top of the memory below the hole; the stack grows down from there.
fn top(
    path: &Path,
    bytes: &[u8],
    room: u64,
    loaded: Loaded,
    memory: &GuestMemory,
) -> Result<u64, Error> {
    /// The least that a guest's stack gets.
    const STACK: u64 = 4 * PAGE_SIZE;
    let low_end = memory.regions().first().map_or(0, Region::len);
    let base = low_end.checked_sub(room);
    base.filter(|base| loaded.start >= low_end || loaded.end + STACK <= *base)
        .ok_or_else(|| Error::KernelTooBig {
            path: path.to_owned(),
            size: bytes.len() as u64,
            memory: memory.size() >> 20,
        })
}
