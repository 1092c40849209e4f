//! What an image or a process inside may try, and what other runtimes have fallen for.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Rootfs, container, stdout};
use namespaces::{Barrier, Command, Error, Mount, Namespace, Stdio, Step, UserMapping};

/// Swaps `name` between a directory and a link to `outside`, until told to stop.
fn swap(rootfs: &Path, outside: &Path, stop: &AtomicBool) {
    let directory = rootfs.join("target");
    let link = rootfs.join("link");
    symlink(outside, &link).expect("symlink");
    while !stop.load(Ordering::Relaxed) {
        // One call exchanges the two, so that the name always leads somewhere.
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            &directory,
            rustix::fs::CWD,
            &link,
            rustix::fs::RenameFlags::EXCHANGE,
        )
        .expect("exchange");
    }
}

/// CVE-2021-30465 and its kin: between the check of a target and the mount on it, the target
/// becomes a link that leads out.
#[test]
fn a_link_swapped_for_a_target_does_not_lead_out() {
    let rootfs = Rootfs::new();
    let outside = tempfile::tempdir().expect("a directory");
    fs::write(outside.path().join("outside"), "").expect("write");
    fs::create_dir(rootfs.join("target")).expect("mkdir");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| swap(rootfs.path(), outside.path(), &stop));
        for _ in 0..40 {
            let mut command = container(&rootfs, "cat /proc/self/mountinfo");
            command
                .mount(Mount::proc("/proc"))
                .mount(Mount::tmpfs("/target/deep/one"))
                .mount(Mount::bind("/usr/share", "/target/two"))
                .masked_paths(["/target/outside"])
                .read_only_paths(["/target"]);
            match command.output() {
                Ok(output) => {
                    let text = String::from_utf8_lossy(&output.stdout);
                    // Nothing of the place outside can be seen: not as a mount's root either.
                    let escaped = text
                        .lines()
                        .any(|line| line.split(' ').nth(3) == outside.path().to_str());
                    assert!(!escaped, "{text}");
                }
                // An attack that is noticed.
                Err(Error::Step(error)) => {
                    assert!(
                        matches!(error.step(), Step::Mount | Step::Mask | Step::ReadOnly),
                        "{error}"
                    );
                }
                Err(error) => panic!("{error}"),
            }
            let left: Vec<_> = fs::read_dir(outside.path()).expect("read").collect();
            assert_eq!(left.len(), 1, "made outside: {left:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// CVE-2025-31133: the image brings a `/dev/null` of its own to be bound over what is masked.
#[test]
fn a_false_null_device_is_not_used() {
    let rootfs = Rootfs::new();
    fs::create_dir(rootfs.join("dev")).expect("mkdir");
    fs::write(rootfs.join("treasure"), "treasure").expect("write");
    fs::write(rootfs.join("secret"), "secret").expect("write");
    symlink("/treasure", rootfs.join("dev/null")).expect("symlink");
    let mut command = container(&rootfs, "cat /secret; echo x > /secret; cat /treasure");
    command.masked_paths(["/secret"]);
    assert_eq!(stdout(&mut command), "treasure");
    assert_eq!(fs::read(rootfs.join("secret")).expect("read"), b"secret");
}

/// CVE-2024-21626: a working directory that leads to a descriptor of something outside.
#[test]
fn a_working_directory_outside_is_refused() {
    let rootfs = Rootfs::new();
    let outside = fs::File::open("/usr").expect("open");
    let mut refused = 0;
    for number in 3..40 {
        let mut command = container(&rootfs, "pwd; ls");
        command
            .mount(Mount::proc("/proc"))
            .fd(20, outside.try_clone().expect("duplicate"))
            .current_dir(format!("/proc/self/fd/{number}"));
        match command.output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                assert!(text.starts_with("/\n"), "{number}: {text}");
                assert!(text.contains("bin\netc\n"), "{number}: {text}");
            }
            Err(Error::Step(error)) => {
                assert_eq!(error.step(), Step::CurrentDirectory, "{error}");
                if error.operation() == "getcwd" {
                    refused += 1;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(refused, 1, "one number is the directory outside");
}

/// CVE-2019-16884: the image or a volume covers `/proc` to catch what is written there.
#[test]
fn kernel_parameters_do_not_go_through_a_false_proc() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "cat /real/sys/net/ipv4/ip_forward; ls -A /proc");
    command
        .sysctl("net.ipv4.ip_forward", "1")
        .mount(Mount::proc("/real"))
        .mount(Mount::tmpfs("/proc"));
    assert_eq!(stdout(&mut command), "1\n");
}

/// CVE-2016-9962, CVE-2019-5736: a process that joins can be looked into, or its executable
/// reached, by those who are there already.
#[test]
fn a_joining_process_cannot_be_looked_into() {
    let mut command = Command::new("cat");
    command
        .stdin(Stdio::piped())
        .unshare([Namespace::Pid, Namespace::Mount])
        .user_namespace(UserMapping::CallerAsRoot)
        .mount(Mount::proc("/proc"));
    let first = command.spawn().expect("spawn");
    let join = |program: &str| {
        let mut command = Command::new(program);
        for kind in [Namespace::User, Namespace::Pid, Namespace::Mount] {
            command.join(kind, &first);
        }
        command
    };
    let mut victim = join("true");
    let mut victim = victim.start().expect("start");
    victim.advance(Barrier::Ready).expect("advance");
    // Inside, it is the only one that is neither PID 1 nor the shell nor its child.
    let mut attacker = join("sh");
    attacker.args([
        "-c",
        "for pid in $(ls /proc | grep '^[0-9]'); do \
           test $pid = 1 || test $pid = $$ || test ! -e /proc/$pid/status || { \
             grep -q 'PPid:\t0$' /proc/$pid/status && { \
               readlink /proc/$pid/exe && echo exe; cat /proc/$pid/environ && echo environ; \
               readlink /proc/$pid/fd/0 && echo fd; echo tried; } } done 2>/dev/null; true",
    ]);
    assert_eq!(stdout(&mut attacker), "tried\n");
    drop(victim);
}

/// A device that is bound must be that device (CVE-2025-52565), and a target that is a link of
/// the kernel's own leads nowhere.
#[test]
fn links_of_proc_are_not_followed() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "true");
    command
        .mount(Mount::proc("/proc"))
        .mount(Mount::tmpfs("/proc/self/root"));
    let Err(Error::Step(error)) = command.spawn() else {
        panic!("it must fail");
    };
    assert_eq!(error.step(), Step::Mount);
    assert_eq!(error.operation(), "openat2");
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
