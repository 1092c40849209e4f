//! Bundles for tests, and what runtimes make of them.
#![allow(dead_code, reason = "each program of tests uses a part of it")]

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// The runtime under test.
pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_cofferdam-runtime");

/// A bundle with busybox, removed when dropped.
pub(crate) struct Bundle {
    directory: TempDir,
    pub(crate) config: Value,
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // What a failed test has left.
        let Ok(left) = fs::read_dir(self.state()) else {
            return;
        };
        for entry in left.flatten() {
            let name = entry.file_name();
            let _ = Command::new(OURS)
                .arg("--root")
                .arg(self.state())
                .args(["delete", "--force"])
                .arg(name)
                .output();
        }
    }
}

impl Bundle {
    /// A bundle with the configuration that `spec` writes, running `args`.
    pub(crate) fn new(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let written = Command::new(OURS)
            .args(["spec", "--bundle"])
            .arg(directory.path())
            .status()
            .unwrap();
        assert!(written.success());
        let text = fs::read_to_string(directory.path().join("config.json")).unwrap();
        let mut bundle = Self {
            directory,
            config: serde_json::from_str(&text).unwrap(),
        };
        bundle.set("/process/args", json!(args));
        bundle.make_rootfs();
        bundle
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    fn make_rootfs(&self) {
        // mkdtemp makes it for its owner alone; a user inside is another one.
        fs::set_permissions(self.path(), fs::Permissions::from_mode(0o755)).unwrap();
        image(&self.rootfs());
    }

    /// Replaces the value at a JSON pointer; the last part may be new.
    pub(crate) fn set(&mut self, pointer: &str, value: Value) -> &mut Self {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = self.config.pointer_mut(parent).unwrap();
        match parent {
            Value::Object(object) => {
                object.insert(key.to_owned(), value);
            }
            Value::Array(array) if key == "-" => array.push(value),
            Value::Array(array) => array[key.parse::<usize>().unwrap()] = value,
            other => panic!("{other} has no {key}"),
        }
        self
    }

    /// Writes config.json.
    pub(crate) fn write(&self) {
        let text = serde_json::to_string_pretty(&self.config).unwrap();
        fs::write(self.path().join("config.json"), text).unwrap();
    }

    /// Where the state of its containers is.
    pub(crate) fn state(&self) -> PathBuf {
        self.path().join("state")
    }

    /// The runtime under test with a subcommand on the bundle's containers.
    pub(crate) fn ours(&self, arguments: &[&str]) -> Output {
        self.command_of(arguments).output().unwrap()
    }

    /// The same, to be spawned: for one that leaves a container with its streams behind.
    pub(crate) fn command_of(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(OURS);
        command.arg("--root").arg(self.state()).args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// The same, which must succeed; what it prints.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.ours(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    }

    /// `runtime run` of the bundle, to be spawned.
    pub(crate) fn command(&self, runtime: &str, id: &str) -> Command {
        self.write();
        let mut command = Command::new(runtime);
        // Its state is the bundle's: nothing of it stays, whatever the test comes to.
        command
            .arg("--root")
            .arg(self.state())
            .args(["run", "--bundle"])
            .arg(self.path())
            .arg(id)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run_with(&self, runtime: &str) -> Output {
        let output = self.command(runtime, &unique()).output();
        output.unwrap_or_else(|error| panic!("{runtime}: {error}; is it installed?"))
    }

    pub(crate) fn run(&self) -> Output {
        self.run_with(OURS)
    }
}

/// Makes the container; its output goes to the file `out` of the bundle.
pub(crate) fn create(bundle: &Bundle, id: &str, options: &[&str]) {
    bundle.write();
    let out = fs::File::create(bundle.path().join("out")).unwrap();
    let made = bundle
        .command_of(&["create", "--bundle"])
        .arg(bundle.path())
        .args(options)
        .arg(id)
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .status()
        .unwrap();
    assert!(made.success(), "{}", said(bundle));
}

/// What a container made by [`create`] has said.
pub(crate) fn said(bundle: &Bundle) -> String {
    fs::read_to_string(bundle.path().join("out")).unwrap()
}

/// A descriptor that somebody hands over, and the text that comes with it.
pub(crate) fn received(listener: &UnixListener) -> (OwnedFd, Vec<u8>) {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let (stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 4096];
    let count = recvmsg(
        &stream,
        &mut [std::io::IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap()
    .bytes;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    (fd.expect("a descriptor"), bytes[..count].to_vec())
}

/// Makes a root filesystem with busybox.
pub(crate) fn image(root: &Path) {
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/web"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .expect("a static busybox at /bin/busybox; install busybox-static");
    for name in [
        "sh", "cat", "echo", "id", "grep", "hostname", "ls", "sort", "env", "pwd", "stat", "touch",
        "mount", "sleep", "kill", "umask", "cut", "wc", "tr", "sed", "awk", "readlink", "true",
        "head", "dd", "ps", "tty", "stty",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:web:/home/web:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/secret"), "a secret\n").unwrap();
}

/// Gives the root filesystem that [`image`] makes to an engine's command that reads an archive.
pub(crate) fn import(image: &Path, mut command: Command) {
    self::image(image);
    let mut tar = Command::new("tar")
        .arg("-C")
        .arg(image)
        .args(["-c", "."])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = command.stdin(tar.stdout.take().unwrap()).output().unwrap();
    tar.wait().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
}

/// Waits for a condition, a minute at most.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < Duration::from_mins(1), "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A daemon that an engine's client talks to; asked to end when dropped, and waited for.
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, and waits until it answers.
    pub(crate) fn start(
        mut command: Command,
        log: PathBuf,
        mut answers: impl FnMut() -> bool,
    ) -> Self {
        let file = fs::File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn();
        let child = child.unwrap_or_else(|error| {
            panic!(
                "{}: {error}; is it installed?",
                command.get_program().display()
            )
        });
        let daemon = Self { child, log };
        let begin = Instant::now();
        while !answers() {
            assert!(
                begin.elapsed() < Duration::from_mins(1),
                "{}",
                fs::read_to_string(&daemon.log).unwrap()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").arg(pid).status();
        let _ = self.child.wait();
    }
}

/// Runs a command line with a terminal; what it prints.
pub(crate) fn with_terminal(command: &Command) -> String {
    let words: Vec<String> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let mut script = Command::new("script");
    script.args(["-qec", &words.join(" "), "/dev/null"]);
    for (name, value) in command.get_envs() {
        script.env(name, value.unwrap());
    }
    stdout(&script.stdin(Stdio::null()).output().unwrap())
}

/// A name for a container that no other test has.
pub(crate) fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("cofferdam-test-{}-{number}", std::process::id())
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Removes the control groups above containers that engines were told to use by [`unique`] names,
/// and leave.
pub(crate) fn remove_groups_of_this_process() {
    let prefix = format!("cofferdam-test-{}-", std::process::id());
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        let (Some(point), Some(kind)) = (fields.next(), fields.next()) else {
            continue;
        };
        if !kind.starts_with("cgroup") {
            continue;
        }
        for entry in fs::read_dir(point).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                // One with processes stays: it is another test's.
                let _ = fs::remove_dir(entry.path());
            }
        }
    }
}
