//! Every system call of a plan is made to fail: the error names the step, and nothing is left.
//!
//! A test runs itself again under a seccomp filter that lets one system call fail, and reports
//! from there. All but what is under test is as in any program.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::{Rootfs, container, everything, failing, traces};
use namespaces::{Barrier, Command, Error, Mount, MountAttributes, Scheduler, UserMapping};

const CASE: &str = "COFFERDAM_FAULT";

/// A copy of this program in the temporary directory. Where programs are read over a slow file
/// system without a cache, as in the lab, running it dozens of times takes minutes otherwise.
struct Copy {
    directory: tempfile::TempDir,
}

impl Copy {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::copy("/proc/self/exe", directory.path().join("test")).expect("copy this program");
        Self { directory }
    }

    /// Runs a test of this file again with one system call failing; gives what it printed.
    fn again(&self, test: &str, call: libc::c_long, errno: i32) -> String {
        again(&self.directory.path().join("test"), test, call, errno)
    }
}

fn again(program: &std::path::Path, test: &str, call: libc::c_long, errno: i32) -> String {
    let output = common::among_own_mounts(program)
        // In the main thread: making another may be what fails.
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CASE, "1")
        .no_new_privs(true)
        .seccomp(failing(call, errno))
        .output()
        .expect("run this test again");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// The inner side: tries the plan and reports.
fn report(rootfs: &Rootfs, mut command: Command) {
    let before = traces();
    let made: BTreeSet<_> = fs::read_dir(std::env::temp_dir())
        .expect("read")
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.to_string_lossy().contains("cofferdam"))
        .collect();
    match command.spawn() {
        Ok(mut child) => {
            println!("\nstatus={:?}", child.wait().expect("wait").code());
            println!("fallbacks={:?}", child.fallbacks());
        }
        Err(Error::Step(error)) => println!(
            "\nstep={:?} call={} errno={:?} index={} total={} message={error}",
            error.step(),
            error.operation(),
            error.io_error().raw_os_error(),
            error.index(),
            error.total(),
        ),
        Err(error) => println!("\nother={error}"),
    }
    assert_eq!(before, traces(), "something is left");
    drop(command);
    let after: BTreeSet<_> = fs::read_dir(std::env::temp_dir())
        .expect("read")
        .filter_map(|entry| Some(entry.ok()?.file_name()))
        .filter(|name| name.to_string_lossy().contains("cofferdam"))
        .collect();
    assert_eq!(made, after);
    assert!(rootfs.path().exists());
}

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(start))
        .unwrap_or_default()
}

