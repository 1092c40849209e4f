//! Machine files and options: what is read is written and read the same.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::fuzzing::machine(bytes));
