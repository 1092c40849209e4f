//! An ordinary user's overlay, in a user namespace of its own.

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{OnLoop, fd_path};
use overlayfs::{Interface, Marks, Overlay, Upper};

const NOBODY: u32 = 65534;

/// Runs the named test again as an ordinary user's process that is the root of a new user
/// namespace, where it works in a directory of that user.
fn in_user_namespace(name: &str, body: fn(&Directory)) {
    if let Some(directory) = std::env::var_os("COFFERDAM_IN_USER_NAMESPACE") {
        return body(&Directory(directory.into()));
    }
    // Tmpfs has attributes for ordinary users since Linux 6.6, ext4 always had.
    let disk = OnLoop::made_by("mke2fs", &["-q", "-t", "ext4"]);
    let home = disk.dir("home");
    chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    // By descriptor, because the user may not be allowed to go where the program is.
    let program = fs::File::open(std::env::current_exe().unwrap()).unwrap();
    rustix::io::fcntl_setfd(&program, rustix::io::FdFlags::empty()).unwrap();
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .args(["--include-ignored", "--exact", name])
        .env("COFFERDAM_IN_USER_NAMESPACE", &home)
        .current_dir("/")
        .uid(NOBODY)
        .gid(NOBODY)
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

/// Where the test works.
struct Directory(PathBuf);

impl Directory {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn write(&self, name: &str, contents: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).unwrap();
        fs::write(path, contents).unwrap();
    }
}

#[test]
#[ignore = "needs root"]
fn marks_are_user_marks_in_a_user_namespace() {
    in_user_namespace("marks_are_user_marks_in_a_user_namespace", |_| {
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
    in_user_namespace("an_overlay_is_mounted_written_and_read_back", |home| {
        for interface in [Interface::Auto, Interface::OnePage, Interface::Classic] {
            let scratch = Directory(home.dir(&format!("{interface:?}")));
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
    in_user_namespace("a_detached_overlay_leaves_no_mount", |scratch| {
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
