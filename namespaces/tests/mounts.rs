//! What mounts can be told besides where they go: attributes of trees, contents, links.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use common::{Mounted, Rootfs, container, stdout};
use namespaces::{
    Command, Device, DeviceKind, Error, IdMap, Mount, MountAttributes as A, Namespace, Propagation,
    Stdio, Step, UserMapping,
};

/// The options of the mounts below a path, as the program sees them.
fn options(command: &mut Command, below: &str) -> BTreeMap<String, Vec<String>> {
    stdout(command)
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split(' ').collect();
            let at = fields.get(4)?.strip_prefix(below)?;
            let options = fields.get(5)?.split(',').map(str::to_owned).collect();
            Some((at.to_owned(), options))
        })
        .collect()
}

#[test]
fn attributes_of_a_tree_and_of_its_top_differ() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "cat /proc/self/mountinfo");
    // Other things are mounted below it on every machine.
    command.mount(Mount::proc("/proc")).mount(
        Mount::bind("/sys", "/t")
            .with_recursive(A::NO_EXEC | A::NO_SUID | A::READ_ONLY)
            .with(A::NO_SYMLINK_FOLLOW),
    );
    let seen = options(&mut command, "/t");
    assert!(seen.len() > 1, "something is mounted below /sys: {seen:?}");
    for (at, options) in &seen {
        for wanted in ["noexec", "nosuid", "ro"] {
            assert!(
                options.iter().any(|option| option == wanted),
                "{at}: {options:?}"
            );
        }
        let top = at.is_empty();
        let follows_not = options.iter().any(|option| option == "nosymfollow");
        assert_eq!(follows_not, top, "{at}: {options:?}");
    }
}

#[test]
fn the_top_counts_more_than_the_tree() {
    let rootfs = Rootfs::new();
    let outside = tempfile::tempdir().expect("a directory");
    let mut command = container(&rootfs, "echo x > /t/file && cat /proc/self/mountinfo");
    command.mount(Mount::proc("/proc")).mount(
        Mount::bind(outside.path(), "/t")
            .with_recursive(A::READ_ONLY | A::NO_EXEC)
            .without(A::READ_ONLY),
    );
    let seen = options(&mut command, "/t");
    assert!(seen[""].contains(&"rw".to_owned()), "{seen:?}");
    assert!(seen[""].contains(&"noexec".to_owned()), "{seen:?}");
    assert!(outside.path().join("file").exists());
}

/// A directory with one of everything.
fn furnish(rootfs: &Rootfs) {
    let data = rootfs.join("data");
    fs::create_dir_all(data.join("deep/er/still")).expect("mkdir");
    fs::write(data.join("file"), vec![7; 3_000_000]).expect("write");
    fs::write(data.join("deep/er/empty"), "").expect("write");
    fs::write(data.join("deep/run"), "#!/bin/sh\n").expect("write");
    fs::set_permissions(data.join("deep/run"), PermissionsExt::from_mode(0o4751)).expect("chmod");
    fs::set_permissions(data.join("deep"), PermissionsExt::from_mode(0o1710)).expect("chmod");
    fs::set_permissions(&data, PermissionsExt::from_mode(0o2770)).expect("chmod");
    symlink("../no/where", data.join("deep/link")).expect("symlink");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        data.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o640),
        0,
    )
    .expect("mkfifo");
    for number in 0..300 {
        fs::write(data.join(format!("many-{number:060}")), number.to_string()).expect("write");
    }
}

const LOOK: &str = "cd /data; for f in . $(busybox find . | busybox sort); do \
                    stat -c '%n %f %s %Y' $f; done; busybox sha256sum file many-* deep/run; readlink deep/link";

