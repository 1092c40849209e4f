//! Virtio devices under the drivers of a distribution's kernel: in the lab.

mod common;

use std::cell::RefCell;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::linux::{INIT, kernel};
use common::{Running, Scratch, run};
use kvm_vcpu::{Asm, Bits, Cond, Reg};

/// A Linux program that connects to port 1234 of the host by vsock, and sends back what it gets.
fn echo() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    const BUFFER: u32 = 0x40_1000;
    let mut a = Asm::new(Bits::B64, BASE + HEADERS);
    let (address, failed, over) = (a.label(), a.label(), a.label());
    let syscall = [0x0f, 0x05];
    // socket(AF_VSOCK, SOCK_STREAM, 0)
    a.mov(Reg::Ax, 41).mov(Reg::Di, 40).mov(Reg::Si, 1);
    a.mov(Reg::Dx, 0).bytes(&syscall).mov_reg(Reg::Bx, Reg::Ax);
    // connect(socket, &address, 16)
    a.mov(Reg::Ax, 42).mov_reg(Reg::Di, Reg::Bx);
    a.mov_label(Reg::Si, address).mov(Reg::Dx, 16);
    a.bytes(&syscall).cmp(Reg::Ax, 0);
    a.jump_if(Cond::NotEqual, failed);
    let again = a.here();
    a.mov(Reg::Ax, 0).mov_reg(Reg::Di, Reg::Bx);
    a.mov(Reg::Si, BUFFER).mov(Reg::Dx, 4096);
    a.bytes(&syscall).cmp(Reg::Ax, 0);
    a.jump_if(Cond::Equal, over);
    a.test(Reg::Ax, 1 << 31).jump_if(Cond::NotEqual, failed);
    a.mov_reg(Reg::Dx, Reg::Ax).mov(Reg::Ax, 1);
    a.mov_reg(Reg::Di, Reg::Bx).mov(Reg::Si, BUFFER);
    a.bytes(&syscall).jmp(again);
    for (label, status) in [(failed, 1), (over, 0)] {
        a.place(label).mov(Reg::Ax, 60).mov(Reg::Di, status);
        a.bytes(&syscall);
    }
    // The family, the port, the context id, and what is reserved.
    a.place(address);
    a.bytes(&[40u32, 1234, 2, 0].map(u32::to_le_bytes).concat());
    let code = a.finish().unwrap();

    let len = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1u32.to_le_bytes());
    elf.extend([BASE + HEADERS, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0u32.to_le_bytes());
    elf.extend([64u16, 56, 1, 0, 0, 0].map(u16::to_le_bytes).concat());
    // One segment to read, write and execute.
    elf.extend([1u32, 7].map(u32::to_le_bytes).concat());
    elf.extend(
        [0, BASE, BASE, len, 0x3000, 0x1000]
            .map(u64::to_le_bytes)
            .concat(),
    );
    elf.extend(code);
    elf
}

/// A tap interface with an address, which goes away with the test.
struct Tap;

impl Tap {
    const NAME: &str = "cofftest0";

    fn new() -> Self {
        if !Path::new("/dev/net/tun").exists() {
            let loaded = Command::new("modprobe").arg("tun").status();
            assert!(loaded.unwrap().success());
        }
        let this = Self;
        for command in [
            &["tuntap", "add", Self::NAME, "mode", "tap"][..],
            &["addr", "add", "192.168.77.1/24", "dev", Self::NAME],
            &["link", "set", Self::NAME, "up"],
        ] {
            assert!(Command::new("ip").args(command).status().unwrap().success());
        }
        this
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // It may not have been made.
        let _ = Command::new("ip")
            .args(["link", "del", Self::NAME])
            .status();
    }
}

/// The connection that the guest makes, as long as there is a guest.
fn accept<S>(machine: &mut Running, from: impl Fn() -> io::Result<S>) -> S {
    let stream = RefCell::new(None);
    machine.wait_until(|_| match from() {
        Ok(connected) => stream.replace(Some(connected)).is_none(),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
        Err(error) => panic!("{error}"),
    });
    stream.into_inner().unwrap()
}

/// How long a guest may be silent in a connection.
const PATIENCE: Option<Duration> = Some(Duration::from_secs(100));

#[track_caller]
fn assert_same(got: &[u8], sent: &[u8]) {
    let (back, all) = (got.len(), sent.len());
    assert!(got == sent, "{back} of {all} bytes came back");
}

fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}

