//! A snapshot's description: what is accepted is devices that work.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::fuzzing::snapshot(bytes));
