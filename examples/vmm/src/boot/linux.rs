//! Linux's own boot protocol, by its 64-bit entry.
//!
//! See Documentation/arch/x86/boot.rst and zero-page.rst in the kernel's source. A bzImage is a boot
//! sector and setup code that only a BIOS needs, and then the kernel, which unpacks itself.

use std::fs::File;
use std::path::Path;

use kvm_vcpu::{GuestMemory, Mode, PageTables, load_elf64};

use super::{Entry, put_command_line, put_ramdisk};
use crate::error::Error;
use crate::image::Image;
use crate::layout::{self, BOOT_PARAMETERS, COMMAND_LINE, HIGH_START, HOLE, PAGE_TABLES};

/// Offsets in the boot sector and, as the header is copied, in the boot parameters.
mod field {
    pub(super) const E820_ENTRIES: usize = 0x1e8;
    pub(super) const ACPI_RSDP: usize = 0x70;
    pub(super) const SETUP_SECTS: usize = 0x1f1;
    pub(super) const HEADER_LEN: usize = 0x201;
    pub(super) const MAGIC: usize = 0x202;
    pub(super) const VERSION: usize = 0x206;
    pub(super) const TYPE_OF_LOADER: usize = 0x210;
    pub(super) const LOADFLAGS: usize = 0x211;
    pub(super) const CODE32_START: usize = 0x214;
    pub(super) const RAMDISK_IMAGE: usize = 0x218;
    pub(super) const RAMDISK_SIZE: usize = 0x21c;
    pub(super) const CMD_LINE_PTR: usize = 0x228;
    pub(super) const INITRD_ADDR_MAX: usize = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: usize = 0x230;
    pub(super) const RELOCATABLE: usize = 0x234;
    pub(super) const XLOADFLAGS: usize = 0x236;
    pub(super) const CMDLINE_SIZE: usize = 0x238;
    pub(super) const PREF_ADDRESS: usize = 0x258;
    pub(super) const INIT_SIZE: usize = 0x260;
    pub(super) const E820_TABLE: usize = 0x2d0;
}

/// The first version that says where the 64-bit entry is.
const VERSION: u16 = 0x20c;
const HAS_64_BIT_ENTRY: u16 = 1;
const LOADED_HIGH: u8 = 1;
/// A boot loader without a number of its own.
const LOADER: u8 = 0xff;
/// The 64-bit entry is so far into the kernel.
const ENTRY: u64 = 0x200;

/// The longest that a boot sector and setup code can be, and the beginning of the kernel.
pub(crate) const LONGEST_SETUP: u64 = 257 * 512;

/// Whether a file is a Linux kernel of this kind.
pub(crate) fn is_bzimage(image: &[u8]) -> bool {
    image.get(field::MAGIC..field::MAGIC + 4) == Some(b"HdrS")
}

/// The version that a bzImage says it is.
pub(crate) fn version(image: &[u8]) -> Option<String> {
    let at = usize::from(u16::from_le_bytes(
        image.get(0x20e..0x210)?.try_into().ok()?,
    )) + 0x200;
    let text = image.get(at..)?.split(|b| *b == 0 || *b == b' ').next()?;
    let text = std::str::from_utf8(text).ok()?;
    (is_bzimage(image) && !text.is_empty() && !text.contains('/')).then(|| text.to_owned())
}

/// What a kernel's header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    /// The header's bytes, to be handed back to the kernel.
    bytes: Vec<u8>,
    /// Where the kernel begins in the file.
    kernel_at: usize,
    alignment: u64,
    relocatable: bool,
    preferred: u64,
    /// The memory that the kernel needs from where it is loaded, to unpack itself.
    init_size: u64,
    ramdisk_max: u64,
    command_line_max: u64,
}

