//! What the tests share: groups of their own that are gone afterwards.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::io::Read as _;
use std::ops::Deref;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cgroups::{Cgroup, Hierarchy};

/// A group with a name of its own; killed and removed also when a test fails.
pub(crate) struct Scratch(Cgroup);

impl Scratch {
    pub(crate) fn new() -> Self {
        let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
        Self(
            hierarchy
                .create(unique())
                .expect("the root may create groups"),
        )
    }

    pub(crate) fn within(parent: &Cgroup, name: &str) -> Self {
        Self(parent.create(name).expect("the parent is the test's own"))
    }
}

pub(crate) fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("cofferdam-test-{}-{count}", std::process::id())
}

impl Deref for Scratch {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !self.0.directories().any(Path::is_dir) {
            return;
        }
        let result = self
            .0
            .kill()
            .and_then(|()| self.0.remove_within(Duration::from_secs(20)));
        if let Err(error) = result
            && !std::thread::panicking()
        {
            panic!("the group of the test could not be removed: {error}");
        }
    }
}

/// A program that is ended and reaped when the test ends.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn in_group(group: &Cgroup, script: &str) -> Self {
        Self(group.spawn(shell(script)).expect("sh starts in the group"))
    }

    pub(crate) fn outside(script: &str) -> Self {
        Self(shell(script).spawn().expect("sh starts"))
    }

    /// A shell in the group with so many children, which are copies of it and do nothing.
    pub(crate) fn crowd(group: &Cgroup, children: usize) -> Self {
        let mut command = shell(&format!(
            "exec 3<&0; i=0; while [ $i -lt {children} ]; do (read x <&3) & i=$((i + 1)); done; \
             echo; read x"
        ));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut running = Self(group.spawn(command).expect("sh starts in the group"));
        let stdout = running.0.stdout.as_mut().expect("piped");
        stdout.read_exact(&mut [0]).expect("all have started");
        running
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn shell(script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// The user that owns nothing.
pub(crate) const NOBODY: u32 = 65_534;

/// Does something without any privilege, in a thread of its own that ends with it.
pub(crate) fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let nobody = rustix::process::Uid::from_raw(NOBODY);
            rustix::thread::set_thread_uid(nobody).expect("root may become anybody");
            work()
        });
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// The number of some block device.
pub(crate) fn block_device() -> cgroups::DeviceNumber {
    let find = || {
        let mut disks = std::fs::read_dir("/sys/block").ok()?;
        disks.find_map(|disk| {
            let number = std::fs::read_to_string(disk.ok()?.path().join("dev")).ok()?;
            number.trim().parse().ok()
        })
    };
    find().unwrap_or_else(|| {
        // Where there is none the loop driver makes some.
        let loaded = Command::new("modprobe").arg("loop").status();
        find().unwrap_or_else(|| panic!("no block device, and modprobe loop: {loaded:?}"))
    })
}
