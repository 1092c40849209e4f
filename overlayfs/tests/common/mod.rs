//! Directories to experiment in.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// A tmpfs of its own, attached where only this test looks, gone with the guard.
///
/// Upper layers need it where the temporary directory is itself on an overlay.
pub struct Scratch {
    root: PathBuf,
    mounted: Option<overlayfs::Mounted>,
    _directory: tempfile::TempDir,
}

impl Scratch {
    pub fn new() -> Self {
        Self::with_size("512m")
    }

    /// A tmpfs that is full after `size`.
    pub fn with_size(size: &str) -> Self {
        enter_private_namespace();
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let mounted = overlayfs::attach(tmpfs(size), &root).unwrap();
        Scratch {
            root,
            mounted: Some(mounted),
            _directory: directory,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.mounted.take());
    }
}

/// Gives the thread of the test a mount namespace of its own.
///
/// Otherwise a process that makes a mount namespace meanwhile would copy the test's mounts
/// into it, and keep them in use after they are unmounted here.
pub fn enter_private_namespace() {
    use rustix::mount::{MountPropagationFlags, mount_change};
    use rustix::thread::UnshareFlags;
    thread_local!(static ENTERED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if ENTERED.replace(true) {
        return;
    }
    // Deprecated because a process may share what is unshared with code that does not
    // expect it; here only the test's own thread loses sight of other mounts.
    #[allow(deprecated)]
    rustix::thread::unshare(UnshareFlags::NEWNS | UnshareFlags::FS).unwrap();
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .unwrap();
}

/// A detached tmpfs.
pub fn tmpfs(size: &str) -> OwnedFd {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&fs, "size", size).unwrap();
    fsconfig_create(&fs).unwrap();
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap()
}

pub fn fd_path(fd: &OwnedFd) -> PathBuf {
    Path::new("/proc/self/fd").join(fd.as_raw_fd().to_string())
}

/// Gives everything in a tree an old modification time.
pub fn age(tree: &Path) {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
    if tree.is_dir() && !tree.is_symlink() {
        for entry in fs::read_dir(tree).unwrap() {
            age(&entry.unwrap().path());
        }
    }
    let old = Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: 5,
    };
    let times = Timestamps {
        last_access: old,
        last_modification: old,
    };
    utimensat(CWD, tree, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
