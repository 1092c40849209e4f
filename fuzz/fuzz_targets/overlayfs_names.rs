//! Layers with arbitrary names: whatever is in a name, the kernel mounts the directory that has
//! it and no other. Needs root.

#![no_main]

use std::ffi::OsStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use overlayfs::{Interface, Overlay};

/// A directory on a filesystem that can hold an upper layer: memory.
fn ground() -> &'static PathBuf {
    static GROUND: OnceLock<PathBuf> = OnceLock::new();
    GROUND.get_or_init(|| {
        let root = fuzz::scratch("names");
        fs::create_dir(&root).expect("made");
        root
    })
}

fuzz_target!(|data: &[u8]| {
    let [interface, data @ ..] = data else { return };
    let interface =
        [Interface::Auto, Interface::PerLayer, Interface::OnePage][usize::from(*interface) % 3];
    // Names that can be: each becomes a directory beside the others.
    let mut names: Vec<&[u8]> = data
        .split(|byte| *byte == 0 || *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"." | b"..") && name.len() <= 255)
        .take(6)
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.len() < 3 {
        return;
    }
    let ground = ground();
    let paths: Vec<_> = names
        .iter()
        .map(|name| ground.join(OsStr::from_bytes(name)))
        .collect();
    let [upper, work, lowers @ ..] = &paths[..] else {
        return;
    };
    for path in &paths {
        fs::create_dir(path).expect("made");
    }
    for (number, lower) in lowers.iter().enumerate() {
        fs::write(lower.join(number.to_string()), "").expect("written");
    }
    // Each of them may become three bytes, and the kernel takes 255.
    let source: String = String::from_utf8_lossy(names[0]).chars().take(60).collect();
    let mounted = Overlay::bottom_up(lowers)
        .upper(upper, work)
        .interface(interface)
        .source(source)
        .exclusive()
        .mount_detached();
    match mounted {
        Ok(root) => {
            let inside = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
            assert_eq!(fs::read_dir(&inside).expect("read").count(), lowers.len());
            fs::write(inside.join("new"), "").expect("written");
            assert!(upper.join("new").exists());
        }
        Err(error) => panic!("{names:?} {interface:?}: {error}"),
    }
    for path in &paths {
        fs::remove_dir_all(path).expect("removed");
    }
});
