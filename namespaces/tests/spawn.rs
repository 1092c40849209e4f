//! What `Command` shares with that of std: arguments, environment, streams, status.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use common::stdout;
use namespaces::{Barrier, Command, Error, Limit, Resource, Stdio, Step};

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

#[test]
fn arguments_environment_and_directory_arrive() {
    let mut command = Command::new("/bin/sh");
    command
        .arg0("renamed")
        .args([
            "-c",
            "echo \"$0|$1|$2|$A|$B|$PWD\"; pwd",
            "zero",
            "one two",
            "",
        ])
        .env_clear()
        .env("A", "x y")
        .env("B", "gone")
        .env_remove("B")
        .current_dir("/usr");
    assert_eq!(stdout(&mut command), "zero|one two||x y||/usr\n/usr\n");
    let mut command = Command::new("/bin/sh");
    command.arg0("renamed").args(["-c", "echo $0"]);
    assert_eq!(stdout(&mut command), "renamed\n");
}

#[test]
fn streams_are_piped_both_ways() {
    let mut child = sh("cat; echo error >&2")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(b"through").expect("write");
    drop(stdin);
    let output = child.wait_with_output().expect("output");
    assert_eq!(output.stdout, b"through");
    assert_eq!(output.stderr, b"error\n");
}

#[test]
fn much_output_on_both_streams_does_not_block() {
    let output = sh("head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero")
        .output()
        .expect("output");
    assert_eq!(output.stdout.len(), 300_000);
    assert_eq!(output.stderr.len(), 300_000);
}

#[test]
fn streams_can_be_swapped_files() {
    let mut out = tempfile::tempfile().expect("a file");
    let status = sh("echo out; echo err >&2")
        .stdin(Stdio::null())
        .stdout(out.try_clone().expect("clone"))
        .stderr(out.try_clone().expect("clone"))
        .status()
        .expect("status");
    assert!(status.success());
    let mut text = String::new();
    std::io::Seek::rewind(&mut out).expect("rewind");
    out.read_to_string(&mut text).expect("read");
    assert_eq!(text, "out\nerr\n");
}

#[test]
fn exit_status_and_signal_are_told() {
    assert_eq!(sh("exit 7").status().expect("status").code(), Some(7));
    let status = sh("kill -TERM $$").status().expect("status");
    assert_eq!((status.code(), status.signal()), (None, Some(15)));
    let mut command = sh("kill -QUIT $$");
    command.rlimit(
        Resource::Core,
        Limit {
            soft: Some(0),
            hard: Some(0),
        },
    );
    let status = command.status().expect("status");
    assert_eq!((status.signal(), status.core_dumped()), (Some(3), false));
}

#[test]
fn a_missing_program_is_not_found() {
    let mut command = Command::new("no-such-program");
    command.env("PATH", "/usr/bin:/bin");
    let error = command.spawn().expect_err("no such program");
    assert_eq!(error.shell_status(), Some(127));
    assert!(
        error
            .to_string()
            .starts_with("no-such-program not found in /usr/bin:/bin; "),
        "{error}"
    );
    let error = Command::new("/no/such/program")
        .spawn()
        .expect_err("no such program");
    assert!(
        matches!(
            error,
            Error::NotFound {
                interpreter: false,
                ..
            }
        ),
        "{error}"
    );
    let error = Command::new("").spawn().expect_err("no program");
    assert_eq!(error.shell_status(), Some(127));
}

#[test]
fn a_missing_interpreter_is_told_apart() {
    let directory = tempfile::tempdir().expect("a directory");
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("write");
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).expect("chmod");
    let error = Command::new(&script).spawn().expect_err("no interpreter");
    assert!(
        matches!(
            error,
            Error::NotFound {
                interpreter: true,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn what_cannot_be_executed_is_told() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "text").expect("write");
    let error = Command::new(&file).spawn().expect_err("no execute bit");
    assert_eq!(error.shell_status(), Some(126));
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o755)).expect("chmod");
    let error = Command::new(&file).spawn().expect_err("no format");
    assert_eq!(error.shell_status(), Some(126));
    assert!(error.to_string().contains("without a #! line"), "{error}");
    // Found in PATH without the right to execute it counts more than not found.
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("chmod");
    let mut command = Command::new("file");
    command.env("PATH", format!("{}:/nowhere", directory.path().display()));
    assert_eq!(
        command.spawn().expect_err("no execute bit").shell_status(),
        Some(126)
    );
}

#[test]
fn a_failing_step_is_named() {
    let error = sh("true")
        .current_dir("/no/such/directory")
        .spawn()
        .expect_err("no such directory");
    let Error::Step(error) = error else {
        panic!("{error}");
    };
    assert_eq!(error.step(), Step::CurrentDirectory);
    assert_eq!(error.operation(), "chdir");
    assert_eq!(error.io_error().raw_os_error(), Some(2));
    let message = error.to_string();
    assert!(
        message.starts_with("enter the working directory /no/such/directory (step "),
        "{message}"
    );
    assert!(message.contains("create_current_dir"), "{message}");
}