impl Header {
    /// Reads the header of a bzImage; the error says what is wrong with it.
    pub(crate) fn parse(image: &[u8]) -> Result<Self, &'static str> {
        const SHORT: &str = "it is cut short";
        let u8_at = |at: usize| image.get(at).copied().ok_or(SHORT);
        let number = |at: usize, len: usize| -> Result<u64, &'static str> {
            let mut bytes = [0; 8];
            bytes[..len].copy_from_slice(image.get(at..at + len).ok_or(SHORT)?);
            Ok(u64::from_le_bytes(bytes))
        };
        if !is_bzimage(image) {
            return Err("it has no setup header");
        }
        if number(field::VERSION, 2)? < u64::from(VERSION) {
            return Err("its boot protocol is older than 2.12 (Linux 3.8)");
        }
        if number(field::XLOADFLAGS, 2)? & u64::from(HAS_64_BIT_ENTRY) == 0 {
            return Err("it has no 64-bit entry: it is a 32-bit kernel");
        }
        let end = field::MAGIC + usize::from(u8_at(field::HEADER_LEN)?);
        // The table of memory comes after the longest header there can be.
        if !(field::INIT_SIZE + 4..=field::E820_TABLE).contains(&end) {
            return Err("its setup header has an impossible length");
        }
        let sectors = match u8_at(field::SETUP_SECTS)? {
            0 => 4,
            n => usize::from(n),
        };
        let kernel_at = (sectors + 1) * 512;
        if image.len() <= kernel_at {
            return Err(SHORT);
        }
        let alignment = number(field::KERNEL_ALIGNMENT, 4)?;
        if !alignment.is_power_of_two() {
            return Err("its alignment is no power of two");
        }
        Ok(Self {
            bytes: image.get(field::SETUP_SECTS..end).ok_or(SHORT)?.to_owned(),
            kernel_at,
            alignment,
            relocatable: u8_at(field::RELOCATABLE)? != 0,
            preferred: number(field::PREF_ADDRESS, 8)?,
            init_size: number(field::INIT_SIZE, 4)?,
            ramdisk_max: number(field::INITRD_ADDR_MAX, 4)?,
            command_line_max: number(field::CMDLINE_SIZE, 4)?,
        })
    }

    /// Where the kernel goes in a machine with so much memory below the hole, and where what it
    /// needs there ends.
    fn place(&self, kernel_len: u64, low_end: u64) -> Option<(u64, u64)> {
        let needs = self.init_size.max(kernel_len);
        let fits = |at: u64| {
            let end = at.checked_add(needs)?;
            (at >= HIGH_START && end <= low_end).then_some((at, end))
        };
        fits(self.preferred).or_else(|| {
            if self.relocatable {
                fits(HIGH_START.next_multiple_of(self.alignment))
            } else {
                None
            }
        })
    }
}

/// Loads a bzImage with all that it is told, for the 64-bit entry.
pub(crate) fn load(
    path: &Path,
    image: &Image,
    initrd: Option<(&Path, &mut File)>,
    command_line: &str,
    memory: &GuestMemory,
) -> Result<Entry, Error> {
    let header = Header::parse(&image.bytes).map_err(|problem| Error::NotBootable {
        path: path.to_owned(),
        problem,
    })?;
    let len = image.len() - header.kernel_at as u64;
    let (at, end) = header
        .place(len, memory.size().min(HOLE.start))
        .ok_or_else(|| Error::KernelTooBig {
            path: path.to_owned(),
            size: header.init_size.max(len),
            memory: memory.size() >> 20,
        })?;
    // All of it will be used: the kernel unpacks itself there.
    memory.prefer_huge_pages(at, end - at)?;
    image.put(header.kernel_at, memory, at)?;
    start(&header, at, end, at + ENTRY, initrd, command_line, memory)
}

