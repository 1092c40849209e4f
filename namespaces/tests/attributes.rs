//! Attributes of the process: scheduling, terminal, gate, kernel parameters and the like.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use common::{Mounted, Rootfs, container, stdout};
use namespaces::{
    Barrier, Command, Device, DeviceKind, Error, IoPriority, MemoryPolicy, Mount, MountAttributes,
    Namespace, Scheduler, SecurityLabel, Stdio, Step, TerminalSize, TimeOffset, UserMapping,
};

/// A field of `/proc/self/stat` of a program, counted as in `proc(5)`.
fn stat(command: &mut Command, field: usize) -> String {
    let text = stdout(command.arg("/proc/self/stat"));
    let rest = text.rsplit_once(") ").expect("a command").1;
    rest.split(' ').nth(field - 3).expect("a field").to_owned()
}

#[test]
fn scheduling_is_as_given() {
    // Everybody may be nicer.
    let mut command = Command::new("cat");
    assert_eq!(stat(command.nice(19), 19), "19");
    let mut command = Command::new("cat");
    assert_eq!(stat(command.scheduler(Scheduler::Batch), 41), "3");
    let mut command = Command::new("cat");
    assert_eq!(stat(command.scheduler(Scheduler::Idle), 41), "5");
    let mut command = Command::new("cat");
    command.scheduler(Scheduler::Batch).nice(19);
    assert_eq!(stat(&mut command, 19), "19");
    // The kernel is given the flags: it knows none of this number.
    let error = Command::new("true")
        .scheduler(Scheduler::Batch)
        .scheduler_flags(1 << 40)
        .spawn()
        .expect_err("no such flag");
    assert!(
        matches!(&error, Error::Step(step) if step.step() == Step::Scheduling),
        "{error}"
    );
    command = Command::new("cat");
    command.scheduler(Scheduler::Batch).scheduler_flags(1);
    assert_eq!(stat(&mut command, 41), "3");
    let mut command = Command::new("grep");
    command
        .args(["Cpus_allowed_list", "/proc/self/status"])
        .cpu_affinity([0]);
    assert_eq!(stdout(&mut command), "Cpus_allowed_list:\t0\n");
    let error = Command::new("true")
        .cpu_affinity([5000])
        .start()
        .expect_err("there are no such CPUs");
    assert!(
        matches!(
            error,
            Error::Invalid {
                setting: "CPU affinity",
                ..
            }
        ),
        "{error}"
    );
    let error = Command::new("true")
        .io_priority(IoPriority::BestEffort(8))
        .start()
        .expect_err("no such level");
    assert!(
        matches!(
            error,
            Error::Invalid {
                setting: "I/O priority",
                ..
            }
        ),
        "{error}"
    );
    let status = Command::new("true").io_priority(IoPriority::Idle).status();
    assert!(status.expect("status").success());
}

#[test]
fn the_execution_domain_and_oom_score_are_as_given() {
    let mut command = Command::new("cat");
    // PER_LINUX32 without PER_LINUX32's uname on all machines: the file tells the number.
    command.arg("/proc/self/personality").personality(8);
    // The file belongs to the program's own user only; dumpable programs can read it.
    assert_eq!(stdout(&mut command), "00000008\n");
    let mut command = Command::new("cat");
    command.arg("/proc/self/oom_score_adj").oom_score_adj(900);
    assert_eq!(stdout(&mut command), "900\n");
}

#[test]
fn memory_comes_from_where_the_policy_says() {
    for (mode, nodes, shown) in [
        (0, vec![], "default"),
        (4, vec![], "local"),
        (2, vec![0], "bind:0"),
        (3, vec![0], "interleave:0"),
    ] {
        let mut command = Command::new("cat");
        command.arg("/proc/self/numa_maps");
        command.memory_policy(MemoryPolicy {
            mode,
            flags: 0,
            nodes,
        });
        let text = stdout(&mut command);
        let policy = text.split(' ').nth(1);
        assert_eq!(policy, Some(shown), "{text}");
    }
    let mut command = Command::new("true");
    command.memory_policy(MemoryPolicy {
        mode: 2,
        flags: 0,
        nodes: vec![1000],
    });
    let error = command.spawn().expect_err("there is no such node");
    assert!(
        matches!(&error, Error::Step(step) if step.step() == Step::Scheduling),
        "{error}"
    );
}

