//! What the tests left behind: nothing, it should be.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::exec;

/// The kernel removes some things a moment after their last user.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a test could leave on the machine, each thing in words.
pub(crate) struct Snapshot {
    things: BTreeSet<String>,
    groups: BTreeSet<PathBuf>,
    /// The control groups below which a test makes its own: the roots, and the one we are in.
    parents: BTreeSet<PathBuf>,
}

impl Snapshot {
    pub(crate) fn take() -> Snapshot {
        let mut things = BTreeSet::new();
        let mut hierarchies = Vec::new();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            let Some(mount) = Mount::parse(line) else {
                continue;
            };
            if mount.kind.starts_with("cgroup") {
                hierarchies.push(PathBuf::from(mount.point));
            }
            things.insert(format!("mount {} ({})", mount.point, mount.kind));
        }
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own: Vec<&str> = own
            .lines()
            .filter_map(|l| l.splitn(3, ':').nth(2))
            .collect();
        let (mut found, mut parents) = (BTreeSet::new(), BTreeSet::new());
        for root in hierarchies {
            groups(&root, &mut found);
            let below = own
                .iter()
                .map(|path| root.join(path.trim_start_matches('/')));
            parents.extend(below);
            parents.insert(root);
        }
        for (dir, what) in [
            ("/sys/class/net", "network interface"),
            ("/run/netns", "network namespace"),
        ] {
            for name in names(Path::new(dir)) {
                things.insert(format!("{what} {name}"));
            }
        }
        // Other programs use these directories too; ours name what they make after the project.
        for dir in ["/tmp", "/var/tmp", "/dev/shm", "/run"] {
            for name in names(Path::new(dir)) {
                if name.contains("cofferdam") {
                    things.insert(format!("file {dir}/{name}"));
                }
            }
        }
        for loop_device in names(Path::new("/sys/block")) {
            let backing = format!("/sys/block/{loop_device}/loop/backing_file");
            if let Ok(file) = fs::read_to_string(backing) {
                things.insert(format!("loop device {loop_device} on {}", file.trim()));
            }
        }
        Snapshot {
            things,
            groups: found,
            parents,
        }
    }

    /// What is there now and was not before.
    fn since(&self, before: &Snapshot) -> Vec<String> {
        let mut new: Vec<String> = self.things.difference(&before.things).cloned().collect();
        // Other programs have groups too, and make more below them meanwhile.
        let mut ours = before.parents.clone();
        for group in self.groups.difference(&before.groups) {
            let is_named = group.to_string_lossy().contains("cofferdam");
            if is_named || group.parent().is_some_and(|parent| ours.contains(parent)) {
                new.push(format!("control group {}", group.display()));
                ours.insert(group.clone());
            }
        }
        new
    }
}

/// What is there now and was not before, with the processes that the tests started and that are
/// still alive, and what is in the directory that was for their temporary files.
pub(crate) fn after(before: &Snapshot, temporary: &Path) -> Vec<String> {
    let started = Instant::now();
    loop {
        let mut left = Snapshot::take().since(before);
        for process in exec::descendants() {
            left.push(format!("process {} ({})", process.pid, process.command));
        }
        for name in names(temporary) {
            left.push(format!("temporary file {name}"));
        }
        if left.is_empty() || started.elapsed() > PATIENCE {
            return left;
        }
        thread::sleep(Duration::from_millis(100));
    }
}

struct Mount<'a> {
    point: &'a str,
    kind: &'a str,
}

impl<'a> Mount<'a> {
    /// A line of /proc/self/mountinfo; see proc_pid_mountinfo(5).
    fn parse(line: &'a str) -> Option<Self> {
        let (first, second) = line.split_once(" - ")?;
        Some(Mount {
            point: first.split(' ').nth(4)?,
            kind: second.split(' ').next()?,
        })
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

/// Every control group below a directory, except those that systemd makes and removes as it
/// pleases.
fn groups(dir: &Path, found: &mut BTreeSet<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let path = entry.path();
            let by_systemd = path.extension().is_some_and(|e| {
                ["scope", "service", "slice", "socket", "mount"].contains(&&*e.to_string_lossy())
            });
            groups(&path, found);
            if !by_systemd {
                found.insert(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forgotten_file_is_found() {
        let before = Snapshot::take();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("forgotten"), "").unwrap();
        let shm = Path::new("/dev/shm");
        let marked = tempfile::Builder::new()
            .prefix("cofferdam-forgotten-")
            .tempfile_in(if shm.is_dir() { shm } else { Path::new("/tmp") })
            .unwrap();
        let left = after(&before, dir.path());
        assert!(
            left.contains(&"temporary file forgotten".to_owned()),
            "{left:?}"
        );
        let path = marked.path().display().to_string();
        assert!(left.contains(&format!("file {path}")), "{left:?}");
    }

    #[test]
    fn groups_of_others_are_not_ours() {
        let set = |paths: &[&str]| paths.iter().map(PathBuf::from).collect();
        let snapshot = |groups: &[&str]| Snapshot {
            things: BTreeSet::new(),
            groups: set(groups),
            parents: set(&["/cg", "/cg/us"]),
        };
        let before = snapshot(&["/cg/us", "/cg/others"]);
        let now = snapshot(&[
            "/cg/new",
            "/cg/new/below",
            "/cg/others",
            "/cg/others/theirs",
            "/cg/others/cofferdam-1",
            "/cg/us",
            "/cg/us/test",
        ]);
        let expected = ["new", "new/below", "others/cofferdam-1", "us/test"];
        assert_eq!(
            now.since(&before),
            expected.map(|name| format!("control group /cg/{name}"))
        );
    }

    #[test]
    fn mount_lines_are_read() {
        let line = r"36 35 98:0 /mnt1 /a\040b rw,noatime shared:1 - ext3 /dev/root rw";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.point, mount.kind), (r"/a\040b", "ext3"));
    }
}