/// Loads an uncompressed kernel (`vmlinux`), which has no header to tell of itself.
pub(crate) fn load_vmlinux(
    path: &Path,
    image: &[u8],
    initrd: Option<(&Path, &mut File)>,
    command_line: &str,
    memory: &GuestMemory,
) -> Result<Entry, Error> {
    let loaded = load_elf64(memory, image).map_err(|source| Error::Load {
        path: path.to_owned(),
        source,
    })?;
    let mut bytes = vec![0; 0x268 - field::SETUP_SECTS];
    bytes[field::MAGIC - field::SETUP_SECTS..][..4].copy_from_slice(b"HdrS");
    let mut version = |at: usize, value: &[u8]| {
        bytes[at - field::SETUP_SECTS..][..value.len()].copy_from_slice(value);
    };
    version(field::VERSION, &VERSION.to_le_bytes());
    version(field::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
    let header = Header {
        bytes,
        kernel_at: 0,
        alignment: 0x20_0000,
        relocatable: false,
        preferred: loaded.start,
        init_size: loaded.end - loaded.start,
        ramdisk_max: 0x7fff_ffff,
        command_line_max: 2047,
    };
    let entry = loaded.entry;
    start(
        &header,
        loaded.start,
        loaded.end,
        entry,
        initrd,
        command_line,
        memory,
    )
}

/// Fills the boot parameters, and makes the page tables that the 64-bit entry needs.
fn start(
    header: &Header,
    at: u64,
    end: u64,
    entry: u64,
    initrd: Option<(&Path, &mut File)>,
    command_line: &str,
    memory: &GuestMemory,
) -> Result<Entry, Error> {
    let mut page = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(field::SETUP_SECTS, &header.bytes);
    put(field::TYPE_OF_LOADER, &[LOADER]);
    put(field::LOADFLAGS, &[LOADED_HIGH]);
    put(field::CODE32_START, &low32(at));
    put(field::CMD_LINE_PTR, &low32(COMMAND_LINE.start));
    put(field::ACPI_RSDP, &layout::ACPI.start.to_le_bytes());
    put_command_line(memory, command_line, header.command_line_max)?;
    if let Some(initrd) = initrd {
        let ramdisk = put_ramdisk(memory, initrd, header.ramdisk_max, end)?;
        put(field::RAMDISK_IMAGE, &low32(ramdisk.start));
        put(field::RAMDISK_SIZE, &low32(ramdisk.len));
    }
    let map = layout::map(memory.size());
    put(field::E820_ENTRIES, &[u8::try_from(map.len()).unwrap_or(0)]);
    for ((range, usable), i) in map.iter().zip(0..) {
        let at = field::E820_TABLE + 20 * i;
        put(at, &range.start.to_le_bytes());
        put(at + 8, &(range.end - range.start).to_le_bytes());
        put(at + 16, &usable.kind().to_le_bytes());
    }
    memory.write(BOOT_PARAMETERS, &page)?;
    Ok(Entry {
        rsi: BOOT_PARAMETERS,
        ..Entry::new(long_mode(entry, memory)?)
    })
}

/// Long mode with the first 4 GiB mapped one to one.
pub(crate) fn long_mode(entry: u64, memory: &GuestMemory) -> Result<Mode, Error> {
    let room = PAGE_TABLES.end - PAGE_TABLES.start;
    let mut tables = PageTables::new(PAGE_TABLES.start, room);
    tables.identity(HOLE.end)?;
    let root = tables.install(memory)?;
    Ok(Mode::long(entry, root).with_stack(PAGE_TABLES.end))
}

/// An address or length below 4 GiB.
fn low32(value: u64) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_vcpu::GuestMemory;

    /// A kernel of two sectors with a correct header.
    pub(crate) fn sample() -> Vec<u8> {
        let mut image = vec![0; 512 * 4];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(field::SETUP_SECTS, &[1]);
        put(field::HEADER_LEN, &[0x66]);
        put(field::MAGIC, b"HdrS");
        put(field::VERSION, &0x20fu16.to_le_bytes());
        put(field::RELOCATABLE, &[1]);
        put(field::XLOADFLAGS, &[1]);
        put(field::KERNEL_ALIGNMENT, &0x20_0000u32.to_le_bytes());
        put(field::PREF_ADDRESS, &0x100_0000u64.to_le_bytes());
        put(field::INIT_SIZE, &0x30_0000u32.to_le_bytes());
        put(field::INITRD_ADDR_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(field::CMDLINE_SIZE, &100u32.to_le_bytes());
        put(1024, b"kernel");
        image
    }

    #[test]
    fn a_kernel_and_its_ramdisk_are_where_the_parameters_say() {
        let memory = GuestMemory::new(&layout::regions(64 << 20, false)).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"initrd").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let initrd = Some((Path::new("i"), &mut file));
        let entry = load(
            Path::new("k"),
            &Image::whole(&sample()),
            initrd,
            "a=b",
            &memory,
        )
        .unwrap();
        let number = |at: usize| {
            memory
                .read_value::<u32>(BOOT_PARAMETERS + at as u64)
                .unwrap()
        };
        assert_eq!(entry.rsi, BOOT_PARAMETERS);
        assert_eq!(number(field::CODE32_START), 0x100_0000);
        let mut bytes = [0; 6];
        memory.read(0x100_0000, &mut bytes).unwrap();
        assert_eq!(&bytes, b"kernel");
        memory
            .read(number(field::RAMDISK_IMAGE).into(), &mut bytes)
            .unwrap();
        assert_eq!(&bytes, b"initrd");
        assert_eq!(number(field::RAMDISK_SIZE), 6);
        memory
            .read(number(field::CMD_LINE_PTR).into(), &mut bytes[..4])
            .unwrap();
        assert_eq!(&bytes[..4], b"a=b\0");
        // A smaller machine: lower down, and then not at all.
        let memory = GuestMemory::new(&layout::regions(8 << 20, false)).unwrap();
        load(Path::new("k"), &Image::whole(&sample()), None, "", &memory).unwrap();
        let at = BOOT_PARAMETERS + field::CODE32_START as u64;
        assert_eq!(memory.read_value::<u32>(at).unwrap(), 0x20_0000);
        let memory = GuestMemory::new(&layout::regions(4 << 20, false)).unwrap();
        let error = load(Path::new("k"), &Image::whole(&sample()), None, "", &memory).unwrap_err();
        assert!(matches!(error, Error::KernelTooBig { .. }), "{error}");
    }

    #[test]
    fn damaged_headers_are_named() {
        let with = |at: usize, bytes: &[u8]| {
            let mut image = sample();
            image[at..at + bytes.len()].copy_from_slice(bytes);
            Header::parse(&image).unwrap_err()
        };
        assert!(with(field::VERSION, &[0, 2]).contains("2.12"));
        assert!(with(field::XLOADFLAGS, &[0]).contains("32-bit"));
        assert!(with(field::HEADER_LEN, &[0xff]).contains("length"));
        assert!(with(field::KERNEL_ALIGNMENT, &[3]).contains("power"));
        assert!(with(field::SETUP_SECTS, &[9]).contains("short"));
        for len in 0..0x300 {
            let _ = Header::parse(&sample()[..len]);
        }
    }
}
