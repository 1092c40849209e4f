//! The values of the marks of layers: whatever is read can be written, and reads the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use overlayfs::{Opaque, Origin, Redirect, VerityDigest};

fuzz_target!(|value: &[u8]| {
    if let Ok(opaque) = Opaque::decode(value) {
        assert_eq!(opaque.encode(), value);
    }
    if let Ok(redirect) = Redirect::decode(value) {
        assert_eq!(redirect.encode(), value);
    }
    if let Ok(digest) = VerityDigest::decode(value) {
        let written = VerityDigest::encode(digest.as_ref());
        assert_eq!(VerityDigest::decode(&written), Ok(digest));
    }
    if let Ok(Some(origin)) = Origin::decode(value) {
        let written = origin.encode().expect("it fitted when it was read");
        assert_eq!(Origin::decode(&written), Ok(Some(origin)));
    }
});
