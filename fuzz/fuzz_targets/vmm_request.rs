//! The control socket: every request is a command or refused with a reason.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| vmm::fuzzing::request(bytes));
