//! Headers by which a registry asks who one is: what is read is read again from what is written of it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_image::Challenge;

fuzz_target!(|text: &str| {
    for challenge in Challenge::parse(text) {
        assert!(!challenge.scheme().is_empty());
        assert_eq!(Challenge::parse(&challenge.to_string()), [challenge]);
    }
});
