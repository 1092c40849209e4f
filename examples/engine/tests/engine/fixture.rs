//! A small image, and a way to run the engine on it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use oci_image::{Entry, EntryKind, ImageBuilder, LayoutWriter, Metadata, PackOptions, Platform};
use tempfile::TempDir;

const APPLETS: [&str; 16] = [
    "sh", "cat", "chmod", "dd", "echo", "env", "hostname", "id", "kill", "ls", "mkdir", "pwd",
    "readlink", "rm", "sleep", "true",
];

/// A directory that everybody may enter, with the engine, a busybox image and a place for state.
pub(crate) struct Fixture {
    dir: TempDir,
    user: Option<u32>,
}

impl Fixture {
    /// For the user who runs the tests.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        open_to_all(dir.path());
        // Tests may be built where an ordinary user may not look.
        fs::copy(
            env!("CARGO_BIN_EXE_cofferdam"),
            dir.path().join("cofferdam"),
        )
        .unwrap();
        let fixture = Self { dir, user: None };
        fixture.pack();
        fixture
    }

    /// For an ordinary user, who is nobody and has no subordinate ids.
    pub(crate) fn of_user(uid: u32) -> Self {
        let fixture = Self::new();
        let state = fixture.state();
        fs::create_dir(&state).unwrap();
        std::os::unix::fs::chown(&state, Some(uid), Some(uid)).unwrap();
        Self {
            user: Some(uid),
            ..fixture
        }
    }

    fn pack(&self) {
        let busybox = fs::read("/bin/busybox").expect("busybox-static is installed");
        let mut entries = vec![
            Entry::directory("bin", 0o755),
            Entry::file("bin/busybox", 0o755, busybox),
            Entry::directory("etc", 0o755),
            Entry::file(
                "etc/passwd",
                0o644,
                "root:x:0:0::/root:/bin/sh\napp:x:7:8::/home:/bin/sh\n",
            ),
            Entry::file("etc/group", 0o644, "root:x:0:\napp:x:8:\nmore:x:9:app\n"),
            Entry::file("etc/old", 0o644, "old\n"),
            Entry::directory("tmp", 0o1777),
            Entry::file("text", 0o644, "not a program\n"),
            Entry::file("noise", 0o755, [0xde, 0xad, 0xbe, 0xef]),
        ];
        entries.extend(APPLETS.map(|name| Entry::symlink(format!("bin/{name}"), "busybox")));
        let mut layout = LayoutWriter::open(self.image()).unwrap();
        let base = layout
            .layer(entries.into_iter().map(Ok), &PackOptions::new())
            .unwrap();
        let second = [
            Entry::file("etc/new", 0o644, "new\n"),
            Entry {
                path: "etc/old".into(),
                kind: EntryKind::Whiteout,
                metadata: Metadata::new(0),
            },
        ];
        let second = layout.layer(second.map(Ok), &PackOptions::new()).unwrap();
        let image = ImageBuilder::new(&Platform::host())
            .env("FROM_IMAGE", "yes")
            .cmd(["sh", "-c", "echo own command"])
            .working_dir("/tmp")
            .layer(base, "base")
            .layer(second, "second");
        layout.image(Some("latest"), image).unwrap();
    }

    /// The engine's own file.
    pub(crate) fn program(&self) -> PathBuf {
        self.dir.path().join("cofferdam")
    }

    /// The image.
    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// The directory for containers' files.
    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// `cofferdam run OPTIONS`, to be completed.
    pub(crate) fn run(&self, options: &[&str]) -> Command {
        let mut command = Command::new(self.dir.path().join("cofferdam"));
        command
            .arg("--root")
            .arg(self.state())
            .arg("run")
            .args(options);
        command.current_dir("/");
        if let Some(user) = self.user {
            command.uid(user).gid(user).env("HOME", "/nonexistent");
        }
        command
    }

    /// Runs a shell script in a container.
    pub(crate) fn sh(&self, options: &[&str], script: &str) -> Output {
        self.run(options)
            .arg(self.image())
            .args(["sh", "-c", script])
            .output()
            .unwrap()
    }

    /// Names of the runs whose directories are there.
    pub(crate) fn runs(&self) -> Vec<String> {
        match fs::read_dir(self.state().join("runs")) {
            Ok(entries) => entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect(),
            Err(_) => Vec::new(),
        }
    }
}

fn open_to_all(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The standard output as text.
pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The standard error as text.
pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
