//! A root file system of one's own, in namespaces of one's own.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{Rootfs, container, stdout};
use namespaces::{Barrier, Command, Error, Mount, MountAttributes, Namespace, Step, UserMapping};

#[test]
fn it_is_alone() {
    let rootfs = Rootfs::new();
    let mut command = container(
        &rootfs,
        "echo $$; hostname; id -u; echo /proc/[0-9]*; ip -o link | wc -l; ls /",
    );
    command.hostname("alone").mounts(Mount::standard());
    assert_eq!(
        stdout(&mut command),
        "1\nalone\n0\n/proc/1\n1\nbin\ndev\netc\nproc\nsys\n"
    );
}

#[test]
fn the_old_root_is_gone() {
    let rootfs = Rootfs::new();
    let mut command = container(
        &rootfs,
        "cat /proc/self/mountinfo; cd /; cd ..; cd ../..; pwd; ls",
    );
    command.mount(Mount::proc("/proc"));
    let text = stdout(&mut command);
    let mounts: Vec<&str> = text
        .lines()
        .filter(|line| line.contains(" - "))
        .filter_map(|line| line.split(' ').nth(4))
        .collect();
    assert_eq!(mounts, ["/", "/proc"]);
    assert!(text.ends_with("/\nbin\netc\nproc\n"), "{text}");
}

#[test]
fn nothing_is_mounted_outside() {
    let rootfs = Rootfs::new();
    let mounts = || fs::read_to_string("/proc/self/mountinfo").expect("read");
    let mut command = container(&rootfs, "mount");
    command.mounts(Mount::standard());
    let mut starting = command.start().expect("start");
    starting.advance(Barrier::Ready).expect("advance");
    let path = rootfs.path().to_str().expect("text");
    assert!(!mounts().contains(path), "{}", mounts());
    drop(starting);
    assert!(!mounts().contains(path));
}

#[test]
fn devices_work() {
    let rootfs = Rootfs::new();
    let mut command = container(
        &rootfs,
        "cat /dev/null; dd if=/dev/zero bs=3 count=1 2>/dev/null | wc -c; \
         dd if=/dev/urandom bs=5 count=1 2>/dev/null | wc -c; \
         for link in fd stdin stdout stderr ptmx; do readlink /dev/$link; done; \
         echo x 2>/dev/null > /dev/full || echo full; ls /dev; stat -c %a /dev /dev/shm",
    );
    command.mounts(Mount::standard());
    let text = stdout(&mut command);
    assert_eq!(
        text.split_whitespace().collect::<Vec<_>>().join(" "),
        "3 5 /proc/self/fd /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 pts/ptmx full \
         fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 755 1777"
    );
}

#[test]
fn paths_are_masked_and_read_only() {
    let rootfs = Rootfs::new();
    fs::write(rootfs.join("etc/secret"), "secret").expect("write");
    fs::create_dir(rootfs.join("vault")).expect("mkdir");
    fs::write(rootfs.join("vault/secret"), "secret").expect("write");
    fs::create_dir_all(rootfs.join("fixed")).expect("mkdir");
    let mut command = container(
        &rootfs,
        "wc -c < /etc/secret; ls -A /vault | wc -l; touch /vault/x || echo vault; \
         touch /fixed/x || echo fixed; touch /etc/x && echo etc; \
         echo 1 > /proc/sys/kernel/hostname || echo sys",
    );
    command
        .mount(Mount::proc("/proc"))
        .masked_paths(["/etc/secret", "/vault", "/no/such/path"])
        .read_only_paths(["/fixed", "/proc/sys", "/not/there"]);
    assert_eq!(stdout(&mut command), "0\n0\nvault\nfixed\netc\nsys\n");
}

#[test]
fn a_read_only_root_leaves_mounts_writable() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "touch /x || echo no; touch /run/x && echo yes");
    command.mount(Mount::tmpfs("/run")).root_read_only(true);
    assert_eq!(stdout(&mut command), "no\nyes\n");
    // The directory itself is as it was.
    fs::write(rootfs.join("x"), "").expect("write");
}