#[test]
fn contents_are_copied_up() {
    let rootfs = Rootfs::new();
    furnish(&rootfs);
    let plain = stdout(&mut container(&rootfs, LOOK));
    // Sizes of directories are the file system's own matter.
    let compare = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                match fields.as_slice() {
                    [name, mode, _, time] if mode.starts_with('4') => {
                        format!("{name} {mode} {time}")
                    }
                    _ => line.to_owned(),
                }
            })
            .collect()
    };
    let mut command = container(&rootfs, &format!("{LOOK}; rm -r many-*; echo x > new"));
    command.mount(Mount::tmpfs("/data").copy_up(true));
    let (copied, plain) = (compare(&stdout(&mut command)), compare(&plain));
    assert_eq!(copied.len(), plain.len());
    for (copied, plain) in copied.iter().zip(&plain) {
        assert_eq!(copied, plain);
    }
    // What was covered is as it was.
    assert!(!rootfs.join("data/new").exists());
    assert_eq!(
        fs::read_dir(rootfs.join("data")).expect("read").count(),
        303
    );
    let mut command = container(
        &rootfs,
        "stat -c %f /data; echo x > /data/x; ls /data | wc -l",
    );
    let mount = Mount::tmpfs("/data").copy_up(true).option("mode", "0700");
    command.mount(mount.with(A::READ_ONLY));
    let output = command.output().expect("output");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "41c0\n303\n");
    assert!(!output.status.success() || !output.stderr.is_empty());
}

#[test]
fn what_does_not_fit_is_told() {
    let rootfs = Rootfs::new();
    furnish(&rootfs);
    let mut command = container(&rootfs, "true");
    command.mount(Mount::tmpfs("/data").copy_up(true).option("size", "1m"));
    let Err(Error::Step(error)) = command.spawn() else {
        panic!("it must fail");
    };
    assert_eq!((error.step(), error.operation()), (Step::Mount, "sendfile"));
    let mut deep = rootfs.join("deep");
    for _ in 0..70 {
        deep.push("d");
    }
    fs::create_dir_all(deep).expect("mkdir");
    let mut command = container(&rootfs, "true");
    command.mount(Mount::tmpfs("/deep").copy_up(true));
    let error = command.spawn().expect_err("too deep").to_string();
    assert!(error.contains("more than 64 deep"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn owners_and_devices_are_copied_up() {
    use namespaces::Namespace;
    let rootfs = Rootfs::new();
    fs::create_dir(rootfs.join("data")).expect("mkdir");
    fs::write(rootfs.join("data/file"), "").expect("write");
    chown(rootfs.join("data/file"), Some(12), Some(34)).expect("chown");
    std::os::unix::fs::lchown(rootfs.join("data"), Some(56), Some(78)).expect("chown");
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        rootfs.join("data/null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o604),
        device,
    )
    .expect("mknod");
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "stat -c '%n %u %g %f %t:%T' /data /data/*"])
        .env_clear()
        .env("PATH", "/bin")
        .unshare([Namespace::Mount, Namespace::Pid])
        .root(rootfs.path())
        .mount(Mount::tmpfs("/data").copy_up(true));
    assert_eq!(
        stdout(&mut command),
        "/data 56 78 41ed 0:0\n/data/file 12 34 81a4 0:0\n/data/null 0 0 2184 1:3\n"
    );
    assert_eq!(fs::metadata(rootfs.join("data")).expect("stat").uid(), 56);
}

#[test]
fn what_is_mounted_can_be_changed() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "cat /proc/self/mountinfo");
    command
        .mount(Mount::proc("/proc"))
        .mount(Mount::tmpfs("/t").option("size", "64k"))
        .mount(
            Mount::mounted("/t")
                .option("size", "128k")
                .with(A::NO_EXEC)
                .without(A::NO_SUID),
        );
    let seen = stdout(&mut command);
    let line = seen
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/t"))
        .expect("it is mounted");
    assert!(line.contains("size=128k"), "{line}");
    let options = options(&mut command, "/t");
    assert!(options[""].contains(&"noexec".into()), "{line}");
    assert!(!options[""].contains(&"nosuid".into()), "{line}");

    let mut nothing = container(&rootfs, "true");
    nothing.mount(Mount::mounted("/etc").with(A::NO_EXEC));
    let error = nothing.spawn().expect_err("nothing is mounted there");
    let text = error.to_string();
    assert!(
        text.contains("change what is mounted on /etc") && text.contains("nothing is mounted"),
        "{text}"
    );
}