#[test]
fn a_nul_byte_is_refused() {
    let error = sh("true").arg("a\0b").spawn().expect_err("a NUL byte");
    assert_eq!(
        error.to_string(),
        "argument \"a\\0b\" has a NUL byte in it; take it out"
    );
}

#[test]
fn only_given_descriptors_arrive() {
    // Without close-on-exec, as a careless library may open one.
    let leaked: OwnedFd = File::open("/dev/zero").expect("open").into();
    rustix::io::fcntl_setfd(&leaked, rustix::io::FdFlags::empty()).expect("fcntl");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut command = sh("echo given >&7; ls /proc/self/fd");
    command.fd(7, writer);
    let listed = stdout(&mut command);
    drop(command);
    // ls itself opens the directory as the next free number.
    assert_eq!(listed, "0\n1\n2\n3\n7\n");
    let mut given = String::new();
    (&reader).read_to_string(&mut given).expect("read");
    assert_eq!(given, "given\n");
}

#[test]
fn descriptors_do_not_collide() {
    // Every number that the program is given is used by something else in the plan.
    let mut files = Vec::new();
    let mut command = sh("cat <&3; cat <&4; cat <&5; cat <&6; cat <&9");
    for number in [3, 4, 5, 6, 9] {
        let mut file = tempfile::tempfile().expect("a file");
        writeln!(file, "{number}").expect("write");
        std::io::Seek::rewind(&mut file).expect("rewind");
        files.push(file.as_fd().as_raw_fd());
        command.fd(number, file);
    }
    assert_eq!(stdout(&mut command), "3\n4\n5\n6\n9\n");
}

#[test]
fn waiting_has_a_deadline() {
    let mut child = sh("exec sleep 60").spawn().expect("spawn");
    assert_eq!(child.try_wait().expect("wait"), None);
    let before = Instant::now();
    let status = child.wait_timeout(Duration::from_millis(50)).expect("wait");
    assert_eq!(status, None);
    assert!(before.elapsed() >= Duration::from_millis(50));
    child.kill().expect("kill");
    let status = child
        .wait_timeout(Duration::from_mins(1))
        .expect("wait")
        .expect("it is dead");
    assert_eq!(status.signal(), Some(9));
    // Again and again.
    assert_eq!(child.wait().expect("wait"), status);
    assert_eq!(child.try_wait().expect("wait"), Some(status));
    child.kill().expect("nothing happens");
}

#[test]
fn the_pidfd_tells_the_end() {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut child = sh("cat").stdin(Stdio::piped()).spawn().expect("spawn");
    let zero = rustix::event::Timespec::default();
    let mut fds = [PollFd::new(&child, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&zero)), Ok(0));
    drop(child.stdin.take());
    let mut fds = [PollFd::new(&child, PollFlags::IN)];
    assert_eq!(poll(&mut fds, None), Ok(1));
    assert!(
        child
            .try_wait()
            .expect("wait")
            .is_some_and(|status| status.success())
    );
}

fn exists(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn dropping_a_starting_process_ends_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("ran");
    let mut command = Command::new("touch");
    command.arg(&file);
    let starting = command.start().expect("start");
    let pid = starting.pid();
    assert!(exists(pid));
    drop(starting);
    assert!(!exists(pid));
    assert!(!file.exists());
}

#[test]
fn barriers_hold_the_process() {
    let mut command = sh("echo ran");
    command.stdout(Stdio::piped());
    let mut starting = command.start().expect("start");
    let executable = |pid| std::fs::read_link(format!("/proc/{pid}/exe")).expect("read");
    let ours = std::fs::read_link("/proc/self/exe").expect("read");
    assert_eq!(executable(starting.pid()), ours);
    starting.advance(Barrier::Ready).expect("advance");
    assert_eq!(executable(starting.pid()), ours);
    // Nothing happens when it has got that far.
    starting.advance(Barrier::Ready).expect("advance");
    starting.advance(Barrier::Mounted).expect("advance");
    assert_eq!(executable(starting.pid()), ours);
    let child = starting.exec().expect("exec");
    assert_eq!(child.wait_with_output().expect("output").stdout, b"ran\n");
}

#[test]
fn a_failure_before_a_barrier_is_told_there() {
    let mut command = sh("true");
    command.current_dir("/no/such/directory");
    let mut starting = command.start().expect("start");
    let error = starting
        .advance(Barrier::Ready)
        .expect_err("no such directory");
    assert!(matches!(error, Error::Step(_)), "{error}");
}

#[test]
fn a_killed_starting_process_is_told() {
    let mut command = sh("true");
    let mut starting = command.start().expect("start");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(starting.pid().cast_signed()).expect("a pid"),
        rustix::process::Signal::KILL,
    )
    .expect("kill");
    let error = starting.advance(Barrier::Ready).expect_err("it is dead");
    let Error::Died { status } = error else {
        panic!("{error}");
    };
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn kill_on_drop_leaves_nothing() {
    let mut command = Command::new("sleep");
    let child = command.arg("60").kill_on_drop(true).spawn().expect("spawn");
    let pid = child.pid();
    drop(child);
    assert!(!exists(pid));
}

