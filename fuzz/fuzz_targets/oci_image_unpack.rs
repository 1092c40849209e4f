//! Archives onto disk: whatever the bytes, nothing beside the directory changes.
#![no_main]

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use oci_image::{Devices, Limits, Ownership, UnpackOptions, Unpacker, Whiteouts};

static BASE: LazyLock<PathBuf> = LazyLock::new(|| {
    let base = fuzz::scratch("unpack");
    fs::create_dir_all(base.join("outside")).expect("a directory");
    fs::write(base.join("outside/secret"), "untouched").expect("a file");
    base
});

fuzz::archives!();

fuzz_target!(|data: &[u8]| {
    use std::os::unix::fs::MetadataExt;
    let root = BASE.join("root");
    fs::create_dir(&root).expect("a directory");
    let me = fs::metadata(&root).expect("the directory");
    let mut limits = Limits::default();
    limits.extension_bytes = 16 << 10;
    limits.layer_bytes = 1 << 20;
    limits.depth = 16;
    if data.len().is_multiple_of(1024) {
        // Directories are finished before the end.
        limits.deferred_bytes = 150;
    }
    let options = UnpackOptions::new(Whiteouts::Apply)
        .ownership(Ownership::Squash {
            uid: me.uid(),
            gid: me.gid(),
        })
        .devices(Devices::Skip);
    let _ = Unpacker::new(options, limits).unpack(data, File::open(&root).expect("the directory"));
    assert_eq!(
        fs::read(BASE.join("outside/secret")).expect("the neighbour"),
        b"untouched"
    );
    assert_eq!(fs::read_dir(&*BASE).expect("the directory").count(), 2);
    fs::remove_dir_all(&root).expect("the directory is removed");
});
