//! A filesystem whose directory entries do not say what they are.
//!
//! Apart from other tests because it starts programs: between fork and exec they hold what other
//! threads have open, which keeps overlays in use.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::Scratch;
use overlayfs::{Interface, Overlay};

#[test]
#[ignore = "needs root"]
fn an_upper_without_types_in_its_directory_entries_is_unsuitable() {
    for interface in [Interface::Auto, Interface::OnePage] {
        let scratch = Scratch::new();
        let disk = scratch.path("disk");
        let size = fs::File::create(&disk).and_then(|file| file.set_len(8 << 20));
        size.unwrap();
        let run = |program: &str, words: &[&str], path: &Path| {
            let status = Command::new(program).args(words).arg(path).status();
            assert!(status.unwrap().success(), "{program} {words:?}");
        };
        if !Path::new("/dev/loop-control").exists() {
            run("modprobe", &[], Path::new("loop"));
        }
        run("mkfs.ext4", &["-q", "-O", "^filetype"], &disk);
        let disk = disk.display().to_string();
        let untyped = scratch.dir("untyped");
        run("mount", &["-o", "loop", &disk], &untyped);
        for name in ["upper", "work"] {
            fs::create_dir(untyped.join(name)).unwrap();
        }
        let error = Overlay::bottom_up([scratch.dir("base")])
            .upper(untyped.join("upper"), untyped.join("work"))
            .interface(interface)
            .mount_detached()
            .map(drop)
            .unwrap_err();
        run("umount", &[], &untyped);
        assert!(error.to_string().contains("d_type"), "{error}");
    }
}
