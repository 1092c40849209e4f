//! Multiboot kernels from outside: whatever their headers say, nothing is written past the guest's
//! memory and nothing panics.
#![no_main]

use std::sync::LazyLock;

use kvm_vcpu::{GuestMemory, Region, load_multiboot};
use libfuzzer_sys::fuzz_target;

static MEMORY: LazyLock<GuestMemory> = LazyLock::new(|| {
    GuestMemory::new(&[Region::anonymous(0, 0x1_0000)]).expect("memory for the test")
});

fuzz_target!(|data: &[u8]| {
    let _as_it_is = load_multiboot(&MEMORY, data, "quiet", 0x8000);
    // Behind a header that is right, which chance seldom makes.
    let flags = data
        .first()
        .map_or(0, |b| u32::from(b & 3) | u32::from(b & 4) << 14);
    let magic = 0x1bad_b002u32;
    let mut image = Vec::new();
    for word in [magic, flags, 0u32.wrapping_sub(magic).wrapping_sub(flags)] {
        image.extend(word.to_le_bytes());
    }
    image.extend(data);
    if let Ok((loaded, _)) = load_multiboot(&MEMORY, &image, "", 0x8000) {
        assert!(loaded.end <= 0x1_0000);
    }
});
