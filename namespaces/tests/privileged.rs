//! What only root can do, and what root does differently.

mod common;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use common::{Mounted, Rootfs, stdout};
use namespaces::{
    Capabilities, Capability, CapabilitySet, Command, Degradation, Error, IdMap, IdRange, Mount,
    Namespace, NamespaceId, Root, Stdio, UserMapping,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, open_tree,
};

/// A shell in the root file system, in new namespaces, without a user namespace.
fn container(rootfs: &Rootfs, script: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", script])
        .env_clear()
        .env("PATH", "/bin")
        .unshare(
            Namespace::ALL
                .into_iter()
                .filter(|kind| *kind != Namespace::User),
        )
        .root(rootfs.path());
    command
}

fn tmpfs() -> OwnedFd {
    let fs = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
    fsconfig_create(&fs).expect("fsconfig");
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).expect("fsmount")
}

fn tree(path: &Path) -> OwnedFd {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(rustix::fs::CWD, path, flags).expect("open_tree")
}

#[test]
#[ignore = "needs root"]
fn devices_are_nodes() {
    let rootfs = Rootfs::new();
    let mut command = container(
        &rootfs,
        "stat -c '%n %F %a %t:%T' /dev/null /dev/tty; wc -l < /proc/self/mountinfo; \
         echo through > /dev/null && cat /dev/null",
    );
    command.mounts([Mount::proc("/proc"), Mount::dev("/dev")]);
    assert_eq!(
        stdout(&mut command),
        "/dev/null character special file 666 1:3\n/dev/tty character special file 666 5:0\n3\n"
    );
}

#[test]
#[ignore = "needs root"]
fn a_detached_mount_becomes_the_root() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "ls /; touch /made; cat /proc/self/mountinfo");
    command
        .root(Root::detached(tree(rootfs.path())))
        .mount(Mount::proc("/proc"));
    let text = stdout(&mut command);
    assert!(text.starts_with("bin\netc\nproc\n"), "{text}");
    assert_eq!(
        text.lines().filter(|line| line.contains(" - ")).count(),
        2,
        "{text}"
    );
    assert!(rootfs.join("made").exists());
    // It has been moved: it cannot be used again.
    let error = command.spawn().expect_err("it is used up").to_string();
    assert!(error.contains("was not used before"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn a_detached_mount_becomes_the_root_of_a_user_namespace() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "ls /; id -u");
    command
        .root(Root::detached(tree(rootfs.path())))
        .user_namespace(UserMapping::CallerAsRoot);
    assert_eq!(stdout(&mut command), "bin\netc\n0\n");
}

#[test]
#[ignore = "needs root"]
fn detached_mounts_go_anywhere() {
    let rootfs = Rootfs::new();
    let mount = tmpfs();
    let mut command = container(
        &rootfs,
        "touch /here/it/is && ls /here/it; stat -f -c %T /here/it",
    );
    command.mount(Mount::detached(&mount, "/here/it").expect("duplicate"));
    assert_eq!(stdout(&mut command), "is\ntmpfs\n");
}

#[test]
#[ignore = "needs root"]
fn an_overlay_comes_as_a_descriptor() {
    let rootfs = Rootfs::new();
    let directory = tempfile::tempdir().expect("a directory");
    // Not every file system can be the upper one of an overlay.
    let place = directory.path().to_str().expect("text");
    common::run("mount", &["-t", "tmpfs", "none", place]);
    let _mounted = Mounted(directory.path());
    let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
    for (key, name) in [
        ("lowerdir", "lower"),
        ("upperdir", "upper"),
        ("workdir", "work"),
    ] {
        let path = directory.path().join(name);
        fs::create_dir(&path).expect("mkdir");
        fsconfig_set_string(&overlay, key, &path).expect("fsconfig");
    }
    fs::write(directory.path().join("lower/below"), "seen\n").expect("write");
    fsconfig_create(&overlay).expect("fsconfig");
    let none = MountAttrFlags::empty();
    let mount = fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, none).expect("fsmount");
    let mut command = container(&rootfs, "cat /over/below; echo written >/over/made");
    command.mount(Mount::detached(&mount, "/over").expect("duplicate"));
    assert_eq!(stdout(&mut command), "seen\n");
    let made = fs::read_to_string(directory.path().join("upper/made"));
    assert_eq!(made.expect("in the upper directory"), "written\n");
}

