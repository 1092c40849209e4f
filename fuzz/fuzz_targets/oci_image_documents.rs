//! Indexes, manifests and configurations: whatever the bytes, they are read as what they are said to be, or refused.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oci_image::{Digest, Platform, Source};

static PATH: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = fuzz::scratch("documents");
    fs::create_dir_all(path.join("blobs/sha256")).expect("a directory");
    fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
    path
});

fuzz_target!(|data: &[u8]| {
    // As the index of a layout, and as a manifest or an index to which one leads.
    let digest = Digest::sha256(data);
    let blob = PATH.join("blobs/sha256").join(digest.hex());
    fs::write(&blob, data).expect("a file");
    let led = ["image.manifest", "image.index", "image.config"].map(|kind| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.{kind}.v1+json","digest":"{digest}","size":{}}}]}}"#,
            data.len()
        )
    });
    for index in led.iter().map(String::as_bytes).chain([data]) {
        fs::write(PATH.join("index.json"), index).expect("a file");
        if let Ok(source) = Source::open(&*PATH) {
            let _ = source.names();
            if let Ok(image) = source.image(None, &Platform::host()) {
                assert_eq!(
                    Digest::sha256(image.manifest().bytes()),
                    *image.manifest().digest()
                );
                let _ = image.process(&[]);
            }
        }
    }
    fs::remove_file(&blob).expect("the file is removed");
});