#[test]
fn links_and_late_read_only() {
    let rootfs = Rootfs::new();
    symlink("theirs", rootfs.join("etc/there")).expect("symlink");
    let script = "for l in /dev/fd2 /dev/ptmx /etc/there /new/in/link; do readlink $l; done; \
                  echo x > /dev/x || echo refused; stat -c %a /dev; ls /dev/fifo; \
                  echo x > /dev/shm/x && echo shm";
    let mut command = container(&rootfs, script);
    command
        .mount(Mount::proc("/proc"))
        .mount(
            Mount::dev("/dev")
                .option("mode", "751")
                .read_only_when_done(),
        )
        .mount(Mount::tmpfs("/dev/shm"))
        .devices([Device::new("/dev/fifo", DeviceKind::Fifo, 0, 0)])
        .link("/dev/fd2", "/proc/self/fd")
        .link("/dev/ptmx", "not this one")
        .link("/etc/there", "ours")
        .link("/new/in/link", "to");
    assert_eq!(
        stdout(&mut command),
        "/proc/self/fd\npts/ptmx\ntheirs\nto\nrefused\n751\n/dev/fifo\nshm\n"
    );
    let error = Command::new("true")
        .link("/a", "b")
        .spawn()
        .expect_err("no mount namespace");
    assert!(
        error.to_string().starts_with("devices and links: "),
        "{error}"
    );
}

/// To whom the mount at `target` is tied, as `mountinfo` shows it.
fn peers<'a>(text: &'a str, target: &str) -> Vec<&'a str> {
    let line = text
        .lines()
        .find(|line| line.split(' ').nth(4) == Some(target));
    let fields = line.expect("it is mounted").split(' ').skip(6);
    fields.take_while(|field| *field != "-").collect()
}

#[test]
fn propagation_is_as_given() {
    let rootfs = Rootfs::new();
    let look = || {
        let mut command = container(&rootfs, "cat /proc/self/mountinfo");
        command.mount(Mount::proc("/proc"));
        command
    };
    let mut command = look();
    command
        .mount(Mount::tmpfs("/shared").propagation(Propagation::Shared))
        .mount(Mount::tmpfs("/unbindable").propagation(Propagation::Unbindable))
        .mount(Mount::tmpfs("/private"))
        .mount(Mount::tmpfs("/tree"))
        .mount(Mount::tmpfs("/tree/below"))
        .mount(Mount::mounted("/tree").propagation_recursive(Propagation::Shared));
    let text = stdout(&mut command);
    for shared in ["/shared", "/tree", "/tree/below"] {
        let peers = peers(&text, shared);
        assert!(
            peers.len() == 1 && peers[0].starts_with("shared:"),
            "{text}"
        );
    }
    assert_eq!(peers(&text, "/unbindable"), ["unbindable"], "{text}");
    assert!(peers(&text, "/private").is_empty(), "{text}");
    assert!(peers(&text, "/").is_empty(), "{text}");
    let text = stdout(look().root_propagation(Propagation::Shared));
    for shared in ["/", "/proc"] {
        let peers = peers(&text, shared);
        assert!(
            peers.iter().any(|peer| peer.starts_with("shared:")),
            "{text}"
        );
    }
    let text = stdout(look().root_propagation(Propagation::Unbindable));
    assert_eq!(peers(&text, "/"), ["unbindable"], "{text}");
}

