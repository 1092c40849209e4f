//! What several tests need.
#![allow(dead_code, reason = "each test file uses its part")]

#[allow(unsafe_code)]
pub(crate) mod sys;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use namespaces::{
    Capabilities, Command, Device, DeviceKind, IoPriority, Limit, Mount, MountAttributes,
    Namespace, Resource, TerminalSize, TimeOffset, UserMapping,
};

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

/// A filter that lets one system call fail with this errno: ld [0]; jeq; ret ERRNO; ret ALLOW.
pub(crate) fn failing(call: libc::c_long, errno: i32) -> Vec<u8> {
    let call = u32::try_from(call).expect("a number");
    let errno = 0x0005_0000 | u32::try_from(errno).expect("a number");
    let mut program = Vec::new();
    for (code, jt, jf, k) in [
        (0x20_u16, 0_u8, 0_u8, 0_u32),
        (0x15, 0, 1, call),
        (0x06, 0, 0, errno),
        (0x06, 0, 0, 0x7fff_0000),
    ] {
        program.extend(code.to_ne_bytes());
        program.extend([jt, jf]);
        program.extend(k.to_ne_bytes());
    }
    program
}

/// A plan with a step of every kind that needs no privilege.
pub(crate) fn everything(rootfs: &Rootfs) -> Command {
    let mut command = container(rootfs, "exit 42");
    let zero = TimeOffset::default();
    command
        .unshare([Namespace::Time])
        .time_offsets(zero, zero)
        .hostname("host")
        .domainname("domain")
        .loopback_up(true)
        .mounts(Mount::standard())
        .mount(Mount::tmpfs("/etc").copy_up(true))
        .link("/etc/link", "to")
        .mount(Mount::bind_single("/usr", "/usr").with(MountAttributes::READ_ONLY))
        .devices([Device::new("/made/fifo", DeviceKind::Fifo, 0, 0).owner(0, 0)])
        .masked_paths(["/proc/kcore", "/etc"])
        .read_only_paths(["/proc/sys"])
        .root_read_only(true)
        .sysctl("net.ipv4.ip_forward", "1")
        .rlimit(
            Resource::Core,
            Limit {
                soft: Some(0),
                hard: Some(0),
            },
        )
        .nice(19)
        .io_priority(IoPriority::Idle)
        .cpu_affinity([0])
        .session_keyring("cofferdam-fault")
        .personality(0)
        .terminal(TerminalSize {
            rows: 1,
            columns: 1,
        })
        .capabilities(Capabilities::container_default())
        .die_with_parent(true)
        .no_new_privs(true)
        .seccomp(failing(libc::SYS_acct, 1));
    command
}

/// Runs a program that the test needs, and gives its output.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// Takes a mount away when dropped.
pub(crate) struct Mounted<'a>(pub(crate) &'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // The test may have failed before anything was mounted.
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// What a process leaves behind: descriptors, children, mounts.
pub(crate) fn traces() -> (usize, String, String) {
    let children = fs::read_dir("/proc/self/task")
        .expect("read")
        .map(|task| {
            let path = task.expect("an entry").path().join("children");
            fs::read_to_string(path).unwrap_or_default()
        })
        .collect();
    (
        fs::read_dir("/proc/self/fd").expect("read").count(),
        children,
        fs::read_to_string("/proc/self/mountinfo").expect("read"),
    )
}

/// A program among mounts of its own, so that what others mount is not taken for what it left.
pub(crate) fn among_own_mounts(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.unshare([Namespace::Mount]);
    if !rustix::process::geteuid().is_root() {
        command.user_namespace(UserMapping::CallerAsRoot);
    }
    command
}

/// For tests that count what is left in the process: nothing else may happen in it.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the other tests of the file again as an ordinary user, who needs nothing prepared.
pub(crate) fn again_as_a_user() {
    const UID: u32 = 4242;
    let _alone = alone();
    let home = tempfile::tempdir().expect("a directory");
    let program = home.path().join("test");
    // The user need not have access to where it was built.
    fs::copy("/proc/self/exe", &program).expect("copy this program");
    std::os::unix::fs::chown(home.path(), Some(UID), Some(UID)).expect("chown");
    let mut command = Command::new(&program);
    command
        .env("TMPDIR", home.path())
        .current_dir(home.path())
        .uid(UID)
        .gid(UID);
    if std::env::var_os("PROPTEST_CASES").is_none() {
        // They run in full as root.
        command.env("PROPTEST_CASES", "10");
    }
    let output = command.output().expect("run this program as a user");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && !text.contains(" 0 passed"),
        "{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