#[test]
#[ignore = "needs root"]
fn ranges_are_mapped() {
    let rootfs = Rootfs::new();
    let map = IdMap::ranges([
        IdRange {
            inside: 0,
            outside: 100_000,
            count: 1000,
        },
        IdRange {
            inside: 5000,
            outside: 200_000,
            count: 1,
        },
    ]);
    fs::create_dir(rootfs.join("out")).expect("mkdir");
    fs::set_permissions(rootfs.join("out"), PermissionsExt::from_mode(0o777)).expect("chmod");
    fs::set_permissions(rootfs.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let mut command = container(
        &rootfs,
        "touch /out/file; id -u; id -g; cat /proc/self/uid_map",
    );
    fs::create_dir(rootfs.join("proc")).expect("mkdir");
    command
        .mount(Mount::proc("/proc"))
        .user_namespace(UserMapping::Exact {
            uids: map.clone(),
            gids: map.clone(),
        })
        .uid(5000)
        .gid(7)
        .groups([8, 9]);
    let starting = command.start().expect("start");
    let mapping = starting.id_mapping().expect("a mapping");
    assert!(mapping.setgroups);
    assert_eq!(mapping.uids, map);
    drop(starting);
    let text = stdout(&mut command);
    assert!(text.starts_with("5000\n7\n"), "{text}");
    let file = fs::metadata(rootfs.join("out/file")).expect("it was made");
    assert_eq!((file.uid(), file.gid()), (200_000, 100_007));
}

/// The `Cap…` lines of `/proc/self/status`.
fn status(command: &mut Command) -> Vec<(String, u64)> {
    stdout(command)
        .lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(":\t")?;
            let bits = u64::from_str_radix(value, 16).ok()?;
            key.starts_with("Cap").then(|| (key.to_owned(), bits))
        })
        .collect()
}

#[test]
#[ignore = "needs root"]
fn capabilities_are_as_given() {
    let set = |capabilities: &[Capability]| capabilities.iter().copied().collect::<CapabilitySet>();
    let bounding = set(&[Capability::Chown, Capability::Kill, Capability::NetRaw]);
    let kept = set(&[Capability::Chown, Capability::Kill]);
    let one = set(&[Capability::Kill]);
    let bits = |command: &mut Command| -> Vec<u64> {
        status(command).into_iter().map(|(_, bits)| bits).collect()
    };
    // Root's sets are refilled from the bounding set by execve.
    let mut command = Command::new("cat");
    command
        .arg("/proc/self/status")
        .capabilities(Capabilities::limited_to(bounding));
    let all = bounding.bits();
    assert_eq!(bits(&mut command), [0, all, all, all, 0]);
    // Another user keeps the ambient set only.
    let mut command = Command::new("cat");
    command
        .arg("/proc/self/status")
        .uid(1000)
        .gid(1000)
        .capabilities(Capabilities {
            bounding,
            effective: kept,
            permitted: kept,
            inheritable: one,
            ambient: one,
        });
    let one = one.bits();
    assert_eq!(bits(&mut command), [one, one, one, all, one]);
    let mut command = Command::new("cat");
    command
        .arg("/proc/self/status")
        .capabilities(Capabilities::none());
    assert_eq!(bits(&mut command), [0; 5]);
}

#[test]
#[ignore = "needs root"]
fn users_and_groups_are_as_given() {
    let mut command = Command::new("grep");
    command
        .args(["-E", "^(Uid|Gid|Groups|NoNewPrivs)", "/proc/self/status"])
        .uid(1000)
        .gid(2000)
        .groups([3, 4])
        .no_new_privs(true);
    assert_eq!(
        stdout(&mut command)
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" "),
        "Uid: 1000 1000 1000 1000 Gid: 2000 2000 2000 2000 Groups: 3 4 NoNewPrivs: 1"
    );
    // A change of user drops the groups.
    let mut command = Command::new("grep");
    command.args(["Groups", "/proc/self/status"]).uid(1000);
    assert_eq!(stdout(&mut command).trim_end(), "Groups:");
}

