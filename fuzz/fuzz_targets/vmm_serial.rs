//! The serial port's registers: nothing panics, and what is saved is restored.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::fuzzing::serial(bytes));
