//! Any sequence of mappings: the walk finds what was mapped, and what is refused changes nothing there.
#![no_main]

use kvm_vcpu::{MapFlags, PageSize, PageTables};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|mappings: Vec<(u64, u64, u8)>| {
    let mut tables = PageTables::new(0x10_0000, 0x2_0000);
    for (virt, physical, kind) in mappings {
        let size = match kind & 3 {
            0 => PageSize::Large,
            1 => PageSize::Huge,
            _ => PageSize::Small,
        };
        let before = tables.walk(virt);
        match tables.map(virt, physical, size.bytes(), size, MapFlags::WRITE) {
            Ok(()) => {
                assert_eq!(before, None);
                let there = tables.walk(virt).expect("just mapped");
                assert_eq!((there.physical, there.size), (physical, size));
            }
            Err(_) => assert_eq!(tables.walk(virt), before),
        }
        assert!(tables.len() <= 0x2_0000);
    }
});