#[test]
#[ignore = "needs lab"]
fn network_vsock_console_and_balloon_work() {
    let dir = Scratch::new();
    let kernel = kernel("-cloud-amd64");
    let escape = |b: &u8| format!("\\{b:03o}");
    let escaped: Vec<String> = echo().iter().map(escape).collect();
    let init = dir.file("init", INIT.replace("ECHO", &escaped.concat()).as_bytes());
    let initrd = dir.path("initrd");
    let made = run(&[
        "guest", "--kernel", &kernel, "--init", &init, "--output", &initrd,
    ]);
    assert_eq!((made.status, made.err.as_str()), (0, ""));
    let _tap = Tap::new();
    let [downloads, uploads, end] = [5000, 5001, 5002].map(|port| {
        let listener = TcpListener::bind(("192.168.77.1", port)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    });
    fs::create_dir(dir.path("v")).unwrap();
    let (socket, console) = (dir.path("v/sock"), dir.path("console"));
    let program = UnixListener::bind(dir.path("v/sock_1234")).unwrap();
    program.set_nonblocking(true).unwrap();
    let net = format!("tap={},mac=02:00:00:00:00:07", Tap::NAME);
    let vsock = format!("3:{socket}");
    let mut args = vec![
        "boot", "--kernel", &kernel, "--initrd", &initrd, "--memory", "192",
    ];
    args.extend([
        "--cmdline",
        "console=ttyS0 quiet test=devices",
        "--net",
        &net,
    ]);
    let log = dir.path("log");
    args.extend(["--vsock", &vsock, "--console", &console]);
    let store = dir.path("store");
    fs::create_dir(&store).unwrap();
    args.extend(["--timeout", "200", "--log", &log, "--snapshots", &store]);
    let mut machine = Running::start(&dir, "devices", &args);

    // By vsock there and back: the guest connects to the program of the host.
    let (mut stream, _) = accept(&mut machine, || program.accept());
    stream.set_read_timeout(PATIENCE).unwrap();
    let sent = pattern(256 << 10, 1);
    let mut got = Vec::new();
    thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        let sent = &sent;
        scope.spawn(move || {
            writer.write_all(sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        stream.read_to_end(&mut got).unwrap();
    });
    assert_same(&got, &sent);

    // By the network there, and back in another connection.
    let sent = pattern(4 << 20, 2);
    let (mut stream, _) = accept(&mut machine, || downloads.accept());
    stream.set_write_timeout(PATIENCE).unwrap();
    stream.write_all(&sent).unwrap();
    drop(stream);
    let (mut stream, _) = accept(&mut machine, || uploads.accept());
    stream.set_read_timeout(PATIENCE).unwrap();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_same(&got, &sent);
    drop(stream);

    assert_eq!(fs::read_to_string(&console).unwrap().trim_end(), "hello");
    assert!(machine.out().contains("vsock=0"), "{}", machine.out());

    // The guest gives 64 MiB, and gets them back.
    let balloon = |machine: &Running| {
        let (_, metrics) = machine.ask("GET /metrics", "");
        let devices = metrics["devices"].as_array().unwrap();
        let balloon = devices.iter().find(|d| d["kind"] == "balloon").unwrap();
        balloon["actual_bytes"].as_u64().unwrap()
    };
    assert_eq!(balloon(&machine), 0);
    machine.ask("PUT /balloon", "{\"mib\":64}");
    machine.wait_until(|machine| balloon(machine) == 64 << 20);
    machine.ask("PUT /balloon", "{\"mib\":0}");
    machine.wait_until(|machine| balloon(machine) == 0);

    // A connection by the network outlives the machine that is saved, and goes on with the restored one.
    let (mut stream, _) = accept(&mut machine, || end.accept());
    stream.set_read_timeout(PATIENCE).unwrap();
    let mut echo = |sent: &[u8]| {
        stream.write_all(sent).unwrap();
        let mut got = vec![0; sent.len()];
        stream.read_exact(&mut got).unwrap();
        assert_same(&got, sent);
    };
    echo(b"before");
    assert_eq!(machine.ask("PUT /pause", "").0, 200);
    machine.save("saved");
    machine.shut_down();
    let args = ["restore", &format!("{store}/saved"), "--timeout", "200"];
    let mut machine = Running::start(&dir, "restored", &args);
    echo(b"after");
    drop(stream);
    assert_eq!(machine.wait(), Some(0), "{}", machine.out());
    // Each device had a driver that was ready.
    let log = fs::read_to_string(log).unwrap();
    let drivers = log.lines().filter(|l| l.contains("\"ready\":true"));
    assert_eq!(drivers.count(), 5, "{log}");
}