#[test]
fn a_session_keyring_is_joined() {
    // The keyrings of others of this user are seen, too.
    let name = format!("cofferdam-test-{}", std::process::id());
    let mut command = Command::new("cat");
    let keys = |command: &mut Command| stdout(command.arg("/proc/keys"));
    assert!(!keys(&mut command).contains(&name));
    command.session_keyring(&name);
    assert!(keys(&mut command).contains(&name));
}

#[test]
fn kernel_parameters_are_set_in_the_new_namespaces() {
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv4/conf/all/forwarding \
             /proc/sys/kernel/msgmax",
        ])
        .unshare([Namespace::Net, Namespace::Ipc])
        .user_namespace(UserMapping::CallerAsRoot)
        .sysctl("net.ipv4.ip_forward", "1")
        .sysctl("net/ipv4/conf/all/forwarding", "1")
        .sysctl("kernel.msgmax", "4242");
    assert_eq!(stdout(&mut command), "1\n1\n4242\n");
    let error = Command::new("true")
        .unshare([Namespace::Net])
        .user_namespace(UserMapping::CallerAsRoot)
        .sysctl("net.no.such.parameter", "1")
        .spawn()
        .expect_err("no such parameter");
    let Error::Step(error) = error else {
        panic!("{error}")
    };
    assert_eq!(error.step(), Step::Sysctl);
    assert_eq!(error.detail(), "write 1 to /proc/sys/net/no/such/parameter");
    let error = Command::new("true").sysctl("../self/comm", "x").start();
    assert!(matches!(
        error,
        Err(Error::Invalid {
            setting: "sysctl",
            ..
        })
    ));
}

#[test]
fn clocks_are_offset() {
    // In hundredths of a second, as the kernel counts them there.
    let uptime = |command: &mut Command| -> u64 {
        let text = stdout(command.arg("/proc/uptime"));
        let first = text.split(' ').next().expect("a number");
        first.replace('.', "").parse().expect("a number")
    };
    let before = uptime(&mut Command::new("cat"));
    let mut command = Command::new("cat");
    let offset = TimeOffset {
        seconds: 1_000_000,
        nanoseconds: 0,
    };
    command
        .unshare([Namespace::Time])
        .user_namespace(UserMapping::CallerAsRoot)
        .time_offsets(TimeOffset::default(), offset);
    let after = uptime(&mut command);
    assert!(
        (100_000_000..100_010_000).contains(&(after - before)),
        "{before} {after}"
    );
}

#[test]
fn a_terminal_is_made() {
    let rootfs = Rootfs::new();
    let mut command = container(
        &rootfs,
        "stat -c %t /dev/console; test -t 0 && test -t 1 && test -t 2 && echo terminal; \
         read line; echo \"<$line>\"; echo /dev/pts/*; readlink /proc/self/fd/0",
    );
    command.mounts(Mount::standard()).terminal(TerminalSize {
        rows: 33,
        columns: 99,
    });
    let mut child = command.spawn().expect("spawn");
    let terminal = child.terminal.take().expect("a terminal");
    let size = rustix::termios::tcgetwinsize(&terminal).expect("a size");
    assert_eq!((size.ws_row, size.ws_col), (33, 99));
    let mut terminal = fs::File::from(terminal);
    terminal.write_all(b"typed\n").expect("write");
    let mut text = Vec::new();
    let mut buffer = [0; 1000];
    // The end of a terminal is an error.
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        text.extend_from_slice(&buffer[..count]);
    }
    assert!(child.wait().expect("wait").success());
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    let lines: Vec<&str> = text.lines().filter(|line| *line != "typed").collect();
    assert_eq!(
        lines,
        [
            "88",
            "terminal",
            "<typed>",
            "/dev/pts/0 /dev/pts/ptmx",
            "/dev/pts/0"
        ]
    );
}

