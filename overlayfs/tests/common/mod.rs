//! Directories to experiment in.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen,
};

/// Between fork and exec a program holds what other threads have open, and with it their overlays:
/// they would find them in use. So tests that start programs run alone, and those that open very many
/// files.
static PROGRAMS: RwLock<()> = RwLock::new(());

thread_local!(static HAS_LOCK: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });

/// Keeps other tests of this program waiting; to be called first in a test.
pub fn alone() -> RwLockWriteGuard<'static, ()> {
    HAS_LOCK.set(true);
    PROGRAMS.write().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps tests that start programs waiting, if this thread does not do so already.
fn beside_others() -> Option<RwLockReadGuard<'static, ()>> {
    (!HAS_LOCK.replace(true)).then(|| PROGRAMS.read().unwrap_or_else(PoisonError::into_inner))
}

/// A tmpfs of its own, attached where only this test looks, gone with the guard.
///
/// Upper layers need it where the temporary directory is itself on an overlay.
pub struct Scratch {
    root: PathBuf,
    mounted: Option<overlayfs::Mounted>,
    _directory: tempfile::TempDir,
    lock: Option<RwLockReadGuard<'static, ()>>,
}

impl Scratch {
    pub fn new() -> Self {
        Self::with_size("512m")
    }

    /// A tmpfs that is full after `size`.
    pub fn with_size(size: &str) -> Self {
        let lock = beside_others();
        enter_private_namespace();
        let directory = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let mounted = overlayfs::attach(tmpfs(size), &root).unwrap();
        Scratch {
            root,
            mounted: Some(mounted),
            _directory: directory,
            lock,
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

/// A small filesystem of a kind that has to be made with options, attached as a [`Scratch`] is.
pub struct OnLoop {
    mounted: Option<PathBuf>,
    directory: tempfile::TempDir,
}

impl OnLoop {
    pub fn made_by(program: &str, options: &[&str]) -> Self {
        use std::process::Command;
        enter_private_namespace();
        let directory = tempfile::tempdir().unwrap();
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory.path(), everybody).unwrap();
        let (image, target) = (
            directory.path().join("image"),
            directory.path().join("root"),
        );
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(&target).unwrap();
        let run = |command: &mut Command| {
            let output = command.output().unwrap_or_else(|error| {
                panic!("{command:?}: {error}; install the package e2fsprogs")
            });
            assert!(output.status.success(), "{command:?}: {output:?}");
        };
        run(Command::new(program).args(options).arg(&image));
        // Where they are modules; mounting tells if they are missing.
        let _ = Command::new("modprobe")
            .args(["-a", "loop", "ext4"])
            .output();
        run(Command::new("mount")
            .args(["-o", "loop"])
            .args([&image, &target]));
        OnLoop {
            mounted: Some(target),
            directory,
        }
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        let path = self.directory.path().join("root").join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }
}

impl Drop for OnLoop {
    fn drop(&mut self) {
        if let Some(target) = self.mounted.take() {
            let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(self.mounted.take());
        if self.lock.is_some() {
            HAS_LOCK.set(false);
        }
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

/// A process in a user namespace whose root is user 100,000 here.
pub struct Holder(std::process::Child);

impl Holder {
    pub fn new() -> Self {
        let child = std::process::Command::new("unshare")
            .args(["--user", "sleep", "60"])
            .spawn()
            .unwrap();
        let process = PathBuf::from(format!("/proc/{}", child.id()));
        let own = fs::read_link("/proc/self/ns/user").unwrap();
        while fs::read_link(process.join("ns/user")).unwrap() == own {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        for map in ["uid_map", "gid_map"] {
            fs::write(process.join(map), "0 100000 65536").unwrap();
        }
        Holder(child)
    }

    pub fn namespace_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/user", self.0.id()))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
