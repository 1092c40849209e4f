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

fuzz_target!(|image: &[u8]| {
    if let Ok(loaded) = load_elf64(&MEMORY, image) {
        assert!(loaded.start < loaded.end && loaded.end <= 0x10_8000);
    }
});
