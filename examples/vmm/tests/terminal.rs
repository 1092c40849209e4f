//! The person's terminal: the guest has it while the machine runs, and it is as before whatever happens.

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Scratch, busy};
use kvm_vcpu::{Asm, Bits, Cond, Reg};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Termios, tcgetattr};

/// A terminal with a person's end and a program's, and what it was like at first.
struct Terminal {
    person: File,
    program: OwnedFd,
    before: Termios,
}

impl Terminal {
    fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let person = openpt(flags).unwrap();
        grantpt(&person).unwrap();
        unlockpt(&person).unwrap();
        let name = ptsname(&person, Vec::new()).unwrap();
        let program = File::options()
            .read(true)
            .write(true)
            .open(name.to_str().unwrap())
            .unwrap();
        Self {
            person: person.into(),
            before: tcgetattr(&program).unwrap(),
            program: program.into(),
        }
    }

    /// Starts a machine on it.
    fn start(&self, args: &[&str]) -> Child {
        let end = || Stdio::from(self.program.try_clone().unwrap());
        Command::new(env!("CARGO_BIN_EXE_cofferdam-vmm"))
            .args(args)
            .stdin(end())
            .stdout(end())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.program).unwrap().local_modes;
        !modes.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits until the machine has it.
    fn wait_until_raw(&self) {
        wait_until(|| self.is_raw());
    }

    /// Waits for a machine's end; gives its status and what it said of it.
    #[track_caller]
    fn end(&self, child: Child) -> (i32, String) {
        let ended = child.wait_with_output().unwrap();
        let now = tcgetattr(&self.program).unwrap();
        let modes = |t: &Termios| {
            (
                t.input_modes,
                t.output_modes,
                t.control_modes,
                t.local_modes,
            )
        };
        assert_eq!(modes(&now), modes(&self.before));
        let said = String::from_utf8(ended.stderr).unwrap();
        (ended.status.code().unwrap(), said)
    }

    /// Reads what the guest puts out, until this is in it.
    fn read_until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        let mut bytes = [0; 256];
        while !String::from_utf8_lossy(&all).contains(text) {
            let n = self.person.read(&mut bytes).unwrap();
            all.extend(&bytes[..n]);
        }
        String::from_utf8(all).unwrap()
    }
}

#[track_caller]
fn wait_until(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !what() {
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A Multiboot kernel that sends back what it receives on the serial port, and ends with status 7 at a
/// `q`, by a crash at an `x`.
fn parrot(dir: &Scratch) -> String {
    const LOAD: u32 = 0x10_0000;
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16;
    const HEADER: u32 = 32;
    const SERIAL: u32 = 0x3f8;
    let sum = 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let entry = LOAD + HEADER;
    let mut image = [MAGIC, FLAGS, sum, LOAD, LOAD, 0, 0, entry]
        .map(u32::to_le_bytes)
        .concat();
    let mut a = Asm::new(Bits::B32, entry.into());
    let (crash, quit) = (a.label(), a.label());
    let again = a.here();
    a.mov(Reg::Dx, SERIAL + 5).in_dx().test_al(1);
    a.jump_if(Cond::Equal, again);
    a.mov(Reg::Dx, SERIAL).in_dx().out_dx();
    a.cmp_al(b'q').jump_if(Cond::Equal, quit);
    a.cmp_al(b'x').jump_if(Cond::Equal, crash);
    a.jmp(again);
    a.place(quit).mov(Reg::Ax, 3).out_imm(0xf4).hlt();
    // ud2
    a.place(crash).bytes(&[0x0f, 0x0b]);
    image.extend(a.finish().unwrap());
    dir.file("parrot", &image)
}

#[test]
#[ignore = "needs kvm"]
fn keys_go_to_the_guest_until_the_detach_key() {
    let dir = Scratch::new();
    let kernel = parrot(&dir);
    let mut terminal = Terminal::open();
    let child = terminal.start(&["boot", "--kernel", &kernel]);
    terminal.wait_until_raw();
    // Also those that would do something to a program; and more than the serial port holds.
    let keys = format!("\x03\x1a\x04{}.", "0123456789".repeat(20));
    terminal.person.write_all(keys.as_bytes()).unwrap();
    assert_eq!(terminal.read_until("."), keys);
    terminal.person.write_all(b"\x1d").unwrap();
    assert_eq!(terminal.end(child), (16, String::new()));
}

#[test]
#[ignore = "needs kvm"]
fn it_is_as_before_however_the_guest_ends() {
    let dir = Scratch::new();
    let kernel = parrot(&dir);
    for (key, status, says) in [(b"q", 7, ""), (b"x", 8, "triple fault")] {
        let mut terminal = Terminal::open();
        let child = terminal.start(&["boot", "--kernel", &kernel]);
        terminal.wait_until_raw();
        terminal.person.write_all(key).unwrap();
        let (ended, said) = terminal.end(child);
        assert_eq!(ended, status, "{said}");
        assert!(said.contains(says), "{said}");
    }
    let terminal = Terminal::open();
    let child = terminal.start(&["boot", "--kernel", &kernel, "--timeout", "0.3"]);
    terminal.wait_until_raw();
    assert_eq!(terminal.end(child).0, 10);
}

#[test]
#[ignore = "needs kvm"]
fn it_is_as_before_when_the_machine_is_ended_by_a_signal() {
    let dir = Scratch::new();
    let kernel = busy(&dir);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let terminal = Terminal::open();
        let mut args = vec!["boot", "--kernel", &kernel];
        if signal == Signal::INT {
            args.push("--no-jail");
        }
        let child = terminal.start(&args);
        terminal.wait_until_raw();
        let pid = Pid::from_child(&child);
        kill_process(pid, signal).unwrap();
        assert_eq!(terminal.end(child), (16, String::new()));
    }
}

#[test]
#[ignore = "needs root"]
fn it_is_as_before_when_the_jail_is_killed() {
    let dir = Scratch::new();
    let kernel = busy(&dir);
    let terminal = Terminal::open();
    let child = terminal.start(&["boot", "--kernel", &kernel, "--jail"]);
    terminal.wait_until_raw();
    let outside = child.id();
    let children = fs::read_to_string(format!("/proc/{outside}/task/{outside}/children")).unwrap();
    let inside: i32 = children.trim().parse().unwrap();
    kill_process(Pid::from_raw(inside).unwrap(), Signal::KILL).unwrap();
    let (status, said) = terminal.end(child);
    assert_eq!(status, 4, "{said}");
    assert!(said.contains("was killed by signal 9"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}
