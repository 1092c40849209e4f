//! What several tests need.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use namespaces::{Command, Namespace, UserMapping};

/// A root file system with a static busybox; gone when dropped.
pub(crate) struct Rootfs {
    directory: tempfile::TempDir,
}

const APPLETS: [&str; 24] = [
    "sh", "cat", "ls", "id", "mount", "hostname", "ip", "readlink", "stat", "touch", "mkdir",
    "echo", "ps", "sleep", "true", "false", "grep", "pwd", "env", "dd", "mknod", "umount", "rm",
    "wc",
];

impl Rootfs {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let root = directory.path();
        let busybox = ["/bin/busybox", "/usr/bin/busybox"]
            .into_iter()
            .map(Path::new)
            .find(|path| path.exists())
            .expect("busybox is installed (package busybox-static)");
        fs::create_dir(root.join("bin")).expect("make /bin");
        fs::copy(busybox, root.join("bin/busybox")).expect("copy busybox");
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet)).expect("link an applet");
        }
        fs::create_dir(root.join("etc")).expect("make /etc");
        Self { directory }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn join(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }
}

/// A shell in the root file system, in new namespaces of every kind that needs no set-up, owned
/// by a user namespace in which the caller is root.
pub(crate) fn container(rootfs: &Rootfs, script: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .env_clear()
        .env("PATH", "/bin")
        .unshare([
            Namespace::Mount,
            Namespace::Pid,
            Namespace::Uts,
            Namespace::Ipc,
            Namespace::Net,
            Namespace::Cgroup,
        ])
        .user_namespace(UserMapping::CallerAsRoot)
        .root(rootfs.path());
    command
}

/// Runs the command and gives its output, which must be a success.
pub(crate) fn stdout(command: &mut Command) -> String {
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{error}"),
    };
    assert!(
        output.status.success(),
        "{}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}