#[test]
fn the_terminal_comes_before_the_program() {
    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "true");
    command.mounts(Mount::standard()).terminal(TerminalSize {
        rows: 1,
        columns: 2,
    });
    let mut starting = command.start().expect("start");
    assert!(starting.take_terminal().is_none());
    starting.advance(Barrier::Mounted).expect("advance");
    assert!(starting.take_terminal().is_some());
    // Without a devpts there is none.
    let mut command = container(&rootfs, "true");
    command.mount(Mount::tmpfs("/dev")).terminal(TerminalSize {
        rows: 1,
        columns: 2,
    });
    let error = command.spawn().expect_err("no devpts").to_string();
    assert!(error.contains("add Mount::devpts"), "{error}");
}

#[test]
fn a_gate_lets_the_parent_leave() {
    let directory = tempfile::tempdir().expect("a directory");
    let fifo = directory.path().join("gate");
    let mode = rustix::fs::Mode::from_bits_retain(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0)
        .expect("make a fifo");
    let both = fs::File::options().read(true).write(true).open(&fifo);
    let mut command = Command::new("echo");
    command
        .arg("through")
        .stdout(Stdio::piped())
        .exec_gate(both.expect("open"));
    let mut child = command.start().expect("start").leave().expect("leave");
    drop(command);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(child.try_wait().expect("wait"), None);
    fs::File::options()
        .write(true)
        .custom_flags(0o4000) // O_NONBLOCK
        .open(&fifo)
        .expect("somebody reads")
        .write_all(b"0")
        .expect("write");
    assert_eq!(child.wait_with_output().expect("wait").stdout, b"through\n");
    // exec waits for the gate, too.
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let mut command = Command::new("true");
    command.exec_gate(&reader);
    let starting = command.start().expect("start");
    let opener = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        writer.write_all(b"0")
    });
    let mut child = starting.exec().expect("exec");
    assert!(child.wait().expect("wait").success());
    opener.join().expect("join").expect("write");
    let error = Command::new("true").start().expect("start").leave();
    assert!(matches!(
        error,
        Err(Error::Invalid {
            setting: "leave",
            ..
        })
    ));
}

