//! Archives as another reader sees them: whatever both read to the end, they read alike.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../oci-image/tests/common/tar_crate.rs"]
mod tar_crate;

fuzz::archives!();

fuzz_target!(|data: &[u8]| {
    assert_eq!(tar_crate::disagreement(data), None);
});