#[test]
fn every_failing_call_names_its_step() {
    if std::env::var_os(CASE).is_some() {
        let rootfs = Rootfs::new();
        return report(&rootfs, everything(&rootfs));
    }
    let copy = Copy::new();
    for (call, name, step) in [
        (libc::SYS_capset, "capset", "Credentials"),
        (libc::SYS_chdir, "chdir", "PivotRoot"),
        (libc::SYS_close_range, "close_range", "CloseFds"),
        (libc::SYS_fchdir, "fchdir", "PivotRoot"),
        (libc::SYS_fchownat, "fchownat", "Mount"),
        (libc::SYS_fsconfig, "fsconfig", "Mount"),
        (libc::SYS_fsmount, "fsmount", "Mount"),
        (libc::SYS_fsopen, "fsopen", "Mount"),
        (libc::SYS_getcwd, "getcwd", "CurrentDirectory"),
        (libc::SYS_ioprio_set, "ioprio_set", "Scheduling"),
        (libc::SYS_keyctl, "keyctl", "Keyring"),
        (libc::SYS_mkdirat, "mkdirat", "Mount"),
        (libc::SYS_mknodat, "mknodat", "Mount"),
        (libc::SYS_mount, "mount", "Propagation"),
        (libc::SYS_mount_setattr, "mount_setattr", "Mount"),
        (libc::SYS_move_mount, "move_mount", "AttachRoot"),
        (libc::SYS_open_tree, "open_tree", "AttachRoot"),
        (libc::SYS_openat2, "openat2", "UnshareNamespace"),
        (libc::SYS_personality, "personality", "Personality"),
        (libc::SYS_pivot_root, "pivot_root", "PivotRoot"),
        (
            libc::SYS_sched_setaffinity,
            "sched_setaffinity",
            "Scheduling",
        ),
        (libc::SYS_seccomp, "seccomp", "Seccomp"),
        (libc::SYS_sendmsg, "sendmsg", "Session"),
        (libc::SYS_setdomainname, "setdomainname", "Domainname"),
        (libc::SYS_setgroups, "setgroups", "Credentials"),
        (libc::SYS_sethostname, "sethostname", "Hostname"),
        (libc::SYS_setns, "setns", "UnshareNamespace"),
        (libc::SYS_setpriority, "setpriority", "Scheduling"),
        (libc::SYS_setresgid, "setresgid", "BecomeRoot"),
        (libc::SYS_setresuid, "setresuid", "BecomeRoot"),
        (libc::SYS_setsid, "setsid", "Session"),
        (libc::SYS_socket, "socket", "Loopback"),
        (libc::SYS_symlinkat, "symlinkat", "Mount"),
        (libc::SYS_umount2, "umount2", "PivotRoot"),
        (libc::SYS_unshare, "unshare", "UnshareNamespace"),
    ] {
        let text = copy.again("every_failing_call_names_its_step", call, libc::EIO);
        let report = line(&text, "step=");
        assert!(
            report.starts_with(&format!("{step} call={name} errno=Some(5) ")),
            "{name}: {text}"
        );
        assert!(report.contains(&format!(", {name}): ")), "{name}: {text}");
    }
}

#[test]
fn a_failing_clone_is_told() {
    if std::env::var_os(CASE).is_some() {
        let rootfs = Rootfs::new();
        return report(&rootfs, everything(&rootfs));
    }
    // A user namespace in which no network namespace may be made.
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--exact", "a_failing_clone_is_told", "--nocapture"])
        .env(CASE, "1")
        .user_namespace(UserMapping::CallerAsRoot)
        .sysctl("user.max_net_namespaces", "0");
    let text = common::stdout(&mut command);
    let report = line(&text, "other=");
    assert!(
        report.starts_with("clone a process in new namespaces (user, mount, pid, uts, ipc, net): "),
        "{text}"
    );
    assert!(
        report.ends_with("(/proc/sys/user/max_*_namespaces)"),
        "{text}"
    );
}

/// What a kernel or an outer container's filter does not have is done in another way.
#[test]
fn missing_calls_have_fallbacks() {
    if std::env::var_os(CASE).is_some() {
        let rootfs = Rootfs::new();
        return report(&rootfs, everything(&rootfs));
    }
    let copy = Copy::new();
    // Without privilege devices are bound, and no private /proc is to be had beside the new one.
    let text = copy.again("missing_calls_have_fallbacks", libc::SYS_acct, libc::EPERM);
    let usual = line(&text, "fallbacks=").to_owned();
    assert!(usual.contains("BOUND_DEVICES"), "{text}");
    for (call, errno, fallback) in [
        (libc::SYS_clone3, libc::ENOSYS, "CLONE"),
        (libc::SYS_close_range, libc::ENOSYS, "CLOSE_ONE_BY_ONE"),
        (libc::SYS_close_range, libc::EPERM, "CLOSE_ONE_BY_ONE"),
        (libc::SYS_fsopen, libc::ENOSYS, "CLASSIC_MOUNT"),
        (libc::SYS_fsopen, libc::EPERM, "CLASSIC_MOUNT"),
        (libc::SYS_open_tree, libc::ENOSYS, "CLASSIC_BIND"),
        (libc::SYS_open_tree, libc::EPERM, "CLASSIC_BIND"),
        (libc::SYS_move_mount, libc::ENOSYS, "CLASSIC_BIND"),
        (libc::SYS_move_mount, libc::EPERM, "CLASSIC_BIND"),
        (libc::SYS_mount_setattr, libc::ENOSYS, "CLASSIC_ATTRIBUTES"),
    ] {
        let text = copy.again("missing_calls_have_fallbacks", call, errno);
        assert_eq!(line(&text, "status="), "Some(42)", "{call} {errno}: {text}");
        // Which way was taken can be seen, and without need it is not.
        let taken = line(&text, "fallbacks=");
        let has = |text: &str| {
            text.split(['(', ')', '|', ' '])
                .any(|name| name == fallback)
        };
        assert!(has(taken) && !has(&usual), "{call} {errno}: {taken}");
    }
}