#[test]
fn what_could_not_be_executed_is_told_before_the_gate() {
    let (reader, _writer) = std::io::pipe().expect("a pipe");
    let leave = |program: &str| {
        let mut command = Command::new(program);
        // A directory that may not be searched would leave open whether it is there.
        command.exec_gate(&reader).env("PATH", "/usr/bin:/bin");
        command.start().expect("start").leave()
    };
    for missing in ["/no/such/program", "no-such-program"] {
        let error = leave(missing).expect_err("missing");
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    for not_a_program in ["/etc/passwd", "/etc"] {
        let error = leave(not_a_program).expect_err("no program");
        assert!(matches!(error, Error::NotExecutable { .. }), "{error}");
    }
}

/// Tells that descriptor 7 was given.
const SEVEN: &str = "COFFERDAM_SEVEN";

#[test]
fn descriptors_are_kept_by_number() {
    // Those of this process are closed by execve, so a program is put between.
    let script = "exec 7</etc/hostname 8<&-; exec \"$0\" --exact --ignored --nocapture keeps_seven";
    let own = std::env::current_exe().expect("this program");
    let output = std::process::Command::new("sh")
        .args(["-c", script])
        .arg(own)
        .env(SEVEN, "kept")
        .output()
        .expect("sh");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    let error = Command::new("true").keep_fd(963).spawn();
    assert!(error.is_err(), "not open");
    let file = fs::File::open("/etc/hostname").expect("open");
    let number = std::os::fd::AsRawFd::as_raw_fd(&file);
    let error = Command::new("true")
        .keep_fd(number)
        .spawn()
        .expect_err("its own");
    assert!(error.to_string().contains("FD_CLOEXEC"), "{error}");
}

#[test]
#[ignore = "needs root"]
fn keeps_seven() {
    if std::env::var_os(SEVEN).is_none() {
        // Run by itself: nothing to keep, which has to be told.
        let error = Command::new("true").keep_fd(7).spawn();
        assert!(error.is_err(), "not open, or this process's own");
        return;
    }
    let mut command = Command::new("sh");
    command
        .args(["-c", "cat <&7; ls /proc/self/fd | wc -l"])
        .keep_fd(7);
    let hostname = fs::read_to_string("/etc/hostname").expect("read");
    // 0, 1, 2, 7, and the directory.
    assert_eq!(stdout(&mut command), format!("{hostname}5\n"));
}

#[test]
fn devices_are_bound_without_privilege() {
    let rootfs = Rootfs::new();
    let mut command = container(
        &rootfs,
        "stat -c '%F %t:%T' /special/zero; stat -c %F /fifo",
    );
    command.devices([Device::new("/fifo", DeviceKind::Fifo, 0, 0)]);
    let mut bound = container(&rootfs, "stat -c '%F %t:%T' /dev/zero; stat -c %F /fifo");
    bound.devices([
        Device::new("/dev/zero", DeviceKind::Character, 1, 5),
        Device::new("/fifo", DeviceKind::Fifo, 0, 0).mode(0o600),
    ]);
    assert_eq!(stdout(&mut bound), "character special file 1:5\nfifo\n");
    // What is at that path outside must be that device.
    let mut wrong = container(&rootfs, "true");
    wrong.devices([Device::new("/dev/zero", DeviceKind::Character, 1, 3)]);
    let Err(Error::Step(error)) = wrong.spawn() else {
        panic!("it must fail");
    };
    assert_eq!(error.detail(), "make the character device /dev/zero (1:3)");
}

#[test]
fn attributes_can_be_cleared() {
    let rootfs = Rootfs::new();
    let outside = tempfile::tempdir().expect("a directory");
    let mut command = container(&rootfs, "cat /proc/self/mountinfo");
    command
        .mount(Mount::proc("/proc"))
        .mount(
            Mount::bind(outside.path(), "/one")
                .with(MountAttributes::NO_EXEC | MountAttributes::NO_DEV),
        )
        .mount(
            Mount::bind(outside.path(), "/two")
                .with(MountAttributes::NO_EXEC)
                .without(MountAttributes::NO_EXEC),
        );
    let text = stdout(&mut command);
    let options = |path: &str| {
        let line = text
            .lines()
            .find(|line| line.contains(path))
            .expect("a mount");
        line.split(' ').nth(5).expect("options").to_owned()
    };
    // The directory's own mount may have more.
    let one = options(" /one ");
    assert!(
        one.starts_with("rw,") && one.contains("nodev,noexec"),
        "{one}"
    );
    assert!(!options(" /two ").contains("noexec"), "{text}");
}

#[test]
fn a_label_without_its_module_is_told() {
    if fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|list| list.contains("apparmor")) {
        let status = Command::new("true")
            .security_label(SecurityLabel::Apparmor("unconfined".into()))
            .status();
        assert!(status.expect("status").success());
    } else {
        let error = Command::new("true")
            .security_label(SecurityLabel::Apparmor("cofferdam".into()))
            .spawn()
            .expect_err("no such module");
        assert!(matches!(&error, Error::Step(step) if step.step() == Step::SecurityLabel));
    }
}

