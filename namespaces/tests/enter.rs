//! Programs in the place of another process: all its namespaces, and its root.

mod common;

use std::fs;
use std::os::fd::AsFd;

use common::{Rootfs, container, stdout};
use namespaces::{
    Barrier, Child, Command, Error, Mount, Namespace, NamespaceId, Process, Starting, Stdio, Step,
    TerminalSize,
};

/// A container that lives until its standard input is closed.
fn living(rootfs: &Rootfs) -> Child {
    let mut command = container(rootfs, "cat");
    command
        .stdin(Stdio::piped())
        .unshare([Namespace::Time])
        .hostname("entered")
        .mounts(Mount::standard());
    command.spawn().unwrap_or_else(|error| panic!("{error}"))
}

fn enter(process: impl AsFd, script: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", script])
        .env_clear()
        .env("PATH", "/bin")
        .enter(process);
    command
}

#[test]
fn a_program_is_where_the_process_is() {
    let rootfs = Rootfs::new();
    fs::write(rootfs.join("etc/mark"), "inside\n").expect("write");
    let child = living(&rootfs);
    let theirs = NamespaceId::all_of_process(child.pid()).expect("ids");
    let script = "hostname; cat /etc/mark; pwd; id -u; readlink /proc/1/root; \
                  for kind in user mnt pid uts ipc net cgroup time; do \
                  readlink /proc/self/ns/$kind; done";
    let names: Vec<String> = theirs.iter().map(ToString::to_string).collect();
    let expected = format!("entered\ninside\n/\n0\n/\n{}\n", names.join("\n"));
    assert_eq!(stdout(&mut enter(&child, script)), expected);
    // By a pidfd of somebody who is not its parent.
    let process = Process::open(child.pid()).expect("open").expect("it runs");
    assert_eq!(stdout(&mut enter(&process, script)), expected);
    // It is seen there, and its descriptors are not those of others.
    let pid = stdout(&mut enter(&child, "echo $$; ls /proc/$$/fd; true"));
    let mut lines = pid.lines();
    assert!(lines.next().is_some_and(|pid| pid != "1"), "{pid}");
    // The shell runs ls in a child.
    assert_eq!(lines.collect::<Vec<_>>(), ["0", "1", "2"], "{pid}");
}

#[test]
fn what_is_the_same_already_is_not_entered() {
    let mut command = Command::new("cat");
    let child = command.stdin(Stdio::piped()).spawn().expect("spawn");
    let mut command = enter(&child, "echo here");
    assert_eq!(stdout(&mut command), "here\n");
}

#[test]
fn new_and_entered_mix() {
    let rootfs = Rootfs::new();
    let child = living(&rootfs);
    let script = "hostname; readlink /proc/self/ns/uts; readlink /proc/self/ns/net";
    let mut command = enter(&child, script);
    command.unshare([Namespace::Uts]).hostname("own");
    let theirs = |kind| NamespaceId::of_process(child.pid(), kind).expect("an id");
    let text = stdout(&mut command);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[0], "own");
    assert_ne!(lines[1], theirs(Namespace::Uts).to_string());
    assert_eq!(lines[2], theirs(Namespace::Net).to_string());
}

/// Hooks that must run before `pivot_root`, among the container's mounts, are programs of the host.
#[test]
fn before_the_pivot_the_programs_are_the_hosts() {
    let rootfs = Rootfs::new();
    fs::create_dir(rootfs.join("data")).expect("mkdir");
    let mut command = container(&rootfs, "cat /data/made");
    command
        .mounts(Mount::standard())
        .mount(Mount::tmpfs("/data"));
    command.stdout(Stdio::piped());
    let mut starting = command.start().expect("start");
    starting.advance(Barrier::Mounted).expect("advance");
    // The container's mounts are there, over the root, which is still that of the host.
    let hook = |starting: &Starting, script: &str| stdout(&mut enter(starting, script));
    let text = hook(
        &starting,
        "readlink /proc/self/ns/mnt; cat /proc/self/mountinfo",
    );
    let (namespace, mounts) = text.split_once('\n').expect("two lines");
    assert_eq!(
        namespace,
        NamespaceId::of_process(starting.pid(), Namespace::Mount)
            .expect("an id")
            .to_string()
    );
    // This program is not in the image.
    let own = std::env::current_exe().expect("this program");
    let mut host = Command::new(&own);
    host.arg("--list").enter(&starting);
    assert!(stdout(&mut host).contains("before_the_pivot"), "{mounts}");
    starting.advance(Barrier::Ready).expect("advance");
    // Now the root is the container's.
    hook(&starting, "echo made > /data/made; test ! -e /data/nothing");
    let mut host = Command::new(&own);
    host.arg("--list").enter(&starting);
    assert!(matches!(host.spawn(), Err(Error::NotFound { .. })));
    let output = starting.exec().expect("exec").wait_with_output();
    assert_eq!(output.expect("output").stdout, b"made\n");
}

#[test]
fn a_terminal_is_of_the_entered_devpts() {
    let rootfs = Rootfs::new();
    let child = living(&rootfs);
    let mut command = enter(&child, "readlink /proc/self/fd/0; ls /dev/pts");
    command.terminal(TerminalSize {
        rows: 10,
        columns: 20,
    });
    let mut inside = command.spawn().expect("spawn");
    let master = inside.terminal.take().expect("a terminal");
    assert!(inside.wait().expect("wait").success());
    let mut buffer = [0; 200];
    let length = rustix::io::read(&master, &mut buffer).expect("read");
    let text = String::from_utf8_lossy(&buffer[..length]);
    assert!(text.starts_with("/dev/pts/0\r\n"), "{text}");
}

#[test]
fn what_is_no_process_is_refused() {
    let null = fs::File::open("/dev/null").expect("open");
    let error = enter(&null, "true").spawn().expect_err("no pidfd");
    assert!(error.to_string().contains("is not a pidfd"), "{error}");
    let mut child = Command::new("true").spawn().expect("spawn");
    child.wait().expect("wait");
    let error = enter(&child, "true").spawn().expect_err("it has ended");
    assert!(error.to_string().contains("has ended"), "{error}");
    // One that somebody else owns.
    let rootfs = Rootfs::new();
    let child = living(&rootfs);
    let mut command = Command::new("cat");
    command.arg("/no/such/file").enter(&child);
    assert!(!command.output().expect("output").status.success());
    let mut command = enter(&child, "true");
    command.current_dir("/no/such/directory");
    let Err(Error::Step(error)) = command.spawn() else {
        panic!("it must fail");
    };
    assert_eq!(error.step(), Step::CurrentDirectory);
    assert!(
        error
            .undone()
            .iter()
            .any(|step| step.starts_with("enter the user, mount, pid, ")),
        "{:?}",
        error.undone()
    );
    assert!(error.to_string().ends_with("steps before are undone"));
}

#[test]
#[ignore = "needs root"]
fn an_ordinary_user_can_do_all_this() {
    common::again_as_a_user();
}
