//! gdb has a guest from its first instruction on.
#![cfg(feature = "gdb")]

mod common;

use std::process::{Command, Output, Stdio};

use common::{Scratch, busy, run};

/// Boots a guest that waits for gdb, has gdb do this, and gives what both said and the guest's end.
fn debug(dir: &Scratch, options: &[&str], commands: &[&str]) -> (String, Output) {
    let socket = dir.path("gdb");
    let machine = Command::new(env!("CARGO_BIN_EXE_cofferdam-vmm"))
        .args(["boot", "--gdb", &socket, "--timeout", "60"])
        .args(options)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = || std::fs::exists(&socket).unwrap();
    while !ready() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-ex", "set architecture i386:x86-64"]);
    gdb.args(["-ex", &format!("target remote {socket}")]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let said = gdb.output().unwrap();
    let ended = machine.wait_with_output().unwrap();
    assert!(!ready());
    (String::from_utf8_lossy(&said.stdout).into_owned(), ended)
}

#[test]
#[ignore = "needs kvm"]
fn gdb_stops_at_the_entry_and_lets_the_guest_go_on() {
    let dir = Scratch::new();
    let guest = dir.path("guest");
    assert_eq!(run(&["guest", "long", "--output", &guest]).status, 0);
    let commands = [
        "printf \"rip %#lx\\n\", $rip",
        "stepi",
        "printf \"then %#lx\\n\", $rip",
        "continue",
    ];
    let (said, ended) = debug(&dir, &["--kernel", &guest], &commands);
    let image = std::fs::read(&guest).unwrap();
    let entry = u64::from_le_bytes(image[24..32].try_into().unwrap());
    assert!(said.contains(&format!("rip {entry:#x}")), "{said}");
    assert!(said.contains("then 0x"), "{said}");
    assert_eq!(ended.status.code(), Some(0), "{said}");
    let out = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(out.contains("64-bit long mode"), "{out}");
}

#[test]
#[ignore = "needs kvm"]
fn each_vcpu_is_a_thread() {
    let dir = Scratch::new();
    let guest = busy(&dir);
    let options = ["--kernel", &guest, "--cpus", "2"];
    let (said, ended) = debug(&dir, &options, &["info threads", "stepi", "kill"]);
    for thread in [
        "Thread 1.1 (vCPU 0, 32-bit protected mode)",
        "Thread 1.2 (vCPU 1, real mode)",
    ] {
        assert!(said.contains(thread), "{thread}: {said}");
    }
    assert_eq!(ended.status.code(), Some(16), "{said}");
}