#[test]
fn the_machine_itself_can_be_the_root() {
    let scratch = tempfile::tempdir().expect("a directory");
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "touch here && echo here; touch /usr/x 2>/dev/null || echo no; \
             touch /tmp/x && echo tmp; ls /tmp",
        ])
        .unshare([Namespace::Mount])
        .user_namespace(UserMapping::CallerAsRoot)
        .root("/")
        .root_tree_read_only(true)
        .mount(Mount::tmpfs("/tmp"))
        .mount(Mount::bind(scratch.path(), "/tmp/build"))
        .current_dir("/tmp/build");
    assert_eq!(stdout(&mut command), "here\nno\ntmp\nbuild\nx\n");
    assert!(scratch.path().join("here").exists());
    let error = Command::new("true")
        .unshare([Namespace::Mount])
        .mount(Mount::tmpfs("/."))
        .start()
        .expect_err("a mount on the root");
    assert!(
        matches!(
            error,
            Error::Invalid {
                setting: "mounts",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn binds_bring_files_and_directories() {
    let rootfs = Rootfs::new();
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("file"), "inside\n").expect("write");
    let mut command = container(
        &rootfs,
        "cat /deep/down/here/file /deep/file; touch /deep/down/here/x && echo writable; \
         touch /fixed/y || echo fixed",
    );
    command
        .mount(Mount::bind(outside.path(), "/deep/down/here"))
        .mount(Mount::bind(outside.path().join("file"), "/deep/file"))
        .mount(Mount::bind(outside.path(), "/fixed").read_only());
    assert_eq!(stdout(&mut command), "inside\ninside\nwritable\nfixed\n");
    assert!(outside.path().join("x").exists());
    assert!(!outside.path().join("y").exists());
}

#[test]
fn links_of_the_image_do_not_lead_out() {
    let rootfs = Rootfs::new();
    let outside = tempfile::tempdir().expect("a directory");
    let target = outside.path().to_str().expect("text");
    // Absolute and climbing links are resolved as the program would: inside.
    symlink(target, rootfs.join("absolute")).expect("symlink");
    symlink(format!("../../../../..{target}"), rootfs.join("climbing")).expect("symlink");
    fs::create_dir_all(rootfs.path().join(target.trim_start_matches('/'))).expect("mkdir");
    let mut command = container(&rootfs, "cat /proc/self/mountinfo");
    command
        .mount(Mount::proc("/proc"))
        .mount(Mount::tmpfs("/absolute/one"))
        .mount(Mount::tmpfs("/climbing/two"));
    let text = stdout(&mut command);
    assert!(text.contains(&format!(" {target}/one ")), "{text}");
    assert!(text.contains(&format!(" {target}/two ")), "{text}");
    assert_eq!(
        fs::read_dir(outside.path()).expect("read").count(),
        0,
        "something was made outside"
    );
}

#[test]
fn a_missing_target_can_be_refused() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "true");
    command.mount(Mount::tmpfs("/missing").create_target(false));
    let Err(Error::Step(error)) = command.spawn() else {
        panic!("it must fail");
    };
    assert_eq!(error.step(), Step::Mount);
    assert_eq!(error.detail(), "mount tmpfs on /missing");
    assert_eq!(error.target(), Some(Path::new("/missing")));
    assert!(!rootfs.join("missing").exists());
}

#[test]
fn the_program_is_looked_up_inside() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "");
    let error = {
        let mut inner = Command::new("rustc");
        inner
            .env("PATH", "/bin:/usr/bin")
            .unshare([Namespace::Mount])
            .user_namespace(UserMapping::CallerAsRoot)
            .root(rootfs.path());
        inner.spawn().expect_err("it is outside only")
    };
    assert_eq!(error.shell_status(), Some(127));
    assert!(command.status().expect("status").success());
}

#[test]
fn the_working_directory_is_inside() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "pwd");
    command.current_dir("/work/here").create_current_dir(true);
    assert_eq!(stdout(&mut command), "/work/here\n");
    assert_eq!(stdout(&mut container(&rootfs, "pwd")), "/\n");
}

#[test]
fn attributes_are_set() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "cat /proc/self/mountinfo");
    command
        .mount(Mount::proc("/proc").option("hidepid", "2"))
        .mount(
            Mount::tmpfs("/run")
                .option("size", "1m")
                .option("mode", "0700")
                .source_name("scratch")
                .with(MountAttributes::NO_EXEC | MountAttributes::NO_ATIME),
        );
    let text = stdout(&mut command);
    let run = text
        .lines()
        .find(|line| line.contains(" /run "))
        .expect("it is mounted");
    assert!(run.contains(" rw,nosuid,nodev,noexec,noatime "), "{run}");
    assert!(
        run.contains(" tmpfs scratch rw,size=1024k,mode=700"),
        "{run}"
    );
    assert!(text.contains("hidepid=invisible"), "{text}");
}

#[test]
fn proc_can_show_processes_only() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "ls /proc");
    command.mount(Mount::proc("/proc").option("subset", "pid"));
    let text = stdout(&mut command);
    let known = |name: &str| name.parse::<u32>().is_ok() || name.ends_with("self");
    assert!(text.lines().all(known), "{text}");
    assert!(text.lines().any(|name| name == "1"), "{text}");
}

#[test]
fn control_groups_are_seen_from_the_new_namespace() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "ls /groups; cat /proc/self/mountinfo");
    command
        .mount(Mount::proc("/proc"))
        .mount(Mount::cgroup2("/groups"));
    let text = stdout(&mut command);
    assert!(text.lines().any(|line| line == "cgroup.procs"), "{text}");
    let mount = text.lines().find(|line| line.contains(" - cgroup2 "));
    let fields: Vec<&str> = mount.expect("a mount").split(' ').collect();
    // What is mounted is the group of the process, as the root of what it sees.
    assert_eq!(fields[3..5], ["/", "/groups"], "{text}");
    assert!(fields[5].contains("nosuid,nodev,noexec"), "{text}");
}

#[test]
fn a_bad_option_is_told() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "true");
    command.mount(Mount::tmpfs("/run").option("no-such-option", "1"));
    let error = command.spawn().expect_err("no such option").to_string();
    assert!(error.starts_with("mount tmpfs on /run (step "), "{error}");
    assert!(
        error.contains("does not take one of the options"),
        "{error}"
    );
}

#[test]
fn loopback_is_up_when_asked_for() {
    let rootfs = Rootfs::new();
    let up = |up| {
        let mut command = container(&rootfs, "ip -o link show lo");
        command.loopback_up(up);
        stdout(&mut command).contains("LOOPBACK,UP")
    };
    assert!(up(true));
    assert!(!up(false));
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
