//! Programs are loaded where they say, or refused with the reason.
#![allow(clippy::cast_possible_truncation)]

use kvm_vcpu::{Error, GuestMemory, ImageProblem, Region, load_elf64, load_flat};

/// An ELF64 file with these segments: physical address, bytes, size in memory.
fn elf(kind: u16, machine: u16, entry: u64, segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend(kind.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(entry.to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend([0; 12]);
    for n in [64, 56, segments.len() as u16, 64, 0, 0] {
        file.extend(n.to_le_bytes());
    }
    let mut offset = 64 + 56 * segments.len() as u64;
    for (at, bytes, size) in segments {
        file.extend(1u32.to_le_bytes());
        file.extend(7u32.to_le_bytes());
        for n in [offset, *at, *at, bytes.len() as u64, *size, 1] {
            file.extend(n.to_le_bytes());
        }
        offset += bytes.len() as u64;
    }
    for (_, bytes, _) in segments {
        file.extend_from_slice(bytes);
    }
    file
}

fn memory() -> GuestMemory {
    GuestMemory::new(&[Region::anonymous(0x1000, 0x8000)]).unwrap()
}

fn problem(image: &[u8]) -> ImageProblem {
    match load_elf64(&memory(), image) {
        Err(Error::Image(problem)) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn segments_land_where_they_say_and_the_rest_is_zero() {
    let memory = memory();
    memory.fill(0x1000, 0x8000, 0xee).unwrap();
    let file = elf(
        2,
        62,
        0x2001,
        &[(0x2000, b"abc", 6), (0x4ffe, b"xy", 2), (0x7000, b"", 0)],
    );
    let loaded = load_elf64(&memory, &file).unwrap();
    assert_eq!(
        (loaded.entry, loaded.start, loaded.end),
        (0x2001, 0x2000, 0x5000)
    );
    let mut bytes = [0; 8];
    memory.read(0x2000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"abc\0\0\0\xee\xee");
    assert_eq!(
        memory.read_value::<u16>(0x4ffe).unwrap(),
        u16::from_le_bytes(*b"xy")
    );
    assert_eq!(memory.read_value::<u8>(0x7000).unwrap(), 0xee);
}

#[test]
fn what_cannot_be_loaded_is_told_apart() {
    let good: &[(u64, &[u8], u64)] = &[(0x2000, b"abcd", 4)];
    assert_eq!(problem(b""), ImageProblem::Empty);
    assert_eq!(problem(b"MZ"), ImageProblem::NotElf);
    assert_eq!(problem(b"\x7fELF\x02"), ImageProblem::Truncated);
    assert_eq!(
        problem(&elf(2, 183, 0x2000, good)),
        ImageProblem::WrongMachine
    );
    assert_eq!(problem(&elf32(b"abcd", 0x2000)), ImageProblem::WrongMachine);
    assert_eq!(
        problem(&elf(1, 62, 0x2000, good)),
        ImageProblem::NotExecutable(1)
    );
    assert_eq!(problem(&elf(2, 62, 0x2000, &[])), ImageProblem::NoSegments);
    assert_eq!(
        problem(&elf(2, 62, 0x3000, good)),
        ImageProblem::EntryOutside(0x3000)
    );
    let file = elf(2, 62, 0x2000, good);
    for len in 5..file.len() {
        assert_eq!(problem(&file[..len]), ImageProblem::Truncated, "{len}");
    }
    assert_eq!(
        problem(&elf(2, 62, 0x2000, &[(0x2000, b"abcd", 3)])),
        ImageProblem::Truncated
    );
    for (at, size) in [
        (0, 4),
        (0x8ffe, 4),
        (0x2000, 0x8000),
        (u64::MAX - 1, 4),
        (0x2000, u64::MAX),
    ] {
        let file = elf(2, 62, at, &[(at, b"abcd", size)]);
        assert!(
            matches!(problem(&file), ImageProblem::TooBig { start, .. } if start == at),
            "{at:#x} {size:#x}"
        );
    }
}

#[test]
fn flat_binaries_start_at_their_first_byte() {
    let memory = memory();
    let loaded = load_flat(&memory, b"abc", 0x1ffe).unwrap();
    assert_eq!((loaded.entry, loaded.end), (0x1ffe, 0x2001));
    assert!(matches!(
        load_flat(&memory, b"", 0x2000),
        Err(Error::Image(ImageProblem::Empty))
    ));
    assert!(matches!(
        load_flat(&memory, b"abc", 0x8ffe),
        Err(Error::Image(ImageProblem::TooBig { .. }))
    ));
    assert!(load_flat(&memory, b"abc", u64::MAX).is_err());
}

/// A multiboot header with these flags, and the fields behind it.
fn multiboot_header(flags: u32, fields: &[u32]) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(flags);
    let words = [MAGIC, flags, checksum];
    let words = words.iter().chain(fields);
    words.flat_map(|w| w.to_le_bytes()).collect()
}

/// An ELF32 file with one segment at 0x2000, whose contents these are.
fn elf32(contents: &[u8], entry: u32) -> Vec<u8> {
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    for word in [entry, 52, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    let len = contents.len() as u32;
    for word in [1, 84, 0x2000, 0x2000, len, len + 16, 7, 4] {
        file.extend(word.to_le_bytes());
    }
    file.extend(contents);
    file
}

#[test]
fn a_multiboot_kernel_is_told_the_memory_on_both_sides_of_a_hole() {
    const INFO: u64 = 0x9000;
    let memory = GuestMemory::new(&[
        Region::anonymous(0, 0xa_0000),
        Region::anonymous(1 << 20, 2 << 20),
    ])
    .unwrap();
    let fields = [0x3000, 0x3000, 0, 0, 0x3000 + 32];
    let mut image = multiboot_header(1 << 16, &fields);
    image.push(0xf4);
    kvm_vcpu::load_multiboot(&memory, &image, "", INFO as u32).unwrap();
    let word = |at: u64| memory.read_value::<u32>(at).unwrap();
    // In KiB, below 1 MiB and from there on; then the map's length and place.
    assert_eq!((word(INFO + 4), word(INFO + 8)), (640, 2048));
    assert_eq!(word(INFO + 44), 2 * 24);
    let map: u64 = word(INFO + 48).into();
    let entry = |i: u64| {
        let long = |at: u64| memory.read_value::<u64>(map + 24 * i + at).unwrap();
        (long(4), long(12), word(map + 24 * i + 20))
    };
    assert_eq!(entry(0), (0, 0xa_0000, 1));
    assert_eq!(entry(1), (1 << 20, 2 << 20, 1));
}

#[test]
#[ignore = "needs kvm"]
fn a_multiboot_kernel_is_told_its_memory_and_command_line() {
    use kvm_vcpu::{Console, Exit, Kvm, load_multiboot};
    let vm = Kvm::open()
        .unwrap()
        .create_vm(&[Region::anonymous(0, 4 << 20)])
        .unwrap();
    // cmp eax, 0x2badb002; jne end; mov esi, [ebx + 16]; again: lodsb; test al, al; jz end;
    // out 0xe9, al; jmp again; end: mov eax, [ebx + 8]; hlt
    let code = [
        0x3d, 0x02, 0xb0, 0xad, 0x2b, 0x75, 0x0c, 0x8b, 0x73, 0x10, 0xac, 0x84, 0xc0, 0x74, 0x04,
        0xe6, 0xe9, 0xeb, 0xf7, 0x8b, 0x43, 0x08, 0xf4,
    ];
    let mut contents = multiboot_header(3, &[]);
    contents.extend(code);
    let by_elf = elf32(&contents, 0x2000 + 12);
    let fields = [0x3000, 0x3000, 0, 0x4000, 0x3000 + 32];
    let mut by_addresses = multiboot_header(1 << 16, &fields);
    by_addresses.extend(code);
    for (id, image) in [(0, &by_elf), (1, &by_addresses)] {
        let (loaded, mode) = load_multiboot(vm.memory(), image, "quiet x=1", 0x9000).unwrap();
        assert!(loaded.end > loaded.entry);
        let mut vcpu = vm.create_vcpu(id, &mode).unwrap();
        let mut console = Console::at(0xe9);
        loop {
            let exit = vcpu.run().unwrap();
            if exit == Exit::Halt {
                break;
            }
            assert!(console.take(&exit), "{exit:?}");
        }
        assert_eq!(console.text(), "quiet x=1");
        // From 1 MiB on there are 3 MiB.
        assert_eq!(vcpu.registers().unwrap().rax, 3 << 10);
    }
    let refused = |image: &[u8]| match load_multiboot(vm.memory(), image, "", 0x9000) {
        Err(Error::Image(problem)) => problem,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&code), ImageProblem::NotMultiboot);
    assert_eq!(
        refused(&multiboot_header(4, &[])),
        ImageProblem::MultibootFeature(4)
    );
    assert_eq!(refused(&multiboot_header(0, &[])), ImageProblem::NotElf);
    assert_eq!(
        refused(&multiboot_header(1 << 16, &[0])),
        ImageProblem::Truncated
    );
}