/// The result of a fallback is the one of the call that it stands for.
#[test]
fn fallbacks_look_the_same() {
    let script = "cat /proc/self/mountinfo; ls -l /proc/self/fd; id";
    let command = |rootfs: &Rootfs| {
        let mut command = container(rootfs, script);
        command
            .mounts(Mount::standard())
            .mount(Mount::bind_single("/usr", "/usr").with(MountAttributes::READ_ONLY))
            .mount(
                Mount::tmpfs("/run")
                    .option("size", "1m")
                    .with(MountAttributes::NO_EXEC),
            )
            .masked_paths(["/proc/kcore", "/etc"])
            .read_only_paths(["/proc/sys"])
            .root_read_only(true);
        command
    };
    // Without numbers and names that differ from run to run.
    let see = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| line.contains(" - "))
            .map(|line| {
                let (mount, fs) = line.split_once(" - ").expect("a mount");
                let fields: Vec<&str> = mount.split(' ').skip(4).collect();
                format!("{} - {fs}", fields.join(" "))
            })
            .collect()
    };
    let rootfs = Rootfs::new();
    if std::env::var_os(CASE).is_some() {
        println!("\n{}", common::stdout(&mut command(&rootfs)));
        return;
    }
    let plain = see(&common::stdout(&mut command(&rootfs)));
    assert!(plain.len() > 10, "{plain:?}");
    let copy = Copy::new();
    for call in [
        libc::SYS_clone3,
        libc::SYS_close_range,
        libc::SYS_fsopen,
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_mount_setattr,
    ] {
        let text = copy.again("fallbacks_look_the_same", call, libc::ENOSYS);
        assert_eq!(see(&text), plain, "{call}");
    }
}

/// The scheduling policy has no place in the plan with a nice value of its own.
#[test]
fn a_failing_policy_is_told() {
    if std::env::var_os(CASE).is_some() {
        let rootfs = Rootfs::new();
        let mut command = container(&rootfs, "exit 42");
        command.scheduler(Scheduler::Batch);
        return report(&rootfs, command);
    }
    let copy = Copy::new();
    let text = copy.again(
        "a_failing_policy_is_told",
        libc::SYS_sched_setattr,
        libc::EIO,
    );
    assert!(
        line(&text, "step=").starts_with("Scheduling call=sched_setattr "),
        "{text}"
    );
}

/// A process that is stopped at any barrier leaves nothing either.
#[test]
fn giving_up_leaves_nothing() {
    let rootfs = Rootfs::new();
    if std::env::var_os(CASE).is_none() {
        // Alone in a process: other tests have children of their own.
        let copy = Copy::new();
        copy.again("giving_up_leaves_nothing", libc::SYS_acct, libc::EPERM);
        return;
    }
    let before = traces();
    for barrier in [None, Some(Barrier::Mounted), Some(Barrier::Ready)] {
        let mut starting = everything(&rootfs).start().expect("start");
        if let Some(barrier) = barrier {
            starting.advance(barrier).expect("advance");
        }
        drop(starting);
        assert_eq!(before, traces(), "{barrier:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
