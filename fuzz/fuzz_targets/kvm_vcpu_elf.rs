//! Executables from outside: whatever their headers say, nothing is written past the guest's memory and
//! nothing panics.
#![no_main]

use std::sync::LazyLock;

use kvm_vcpu::{GuestMemory, Region, load_elf64};
use libfuzzer_sys::fuzz_target;

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    GuestMemory::new(&[
        Region::anonymous(0x1000, 0x8000),
        Region::anonymous(0x10_0000, 0x8000),
    ])
    .expect("memory for the test")
});

fn load(image: &[u8]) {
    if let Ok(loaded) = load_elf64(&MEMORY, image) {
        assert!(loaded.start < loaded.end && loaded.end <= 0x10_8000);
    }
}

/// The file header of an executable with this many program headers right behind it.
fn header(entry: u64, count: u8) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for word in [entry, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [0, 0, 64, 56, count.into(), 0, 0, 0u16] {
        file.extend(half.to_le_bytes());
    }
    file
}

fuzz_target!(|data: &[u8]| {
    load(data);
    // Behind a header that is right, which chance seldom makes, and with numbers that may be, too.
    let Some(([kind, low, high], rest)) = data.split_first_chunk() else {
        return;
    };
    let entry = u64::from_le_bytes([*low, *high, kind >> 4, 0, 0, 0, 0, 0]);
    let mut image = header(entry, kind & 3);
    image.extend(rest);
    for program in image[64..].chunks_exact_mut(56).take((kind & 3).into()) {
        program[..4].copy_from_slice(&1u32.to_le_bytes());
        if kind & 4 == 0 {
            for word in program[8..48].chunks_exact_mut(8) {
                word[3..].fill(0);
            }
        }
    }
    load(&image);
});