#[test]
#[ignore = "needs root"]
fn a_directory_is_entered_with_either_users_rights() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path();
    fs::set_permissions(path, PermissionsExt::from_mode(0o700)).expect("chmod");
    // Root may enter it, the user may not.
    let mut command = Command::new("pwd");
    command
        .current_dir(path)
        .uid(1000)
        .gid(1000)
        .env("PWD", path);
    assert!(command.output().is_ok());
}

/// Groups to move a process into: of cgroup v2 and of every v1 hierarchy that is there.
struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    fn all(name: &str) -> Vec<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
        let name = format!("cofferdam-{name}-{}", std::process::id());
        mounts
            .lines()
            .filter(|line| {
                line.contains(" - cgroup2 ")
                    || line.contains(" - cgroup ") && line.contains("/pids ")
            })
            .filter_map(|line| line.split(' ').nth(4))
            .map(|mount| {
                let path = Path::new(mount).join(&name);
                fs::create_dir(&path).expect("make a cgroup");
                Self { path }
            })
            .collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last process may still be on its way out.
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

#[test]
#[ignore = "needs root"]
fn the_process_is_born_in_its_cgroup() {
    let groups = Cgroup::all("born");
    assert!(!groups.is_empty(), "no cgroup file system is mounted");
    for group in &groups {
        let directory = fs::File::open(&group.path).expect("open");
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).cgroup(&directory);
        let starting = command.start().expect("start");
        let procs = fs::read_to_string(group.path.join("cgroup.procs")).expect("read");
        assert_eq!(procs.trim(), starting.pid().to_string(), "{:?}", group.path);
        let mut child = starting.exec().expect("exec");
        assert!(child.wait().expect("wait").success());
        // A new cgroup namespace has the group as its root.
        let mut command = Command::new("cat");
        command
            .arg("/proc/self/cgroup")
            .cgroup(&directory)
            .unshare([Namespace::Cgroup]);
        let text = stdout(&mut command);
        assert!(text.lines().any(|line| line.ends_with(":/")), "{text}");
        assert!(!text.contains("cofferdam-born"), "{text}");
    }
    let file = fs::File::open("/tmp").expect("open");
    let error = Command::new("true")
        .cgroup(file)
        .spawn()
        .expect_err("no cgroup");
    assert!(matches!(error, Error::Cgroup { .. }), "{error}");
}

/// Runs a test of this file again as an unprivileged user, in a mount namespace where `/etc`
/// knows that user, with these subordinate ids.
fn again_as_user(test: &str, subordinate: &str) {
    const UID: u32 = 4242;
    let etc = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = etc.path().join(name);
        fs::write(&path, text).expect("write");
        fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("chmod");
        Mount::bind(path, Path::new("/etc").join(name)).create_target(false)
    };
    for name in ["subuid", "subgid"] {
        assert!(
            Path::new("/etc").join(name).exists(),
            "/etc/{name} is missing (package uidmap)"
        );
    }
    let home = tempfile::tempdir().expect("a directory");
    chown(home.path(), Some(UID), Some(UID)).expect("chown");
    let output = Command::new("/proc/self/exe")
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("TMPDIR", home.path())
        .unshare([Namespace::Mount])
        .mount(file(
            "passwd",
            "root:x:0:0::/:/bin/sh\ncoffer:x:4242:4242::/:/bin/sh\n",
        ))
        .mount(file("group", "root:x:0:\ncoffer:x:4242:\n"))
        .mount(file("subuid", subordinate))
        .mount(file("subgid", subordinate))
        .uid(UID)
        .gid(UID)
        .output()
        .expect("run this test as a user");
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
#[ignore = "needs root"]
fn subordinate_ids_are_mapped() {
    if is_root() {
        return again_as_user("subordinate_ids_are_mapped", "coffer:700000:1000\n");
    }
    let mut command = Command::new("sh");
    command
        .args(["-c", "cat /proc/self/uid_map; id -G"])
        .user_namespace(UserMapping::Subordinate)
        .groups([3, 999]);
    let starting = command.start().expect("start");
    let mapping = starting.id_mapping().expect("a mapping").clone();
    drop(starting);
    assert_eq!(mapping.degraded, None);
    assert!(mapping.setgroups);
    assert_eq!(mapping.uids.to_outside(0), Some(4242));
    assert_eq!(mapping.gids.to_outside(1000), Some(700_999));
    assert_eq!(mapping.gids.to_outside(1001), None);
    let text = stdout(&mut command);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(text, "0 4242 1 1 700000 1000 0 3 999");
}

