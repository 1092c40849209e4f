//! A thread of a jailed machine that someone has broken into: what it tries, it does not get.
//!
//! This test's own program stands in for the machine's: it starts itself again in the jail, with the
//! same test, which there tries one thing.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::process::{Command, Output, exit};

use clap::Parser as _;

use super::*;
use crate::cli::{Cli, Command as Subcommand};
use crate::filter::Work;
use crate::virtio::mock::{KINDS, any_device};

const NAME: &str = "jail::tests::a_thread_that_was_broken_into_escapes_nothing";
/// What is tried, and by which thread.
const ATTEMPT: &str = "COFFERDAM_VMM_ATTEMPT";
const WORK: &str = "COFFERDAM_VMM_WORK";
/// What of the host is tried to be reached: a process, a port, and a socket without a file.
const HOST: &str = "COFFERDAM_VMM_HOST";

/// What ends a thread that the filter holds, by what it calls.
const FORBIDDEN: [(&str, fn()); 10] = [
    ("open", || drop(File::open("/etc/passwd"))),
    ("list", || drop(fs::read_dir("/"))),
    ("remove", || drop(fs::remove_file("/x"))),
    ("connect", || drop(TcpStream::connect("127.0.0.1:1"))),
    ("listen", || drop(TcpListener::bind("127.0.0.1:0"))),
    ("execute", || drop(Command::new("/bin/true").spawn())),
    ("trace", || {
        let _ = nix::sys::ptrace::traceme();
    }),
    ("mount", || {
        let _ = mount("x", "/", "tmpfs", MountFlags::empty(), None);
    }),
    ("chdir", || {
        let _ = chdir("/");
    }),
    ("capabilities", || {
        let _ = rustix::thread::capabilities(None);
    }),
];

/// What a thread without a filter finds in the jail: nothing.
fn look_around() -> Vec<&'static str> {
    let host = std::env::var(HOST).unwrap();
    let host: Vec<&str> = host.split(' ').collect();
    let missing = |path: &str| File::open(path).is_err_and(|e| e.kind() == ErrorKind::NotFound);
    let outside = Pid::from_raw(host[0].parse().unwrap()).unwrap();
    let abstract_socket = SocketAddr::from_abstract_name(host[2]).unwrap();
    let capabilities = rustix::thread::capabilities(None).unwrap();
    let finds = [
        ("files", fs::read_dir("/").unwrap().next().is_some()),
        ("passwords", !missing("/etc/passwd")),
        ("its parent's directory", !missing("../../../etc/passwd")),
        ("processes", !missing("/proc/self/exe")),
        ("devices", !missing("/dev/kvm")),
        ("room for a file", File::create("/x").is_ok()),
        (
            "a mount",
            mount("x", "/", "tmpfs", MountFlags::empty(), None).is_ok(),
        ),
        ("a host name", rustix::system::sethostname(b"x").is_ok()),
        ("a process outside", test_kill_process(outside).is_ok()),
        ("its parent", rustix::process::getppid().is_some()),
        (
            "a port",
            TcpStream::connect(("127.0.0.1", host[1].parse().unwrap())).is_ok(),
        ),
        (
            "a socket",
            UnixStream::connect_addr(&abstract_socket).is_ok(),
        ),
        (
            "capabilities",
            !capabilities.effective.is_empty() || !capabilities.permitted.is_empty(),
        ),
        ("a program", Command::new("/bin/true").status().is_ok()),
    ];
    finds
        .into_iter()
        .filter_map(|(what, found)| found.then_some(what))
        .collect()
}

/// The thread's work by number: a vCPU, or one of the devices.
fn work(number: usize) -> Work {
    match number {
        0 => Work::Processor,
        n => Work::Device(any_device(n - 1).transport.device.calls()),
    }
}

/// The machine's part of the test.
fn attempt(what: &str) -> ! {
    if !is_inside() {
        let Subcommand::Boot(args) = Cli::parse_from(["vmm", "boot", "--kernel", "k"]).command
        else {
            unreachable!("it says boot");
        };
        let machine = Machine::from_args(&args).unwrap();
        match enter(&machine, &args.run) {
            Ok(status) => exit(status.into()),
            Err(Error::Killed { signal }) => exit(100 + signal),
            Err(e) => panic!("{e}"),
        }
    }
    let work = work(std::env::var(WORK).unwrap().parse().unwrap());
    confine(None, None).unwrap();
    if what == "look around" {
        assert_eq!(look_around(), [""; 0]);
        exit(0);
    }
    work.hold().unwrap();
    if let Some((_, forbidden)) = FORBIDDEN.iter().find(|(name, _)| *name == what) {
        forbidden();
    }
    exit(0)
}

#[test]
#[ignore = "needs root"]
fn a_thread_that_was_broken_into_escapes_nothing() {
    if let Ok(what) = std::env::var(ATTEMPT) {
        attempt(&what);
    }
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("cofferdam-vmm-jail-{}", std::process::id());
    let _socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let number = port.local_addr().unwrap().port();
    let host = format!("{} {number} {name}", std::process::id());
    let try_to = |what: &str, work: usize| -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME, "--include-ignored", "--nocapture"])
            .env(ATTEMPT, what)
            .env(WORK, work.to_string())
            .env(HOST, &host)
            .output()
            .unwrap()
    };
    let looked = try_to("look around", 0);
    assert_eq!(looked.status.code(), Some(0), "{looked:?}");
    for work in 0..=KINDS {
        // A thread that does its work is left alone.
        let worked = try_to("work", work);
        assert_eq!(worked.status.code(), Some(0), "{work}: {worked:?}");
    }
    // One of each kind: a vCPU, a disk, and the vsock, which may do the most.
    for work in [0, 1, KINDS] {
        for (what, _) in FORBIDDEN {
            let ended = try_to(what, work);
            // SIGSYS.
            assert_eq!(
                ended.status.code(),
                Some(131),
                "{what} by {work}: {ended:?}"
            );
        }
    }
}
