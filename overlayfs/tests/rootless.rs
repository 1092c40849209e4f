//! An ordinary user's overlay, in a user namespace of its own.

mod common;

use std::fs;
use std::process::Command;

use common::{Scratch, fd_path};
use overlayfs::{Interface, Marks, Overlay, Upper};

/// Runs the named test again as the root of a new user namespace, where it does its work.
fn in_user_namespace(name: &str, body: fn()) {
    if std::env::var_os("COFFERDAM_IN_USER_NAMESPACE").is_some() {
        return body();
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--include-ignored", "--exact", name])
        .env("COFFERDAM_IN_USER_NAMESPACE", "1")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{printed}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(printed.contains("1 passed"), "{printed}");
}

#[test]
#[ignore = "needs root"]
fn marks_are_user_marks_in_a_user_namespace() {
    in_user_namespace("marks_are_user_marks_in_a_user_namespace", || {
        assert_eq!(Marks::of_this_process(), Marks::User);
        let error = overlayfs::Merged::bottom_up(["/"])
            .unwrap()
            .marks(Marks::Trusted)
            .unwrap_err();
        assert!(matches!(error, overlayfs::Error::TrustedMarks), "{error}");
    });
}

#[test]
#[ignore = "needs root"]
fn an_overlay_is_mounted_written_and_read_back() {
    in_user_namespace("an_overlay_is_mounted_written_and_read_back", || {
        for interface in [Interface::Auto, Interface::OnePage, Interface::Classic] {
            let scratch = Scratch::new();
            scratch.write("base/kept", "kept");
            scratch.write("base/gone", "gone");
            scratch.write("base/sub/file", "file");
            common::age(&scratch.path("base"));
            let overlay = Overlay::bottom_up([scratch.path("base")])
                .upper(scratch.dir("upper"), scratch.dir("work"))
                // As tmpfs is before Linux 6.6.
                .tolerate_missing_xattrs()
                .interface(interface);
            let mounted = overlay.mount(scratch.dir("merged")).unwrap();
            let root = mounted.target();
            fs::remove_file(root.join("gone")).unwrap();
            fs::write(root.join("new"), "new").unwrap();
            fs::write(root.join("sub/file"), "changed").unwrap();
            mounted.close().unwrap();
            let upper =
                Upper::over_bottom_up([scratch.path("base")], scratch.path("upper")).unwrap();
            let changes: Vec<_> = upper
                .changes()
                .map(|change| change.unwrap().to_string())
                .collect();
            assert_eq!(changes, ["D /gone", "A /new", "C /sub/file"]);
        }
    });
}

#[test]
#[ignore = "needs root"]
fn a_detached_overlay_leaves_no_mount() {
    in_user_namespace("a_detached_overlay_leaves_no_mount", || {
        let scratch = Scratch::new();
        scratch.write("base/file", "file");
        let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let root = Overlay::bottom_up([scratch.path("base")])
            .upper(scratch.dir("upper"), scratch.dir("work"))
            .tolerate_missing_xattrs()
            .mount_detached()
            .unwrap();
        assert_eq!(
            fs::read_to_string(fd_path(&root).join("file")).unwrap(),
            "file"
        );
        assert_eq!(
            fs::read_to_string("/proc/thread-self/mountinfo").unwrap(),
            before
        );
    });
}