#[test]
#[ignore = "needs root"]
fn without_subordinate_ids_one_is_mapped() {
    if is_root() {
        return again_as_user(
            "without_subordinate_ids_one_is_mapped",
            "other:700000:1000\n",
        );
    }
    let mut command = Command::new("id");
    command.arg("-u").user_namespace(UserMapping::Subordinate);
    let starting = command.start().expect("start");
    let mapping = starting.id_mapping().expect("a mapping").clone();
    drop(starting);
    let reason = mapping.degraded.expect("it is degraded");
    assert_eq!(
        reason,
        Degradation::NoSubordinateIds {
            user: "coffer".into(),
            file: "/etc/subuid".into()
        }
    );
    assert!(
        reason
            .to_string()
            .ends_with("run `usermod --add-subuids 100000-165535 coffer` as root"),
        "{reason}"
    );
    assert!(!mapping.setgroups);
    assert_eq!(stdout(&mut command), "0\n");
    // Ids that are nobody's to give are refused, not reduced.
    let wanted = IdMap::ranges([IdRange {
        inside: 0,
        outside: 700_000,
        count: 10,
    }]);
    let mut command = Command::new("true");
    command.user_namespace(UserMapping::Exact {
        uids: wanted.clone(),
        gids: wanted,
    });
    let error = command.start().expect_err("not the caller's ids");
    assert!(
        matches!(
            error,
            Error::IdMapHelper {
                helper: "newuidmap",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
#[ignore = "needs root"]
fn a_user_needs_a_user_namespace() {
    if is_root() {
        return again_as_user("a_user_needs_a_user_namespace", "");
    }
    let error = Command::new("true")
        .unshare([Namespace::Net])
        .spawn()
        .expect_err("no privilege");
    assert!(
        error
            .to_string()
            .contains("a user namespace is needed as well"),
        "{error}"
    );
}

/// What the engine does: the program runs itself again as root of a user namespace and makes
/// containers from there.
#[test]
#[ignore = "needs root"]
fn a_program_runs_itself_as_root_of_a_user_namespace() {
    const MARK: &str = "COFFERDAM_INSIDE";
    const NAME: &str = "a_program_runs_itself_as_root_of_a_user_namespace";
    if std::env::var_os(MARK).is_some() {
        assert!(is_root());
        let rootfs = Rootfs::new();
        let mut command = container(&rootfs, "echo $$ $(id -u) $(hostname); ls /dev/pts");
        command.hostname("nested").mounts(Mount::standard());
        assert_eq!(stdout(&mut command), "1 0 nested\nptmx\n");
        // Files of other users can be made.
        chown(rootfs.join("etc"), Some(33), Some(33)).expect("chown");
        return;
    }
    if is_root() {
        return again_as_user(NAME, "coffer:700000:65536\n");
    }
    let status = Command::new("/proc/self/exe")
        .args(["--exact", NAME, "--ignored", "--nocapture"])
        .env(MARK, "1")
        .unshare([Namespace::Mount])
        .user_namespace(UserMapping::Subordinate)
        .status()
        .expect("run this test inside");
    assert!(status.success(), "{status}");
}

#[test]
#[ignore = "needs root"]
fn a_namespace_outlives_its_processes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("uts");
    let mut command = Command::new("true");
    let mut starting = command
        .unshare([Namespace::Uts])
        .hostname("persistent")
        .start()
        .expect("start");
    starting
        .advance(namespaces::Barrier::Ready)
        .expect("advance");
    let id = NamespaceId::of_process(starting.pid(), Namespace::Uts).expect("an id");
    let file = fs::File::open(format!("/proc/{}/ns/uts", starting.pid())).expect("open");
    namespaces::persist(&file, &path).expect("persist");
    let _mounted = Mounted(&path);
    drop((starting, file));
    let mut command = Command::new("sh");
    command
        .args(["-c", "hostname; readlink /proc/self/ns/uts"])
        .join_path(Namespace::Uts, &path);
    assert_eq!(stdout(&mut command), format!("persistent\n{id}\n"));
    assert_ne!(
        id,
        NamespaceId::of_this_thread(Namespace::Uts).expect("an id")
    );
}
