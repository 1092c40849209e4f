//! A virtio device driven by someone with malice: nothing panics, hangs or grows.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::fuzzing::device(bytes));