/// The lab's kernel runs AppArmor; its profiles are loaded through a file system of its own.
#[test]
#[ignore = "needs lab"]
fn a_program_is_confined_by_its_profile() {
    let security = std::path::Path::new("/sys/kernel/security");
    let mounted = (!security.join("apparmor").exists()).then(|| {
        common::run(
            "mount",
            &["-t", "securityfs", "none", "/sys/kernel/security"],
        );
        Mounted(security)
    });
    assert!(security.join("apparmor").exists(), "no AppArmor here");
    let directory = tempfile::tempdir().expect("a directory");
    let secret = directory.path().join("secret");
    fs::write(&secret, "secret\n").expect("write");
    let profile = directory.path().join("profile");
    let rules = format!(
        "profile cofferdam-test {{\n  file,\n  deny {} r,\n}}\n",
        secret.display()
    );
    fs::write(&profile, rules).expect("write");
    let profile = profile.to_str().expect("text");
    common::run("apparmor_parser", &["--skip-cache", "--add", profile]);
    let mut command = Command::new("cat");
    command
        .args(["/proc/self/attr/current"])
        .arg(&secret)
        .security_label(SecurityLabel::Apparmor("cofferdam-test".into()));
    let output = command.output().expect("output");
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "cofferdam-test (enforce)\n"
    );
    let denied = String::from_utf8_lossy(&output.stderr).contains("Permission denied");
    assert!(denied && !output.status.success(), "{output:?}");
    // What is not loaded is told.
    let error = Command::new("true")
        .security_label(SecurityLabel::Apparmor("cofferdam-other".into()))
        .spawn()
        .expect_err("no such profile");
    assert!(
        matches!(&error, Error::Step(step) if step.step() == Step::SecurityLabel
            || step.step() == Step::Exec)
            || matches!(&error, Error::NotExecutable { .. } | Error::NotFound { .. }),
        "{error}"
    );
    common::run("apparmor_parser", &["--remove", profile]);
    drop(mounted);
}

#[test]
fn notifications_of_a_filter_reach_the_parent() {
    // ld [0]; jeq uname; ret USER_NOTIF; ret ALLOW.
    let number: u32 = if cfg!(target_arch = "x86_64") {
        63
    } else {
        160
    };
    let mut program = Vec::new();
    for (code, jt, jf, k) in [
        (0x20_u16, 0_u8, 0_u8, 0_u32),
        (0x15, 0, 1, number),
        (0x06, 0, 0, 0x7fc0_0000),
        (0x06, 0, 0, 0x7fff_0000),
    ] {
        program.extend(code.to_ne_bytes());
        program.extend([jt, jf]);
        program.extend(k.to_ne_bytes());
    }
    let mut command = Command::new("uname");
    command
        .stderr(Stdio::null())
        .no_new_privs(true)
        .seccomp(program)
        .seccomp_listener(true);
    let mut child = command.spawn().expect("spawn");
    let listener = child.seccomp_listener.take().expect("a listener");
    let mut fds = [rustix::event::PollFd::new(
        &listener,
        rustix::event::PollFlags::IN,
    )];
    assert_eq!(rustix::event::poll(&mut fds, None), Ok(1));
    // Nobody answers: with the listener gone the call fails.
    drop(listener);
    assert!(!child.wait().expect("wait").success());
}

/// What a runtime does: the listener goes to an agent, and the process waits for its start.
#[test]
fn notifications_reach_a_parent_who_leaves_at_the_gate() {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    // ret ALLOW.
    let mut program = Vec::new();
    program.extend(6_u16.to_ne_bytes());
    program.extend([0, 0]);
    program.extend(0x7fff_0000_u32.to_ne_bytes());
    let mut command = Command::new("true");
    command
        .exec_gate(&reader)
        .no_new_privs(true)
        .seccomp(program)
        .seccomp_listener(true);
    let mut child = command.start().expect("start").leave().expect("leave");
    let listener = child.seccomp_listener.take().expect("a listener");
    drop(listener);
    writer.write_all(&[0]).expect("write");
    assert!(child.wait().expect("wait").success());
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
