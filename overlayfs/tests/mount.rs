//! Mounting for real, through each of the kernel's interfaces.

mod common;

use std::fs;
use std::os::fd::AsRawFd;

use common::Scratch;
use overlayfs::{Error, Interface, Overlay};

const INTERFACES: [Interface; 2] = [Interface::Auto, Interface::OnePage];

#[test]
#[ignore = "needs root"]
fn layers_are_stacked_bottom_up_and_writes_go_to_the_upper() {
    for interface in INTERFACES {
        let scratch = Scratch::new();
        for (layer, file) in [("base", "a"), ("app", "a"), ("app", "b")] {
            scratch.write(&format!("{layer}/{file}"), layer);
        }
        let target = scratch.dir("merged");
        let merged = Overlay::bottom_up([scratch.path("base"), scratch.path("app")])
            .upper(scratch.dir("upper"), scratch.dir("work"))
            .interface(interface)
            .mount(&target)
            .unwrap();
        assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "app");
        assert_eq!(fs::read_to_string(target.join("b")).unwrap(), "app");
        fs::write(target.join("c"), "new").unwrap();
        merged.close().unwrap();
        assert!(!target.join("a").exists(), "{interface:?}: still mounted");
        assert_eq!(fs::read_to_string(scratch.path("upper/c")).unwrap(), "new");
    }
}

#[test]
#[ignore = "needs root"]
fn a_detached_mount_is_reachable_by_its_descriptor_alone() {
    for interface in INTERFACES {
        let scratch = Scratch::new();
        scratch.write("base/a", "base");
        let root = Overlay::bottom_up([scratch.path("base")])
            .upper(scratch.dir("upper"), scratch.dir("work"))
            .interface(interface)
            .mount_detached()
            .unwrap();
        let inside = format!("/proc/self/fd/{}", root.as_raw_fd());
        assert_eq!(fs::read_to_string(format!("{inside}/a")).unwrap(), "base");
        fs::write(format!("{inside}/b"), "b").unwrap();
        let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(
            !table.contains(scratch.path("upper").to_str().unwrap()),
            "{table}"
        );
        let target = scratch.dir("merged");
        let merged = overlayfs::attach(root, &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("b")).unwrap(), "b");
        drop(merged);
        assert!(!target.join("b").exists());
    }
}

#[test]
#[ignore = "needs root"]
fn the_classic_interface_mounts_on_the_target() {
    let scratch = Scratch::new();
    scratch.write("base/a", "base");
    let target = scratch.dir("merged");
    let overlay = Overlay::bottom_up([scratch.path("base")])
        .upper(scratch.dir("upper"), scratch.dir("work"))
        .interface(Interface::Classic);
    let merged = overlay.mount(&target).unwrap();
    assert_eq!(fs::read_to_string(target.join("a")).unwrap(), "base");
    merged.close().unwrap();
    assert!(matches!(
        overlay.mount_detached(),
        Err(Error::ConflictingOptions { .. })
    ));
}

#[test]
#[ignore = "needs root"]
fn read_only_holds_also_with_an_upper() {
    for interface in INTERFACES {
        let scratch = Scratch::new();
        scratch.write("base/a", "base");
        let target = scratch.dir("merged");
        let _merged = Overlay::bottom_up([scratch.path("base")])
            .upper(scratch.dir("upper"), scratch.dir("work"))
            .read_only()
            .interface(interface)
            .mount(&target)
            .unwrap();
        let refused = fs::write(target.join("b"), "b").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
#[ignore = "needs root"]
fn names_with_special_characters_and_descriptors_work() {
    for interface in INTERFACES {
        let scratch = Scratch::new();
        for odd in [
            "with:colon",
            "with,comma",
            "with\\back\\slash",
            "with\nnewline",
            "\\:,\\,",
        ] {
            scratch.write(&format!("{odd}/base/a"), odd);
            let target = scratch.dir(&format!("{odd}/merged"));
            let base = fs::File::open(scratch.path(&format!("{odd}/base"))).unwrap();
            let extra = scratch.dir(&format!("{odd}/extra"));
            let merged =
                Overlay::bottom_up([overlayfs::Layer::from(std::os::fd::OwnedFd::from(base))])
                    .above(extra)
                    .upper(
                        scratch.dir(&format!("{odd}/upper")),
                        scratch.dir(&format!("{odd}/work")),
                    )
                    .interface(interface)
                    .mount(&target)
                    .unwrap();
            assert_eq!(fs::read_to_string(target.join("a")).unwrap(), odd);
            merged.close().unwrap();
        }
    }
}

#[test]
#[ignore = "needs root"]
fn a_busy_overlay_is_reported_by_close_and_detached() {
    let scratch = Scratch::new();
    scratch.write("base/a", "base");
    let target = scratch.dir("merged");
    let merged = Overlay::bottom_up([scratch.path("base")])
        .upper(scratch.dir("upper"), scratch.dir("work"))
        .mount(&target)
        .unwrap();
    let open = fs::File::open(target.join("a")).unwrap();
    assert!(matches!(
        merged.close(),
        Err(Error::Io {
            operation: "unmount",
            ..
        })
    ));
    assert!(!target.join("a").exists());
    drop(open);
}

#[test]
#[ignore = "needs root"]
fn an_upper_layer_is_free_as_soon_as_it_is_unmounted() {
    for interface in [Interface::Auto, Interface::OnePage, Interface::Classic] {
        let scratch = Scratch::new();
        scratch.write("base/a", "base");
        for round in 0..20 {
            let mounted = Overlay::bottom_up([scratch.path("base")])
                .upper(scratch.dir("upper"), scratch.dir("work"))
                .interface(interface)
                .mount(scratch.dir("merged"))
                .unwrap_or_else(|error| panic!("{interface:?} {round}: {error}"));
            mounted.close().unwrap();
        }
    }
}
