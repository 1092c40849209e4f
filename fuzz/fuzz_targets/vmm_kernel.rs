//! Kernels' files by every boot protocol: nothing panics, and nothing is written past the guest's memory.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::fuzzing::kernel(bytes));
