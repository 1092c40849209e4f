//! What an image or a process inside may try, and what other runtimes have fallen for.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Rootfs, container, stdout};
use namespaces::{
    Barrier, Capabilities, Capability, CapabilitySet, Command, Device, DeviceKind, Error, Mount,
    Namespace, Stdio, Step, TerminalSize, UserMapping,
};

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
                .mount(Mount::tmpfs("/target/three").copy_up(true))
                .devices([Device::new("/target/four/fifo", DeviceKind::Fifo, 0, 0)])
                .link("/target/five/link", "x")
                .create_current_dir(true)
                .current_dir("/target/six/seven")
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
                        matches!(
                            error.step(),
                            Step::Mount | Step::Mask | Step::ReadOnly | Step::CurrentDirectory
                        ),
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

const SIZE: TerminalSize = TerminalSize {
    rows: 1,
    columns: 1,
};

/// CVE-2025-52565: the image has links where the console and the terminals are to be.
#[test]
fn a_false_console_gets_nothing() {
    let rootfs = Rootfs::new();
    let outside = tempfile::tempdir().expect("a directory");
    let victim = outside.path().join("victim");
    fs::write(&victim, "victim").expect("write");
    for directory in ["dev/pts", "proc"] {
        fs::create_dir_all(rootfs.join(directory)).expect("mkdir");
    }
    // By an absolute name, which inside leads nowhere, and one that climbs.
    let climbing = format!("../../../../../../../../../..{}", victim.display());
    for link in [victim.to_str().expect("a path"), &climbing] {
        let console = rootfs.join("dev/console");
        let _ = fs::remove_file(&console);
        symlink(link, &console).expect("symlink");
        let mut command = container(&rootfs, "cat /proc/self/mountinfo");
        command
            .mount(Mount::proc("/proc"))
            .mount(Mount::devpts("/dev/pts"))
            .terminal(SIZE);
        match command.spawn() {
            Ok(mut child) => {
                child.wait().expect("wait");
            }
            Err(Error::Step(error)) => assert_eq!(error.step(), Step::Session, "{error}"),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(fs::read(&victim).expect("read"), b"victim");
        assert!(!mounted(&victim));
    }
    // Something else in place of the devpts, which must not even be opened.
    let _ = fs::remove_file(rootfs.join("dev/console"));
    symlink("/etc/treasure", rootfs.join("dev/pts/ptmx")).expect("symlink");
    fs::write(rootfs.join("etc/treasure"), "").expect("write");
    let mut command = container(&rootfs, "true");
    command.terminal(SIZE);
    let Err(Error::Step(error)) = command.spawn() else {
        panic!("it must fail");
    };
    assert_eq!(error.step(), Step::Session);
    assert_eq!(error.io_error().raw_os_error(), Some(libc::ENODEV));
    assert!(error.to_string().contains("add Mount::devpts"), "{error}");
}

fn mounted(path: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo")
        .expect("read")
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}

/// CVE-2025-52881: processes in a container cover its `/proc`, or single files of it, to catch what
/// is written by one that enters.
#[test]
fn one_that_enters_does_not_write_to_a_false_proc() {
    const NAME: &str = "net.ipv4.ip_forward";
    for covered in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net", "/proc"] {
        let rootfs = Rootfs::new();
        let trap = rootfs.join("trap");
        if covered.ends_with("ip_forward") {
            fs::write(&trap, "untouched").expect("write");
        } else {
            fs::create_dir_all(trap.join("ipv4")).expect("mkdir");
            fs::create_dir_all(trap.join("sys/net/ipv4")).expect("mkdir");
            fs::write(trap.join("ipv4/ip_forward"), "untouched").expect("write");
            fs::write(trap.join("sys/net/ipv4/ip_forward"), "untouched").expect("write");
        }
        let script =
            format!("echo ready; cat; busybox cat /real/sys/net/ipv4/ip_forward {covered}");
        let mut command = container(&rootfs, &script);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .mount(Mount::proc("/real"))
            .mount(Mount::proc("/proc"))
            .mount(Mount::bind(&trap, covered));
        let child = command.spawn().expect("spawn");
        let mut command = Command::new("/bin/true");
        command.enter(&child).sysctl(NAME, "1");
        let written = match command.status() {
            Ok(status) => status.success(),
            // No private /proc is to be had where the one that is there is covered in part.
            Err(Error::Step(error)) => {
                assert_eq!(error.step(), Step::Sysctl, "{error}");
                false
            }
            Err(error) => panic!("{error}"),
        };
        let output = child.wait_with_output().expect("output");
        let text = String::from_utf8_lossy(&output.stdout);
        let real = if written { "ready\n1\n" } else { "ready\n0\n" };
        assert!(text.starts_with(real), "{covered}: {text}");
        assert!(
            !covered.ends_with("forward") || text.ends_with("untouched"),
            "{text}"
        );
        for file in [
            "trap",
            "trap/ipv4/ip_forward",
            "trap/sys/net/ipv4/ip_forward",
        ] {
            if let Ok(text) = fs::read_to_string(rootfs.join(file)) {
                assert_eq!(text, "untouched", "{covered}");
            }
        }
    }
}

