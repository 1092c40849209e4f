//! A config.json: what is refused is refused with its place, and a seccomp filter is a whole one.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| container_runtime::fuzzing::config(text));