#[test]
fn the_program_dies_with_its_parent_thread() {
    let mut child = std::thread::spawn(|| {
        let mut command = Command::new("sleep");
        command
            .arg("60")
            .die_with_parent(true)
            .spawn()
            .expect("spawn")
    })
    .join()
    .expect("the thread ends");
    let status = child
        .wait_timeout(Duration::from_mins(1))
        .expect("wait")
        .expect("it is dead");
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn signals_are_as_a_program_expects_them() {
    // Rust ignores SIGPIPE; a program must not inherit that.
    let text = stdout(Command::new("grep").args(["-E", "^Sig(Blk|Ign|Cgt)", "/proc/self/status"]));
    let masks: Vec<u64> = text
        .lines()
        .filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .collect();
    let [blocked, ignored, _] = masks.as_slice() else {
        panic!("{text}");
    };
    assert_eq!(*blocked, 0);
    assert_eq!(ignored & (1 << 12), 0, "SIGPIPE is ignored");
}

#[test]
fn limits_and_umask_arrive() {
    let mut command = sh("ulimit -n; ulimit -Hn; umask");
    command
        .rlimit(
            Resource::OpenFiles,
            Limit {
                soft: Some(77),
                hard: Some(88),
            },
        )
        .umask(0o027);
    assert_eq!(stdout(&mut command), "77\n88\n0027\n");
}

#[test]
fn a_seccomp_program_is_installed() {
    // ld [0] (number of the call); jeq uname; ret ERRNO 1; ret ALLOW.
    let mut program = Vec::new();
    for (code, jt, jf, k) in [
        (0x20_u16, 0_u8, 0_u8, 0_u32),
        (0x15, 0, 1, u32::try_from(libc_uname()).expect("a number")),
        (0x06, 0, 0, 0x0005_0001),
        (0x06, 0, 0, 0x7fff_0000),
    ] {
        program.extend(code.to_ne_bytes());
        program.extend([jt, jf]);
        program.extend(k.to_ne_bytes());
    }
    let mut command = Command::new("uname");
    command.no_new_privs(true).seccomp(program);
    let output = command.output().expect("output");
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("not permitted"), "{text}");
    let error = sh("true")
        .seccomp(*b"1234567")
        .spawn()
        .expect_err("7 bytes");
    assert!(
        matches!(
            error,
            Error::Invalid {
                setting: "seccomp",
                ..
            }
        ),
        "{error}"
    );
}

/// The number of `uname(2)`.
fn libc_uname() -> i64 {
    if cfg!(target_arch = "x86_64") {
        63
    } else {
        160
    }
}

#[test]
fn contradictions_are_refused() {
    let error = |command: &mut Command| command.start().expect_err("a contradiction").to_string();
    assert_eq!(
        error(sh("true").root("/")),
        "root: it needs a mount namespace; unshare Namespace::Mount, join one, or see Root::shared"
    );
    assert_eq!(
        error(sh("true").hostname("x")),
        "hostname: it would change the caller's; unshare Namespace::Uts"
    );
    let null = File::open("/dev/null").expect("open");
    assert_eq!(
        error(sh("true").fd(1, null)),
        "file descriptors: numbers 0, 1 and 2 are set with stdin, stdout and stderr"
    );
    assert_eq!(
        error(sh("true").uid(u32::MAX)),
        "uid: 4294967295 is no id; give a smaller one"
    );
}

#[test]
fn processes_that_wait_do_not_hold_up_others() {
    // Each inherits what the caller has open at that moment; none may keep another's socket.
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut command = Command::new("true");
        waiting.push(command.start().expect("start"));
    }
    for starting in waiting {
        let mut child = starting.exec().expect("exec");
        assert!(child.wait().expect("wait").success());
    }
}

#[test]
fn a_program_that_is_still_being_written_is_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = directory.path().join("program");
    fs_copy("/bin/true", &program);
    let writer = File::options().append(true).open(&program).expect("open");
    let error = Command::new(&program).spawn().expect_err("it is open");
    assert!(error.to_string().contains("open for writing"), "{error}");
    let closer = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        drop(writer);
    });
    let status = Command::new(&program).status().expect("spawn");
    assert!(status.success());
    closer.join().expect("join");
}

fn fs_copy(from: &str, to: &std::path::Path) {
    // A shell copies, so that this process never has the file open for writing.
    let status = Command::new("cp").arg(from).arg(to).status().expect("cp");
    assert!(status.success());
}

#[test]
fn what_was_used_is_told() {
    let mut child = sh("i=0; while test $i -lt 20000; do i=$((i+1)); done")
        .spawn()
        .expect("spawn");
    assert_eq!(child.usage(), None);
    child.wait().expect("wait");
    let usage = child.usage().expect("it has ended");
    assert!(usage.user_time + usage.system_time > Duration::ZERO);
    assert!(usage.max_resident > 100_000, "{usage:?}");
    assert!(usage.minor_faults > 0);
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