const ROLE: &str = "COFFERDAM_ROLE";
const RESULT: &str = "COFFERDAM_RESULT";

/// CVE-2019-5736: the command of a malicious image is `/proc/self/exe`, so that it gets hold of the
/// runtime's file, and overwrites it when the runtime has ended.
#[test]
fn the_runtime_cannot_be_overwritten() {
    use std::os::unix::process::CommandExt;
    match std::env::var(ROLE).as_deref() {
        Ok(runtime @ ("protected" | "careless")) => {
            if runtime == "protected" {
                namespaces::protect_own_executable().expect("protect");
            }
            let mut command = container_of_the_host("/proc/self/exe");
            command
                .args(["--exact", "the_runtime_cannot_be_overwritten"])
                .env(ROLE, "image");
            command.spawn().expect("spawn");
            // Without a last word of the test's frame.
            std::process::exit(0);
        }
        Ok(_) => {
            let own = fs::File::open("/proc/self/exe").expect("open");
            rustix::io::fcntl_setfd(&own, rustix::io::FdFlags::empty()).expect("fcntl");
            let number = std::os::fd::AsRawFd::as_raw_fd(&own);
            let script = format!(
                "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 0.1; \
                 if (echo overwritten > /proc/self/fd/{number}); then echo done > $0; exit; fi; \
                 done; echo refused > $0"
            );
            let result = std::env::var_os(RESULT).expect("where to tell");
            let mut shell = std::process::Command::new("sh");
            panic!("{}", shell.args(["-c", &script]).arg(result).exec());
        }
        Err(_) => {}
    }
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = directory.path().join("runtime");
    let result = directory.path().join("result");
    // Careless, to see that the attack is one.
    for (role, expected) in [("protected", "refused\n"), ("careless", "done\n")] {
        fs::copy("/proc/self/exe", &runtime).expect("copy this program");
        let before = fs::metadata(&runtime).expect("stat").len();
        let mut command = Command::new(&runtime);
        command
            .args(["--exact", "the_runtime_cannot_be_overwritten"])
            .env(ROLE, role)
            .env(RESULT, &result)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        assert!(command.status().expect("run").success(), "{role}");
        let deadline = Instant::now() + Duration::from_mins(1);
        let told = loop {
            match fs::read_to_string(&result) {
                Ok(text) if text.ends_with('\n') => break text,
                _ if Instant::now() > deadline => panic!("{role}: nothing is told"),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        assert_eq!(told, expected, "{role}");
        let after = fs::metadata(&runtime).expect("stat").len();
        assert_eq!(after == before, role == "protected", "{role}");
        fs::remove_file(&result).expect("remove");
        fs::remove_file(&runtime).expect("remove");
    }
}

/// With the host's files, but for `/proc`, so that this program can be the image's.
fn container_of_the_host(program: &str) -> Command {
    let mut command = Command::new(program);
    command
        .unshare([Namespace::Pid, Namespace::Mount])
        .user_namespace(UserMapping::CallerAsRoot)
        .mount(Mount::proc("/proc"));
    command
}

/// CVE-2022-29162: what the caller has inheritable must not be for the container's programs.
#[test]
#[ignore = "needs root"]
fn inheritable_capabilities_are_not_handed_on() {
    const NAME: &str = "inheritable_capabilities_are_not_handed_on";
    let inheritable = |command: &mut Command| -> String {
        let text = stdout(command);
        let line = text.lines().find_map(|line| line.strip_prefix("CapInh:"));
        line.expect("a line").trim().to_owned()
    };
    if std::env::var_os(ROLE).is_some() {
        let mut command = Command::new("cat");
        command
            .arg("/proc/self/status")
            .capabilities(Capabilities::container_default());
        println!("\nCapInh: {}", inheritable(&mut command));
        return;
    }
    // This process may not have all.
    let own = CapabilitySet::from_iter([Capability::SysAdmin]);
    let own = own.union(Capabilities::container_default().bounding);
    let mut given = Capabilities::limited_to(own);
    given.inheritable = CapabilitySet::from_iter([Capability::SysAdmin, Capability::Chown]);
    let mut command = Command::new("cat");
    command.arg("/proc/self/status").capabilities(given);
    assert_ne!(inheritable(&mut command), "0000000000000000");
    let mut command = Command::new("/proc/self/exe");
    command
        .args(["--exact", NAME, "--ignored", "--nocapture"])
        .env(ROLE, "caller")
        .capabilities(given);
    assert_eq!(inheritable(&mut command), "0000000000000000");
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
