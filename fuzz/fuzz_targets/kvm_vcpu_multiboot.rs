//! Multiboot kernels from outside: whatever their headers say, nothing is written past the guest's
//! memory and nothing panics.
#![no_main]

use std::sync::LazyLock;

use kvm_vcpu::{GuestMemory, Region, load_multiboot};
use libfuzzer_sys::fuzz_target;

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    GuestMemory::new(&[Region::anonymous(0, 0x1_0000)]).expect("memory for the test")
});

fn load(image: &[u8]) {
    if let Ok((loaded, _)) = load_multiboot(&MEMORY, image, "quiet", 0x8000) {
        assert!(loaded.end <= 0x1_0000);
    }
}

fn header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    let words = [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags)];
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// An ELF32 executable with a multiboot header behind it, whose one program header is the data's.
fn executable(flags: u32, data: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x03\0\x01\0\0\0".to_vec();
    let (program, rest) = data.split_at(data.len().min(24));
    let mut program = program.to_vec();
    program.resize(24, 0);
    for word in program.chunks_exact_mut(4) {
        word[2..].fill(0);
    }
    file.extend_from_slice(&program[20..]);
    for word in [52, 0, 0u32] {
        file.extend(word.to_le_bytes());
    }
    for half in [52, 32, 1, 0, 0, 0u16] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes());
    file.extend_from_slice(&program[..20]);
    file.extend([0; 8]);
    file.extend(header(flags));
    file.extend(rest);
    file
}

fuzz_target!(|data: &[u8]| {
    load(data);
    // Behind a header that is right, which chance seldom makes.
    let flags = data.first().map_or(0, |b| u32::from(b & 3));
    let addresses = data.first().map_or(0, |b| u32::from(b & 4) << 14);
    load(&[&header(flags | addresses), data].concat());
    load(&executable(flags, data));
});
