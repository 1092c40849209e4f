//! Names, digests, platforms and users: what is taken is written back as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_image::{Digest, Platform, Reference, UserSpec};

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let full = reference.to_string();
        assert_eq!(full.parse::<Reference>().expect("the full form"), reference);
        assert_eq!(
            reference
                .familiar()
                .parse::<Reference>()
                .expect("the short form"),
            reference
        );
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string(), text);
    }
    let _ = text.parse::<UserSpec>();
});