#[test]
#[ignore = "needs root"]
fn slaves_receive_what_is_mounted_outside_later() {
    let rootfs = Rootfs::new();
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().to_str().expect("text");
    common::run("mount", &["-t", "tmpfs", "none", place]);
    let _mounted = Mounted(directory.path());
    common::run("mount", &["--make-shared", place]);
    let late = directory.path().join("late");
    fs::create_dir(&late).expect("mkdir");
    let mut command = container(
        &rootfs,
        "read line; ls /slave/late; echo --; ls /private/late",
    );
    command
        .root_propagation(Propagation::Slave)
        .mount(Mount::bind(directory.path(), "/slave").propagation(Propagation::Slave))
        .mount(Mount::bind(directory.path(), "/private").propagation(Propagation::Private))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.spawn().expect("spawn");
    common::run(
        "mount",
        &["-t", "tmpfs", "none", late.to_str().expect("text")],
    );
    let _late = Mounted(&late);
    fs::write(late.join("arrived"), "").expect("write");
    drop(child.stdin.take());
    let output = child.wait_with_output().expect("wait");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "arrived\n--\n");
}

/// A directory of the user 1000 on an ext4 of its own, which every kernel from 5.12 on can idmap,
/// and below it `inner`, a mount of another one of that user.
fn on_ext4(directory: &Path) -> (Mounted<'_>, PathBuf) {
    let image = directory.with_extension("ext4");
    let file = fs::File::create(&image).expect("create an image");
    file.set_len(8 << 20).expect("make it large");
    let image = image.to_str().expect("text");
    let place = directory.to_str().expect("text");
    common::run("mkfs.ext4", &["-q", image]);
    // A module on some kernels, built in on others.
    let _ = std::process::Command::new("modprobe").arg("loop").status();
    common::run("mount", &["-o", "loop", image, place]);
    let mounted = Mounted(directory);
    for name in ["", "inner", "other"] {
        let path = directory.join(name);
        fs::create_dir_all(&path).expect("mkdir");
        chown(&path, Some(1000), Some(1000)).expect("chown");
    }
    let inner = directory.join("inner");
    rustix::mount::mount_bind(directory.join("other"), &inner).expect("bind");
    (mounted, inner)
}

/// A user namespace in which 1000 is 5000 outside.
fn shifted() -> OwnedFd {
    let map = IdMap::single(1000, 5000);
    namespaces::user_namespace(UserMapping::Exact {
        uids: map.clone(),
        gids: map,
    })
    .expect("a user namespace")
}

#[test]
#[ignore = "needs root"]
fn idmapped_binds_shift_owners() {
    let rootfs = Rootfs::new();
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("fs");
    fs::create_dir(&place).expect("mkdir");
    let (_outer, inner) = on_ext4(&place);
    let _inner = Mounted(&inner);
    let user = shifted();
    let owners = |mount: Mount| {
        let mut command = Command::new("sh");
        command
            .args(["-c", "stat -c %u:%g /data /data/inner; touch /data/new"])
            .env_clear()
            .env("PATH", "/bin")
            .unshare([Namespace::Mount])
            .root(rootfs.path())
            .mount(mount);
        // A file of root, who has no number in the map, cannot be made.
        let output = command.output().unwrap_or_else(|error| panic!("{error}"));
        (
            String::from_utf8(output.stdout).expect("text"),
            output.status.success(),
        )
    };
    let bind = || Mount::bind(&place, "/data");
    let top = bind().idmapped(&user).expect("duplicate");
    assert_eq!(owners(top), ("5000:5000\n1000:1000\n".into(), false));
    let all = bind().idmapped_recursive(&user).expect("duplicate");
    assert_eq!(owners(all), ("5000:5000\n5000:5000\n".into(), false));
    assert_eq!(owners(bind()), ("1000:1000\n1000:1000\n".into(), true));
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_idmapped_is_told() {
    let rootfs = Rootfs::new();
    let mount = Mount::bind_single("/proc", "/data").idmapped(shifted());
    let mut command = Command::new("/bin/true");
    command
        .unshare([Namespace::Mount])
        .root(rootfs.path())
        .mount(mount.expect("duplicate"));
    let Err(Error::Step(error)) = command.spawn() else {
        panic!("proc cannot be idmapped");
    };
    assert_eq!(error.operation(), "mount_setattr");
    assert_eq!(error.io_error().raw_os_error(), Some(22));
    assert!(error.to_string().contains("cannot be idmapped"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
