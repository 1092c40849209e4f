//! Files that claim to be images: layouts in archives and what `docker save` writes.
#![no_main]

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oci_image::{Limits, Platform, Source};

static PATH: LazyLock<PathBuf> = LazyLock::new(|| fuzz::scratch("archive"));

fuzz::archives!();

fuzz_target!(|data: &[u8]| {
    fs::write(&*PATH, data).expect("a file");
    let mut limits = Limits::default();
    limits.layer_bytes = 1 << 20;
    limits.document_bytes = 64 << 10;
    if let Ok(source) = Source::open_with(&*PATH, limits) {
        let _ = source.names();
        if let Ok(image) = source.image(None, &Platform::host()) {
            let _ = image.process(&[]);
            for layer in image.layers() {
                let _ = layer
                    .open()
                    .map(|mut reader| io::copy(&mut reader, &mut io::sink()));
            }
        }
    }
});
