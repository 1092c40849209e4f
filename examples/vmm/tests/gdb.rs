//! gdb has a guest from its first instruction on.
#![cfg(feature = "gdb")]

mod common;

use std::process::{Command, Stdio};

use common::{Scratch, run};

#[test]
#[ignore = "needs kvm"]
fn gdb_stops_at_the_entry_and_lets_the_guest_go_on() {
    let dir = Scratch::new();
    let (guest, socket) = (dir.path("guest"), dir.path("gdb"));
    assert_eq!(run(&["guest", "long", "--output", &guest]).status, 0);
    let machine = Command::new(env!("CARGO_BIN_EXE_cofferdam-vmm"))
        .args([
            "boot",
            "--kernel",
            &guest,
            "--gdb",
            &socket,
            "--timeout",
            "60",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let ready = || std::fs::exists(&socket).unwrap();
    while !ready() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-ex", "set architecture i386:x86-64"]);
    for command in [
        &format!("target remote {socket}")[..],
        "printf \"rip %#lx\\n\", $rip",
        "stepi",
        "printf \"then %#lx\\n\", $rip",
        "continue",
    ] {
        gdb.args(["-ex", command]);
    }
    let said = gdb.output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    let ended = machine.wait_with_output().unwrap();
    let image = std::fs::read(&guest).unwrap();
    let entry = u64::from_le_bytes(image[24..32].try_into().unwrap());
    assert!(said.contains(&format!("rip {entry:#x}")), "{said}");
    assert!(said.contains("then 0x"), "{said}");
    assert_eq!(ended.status.code(), Some(0), "{said}");
    let out = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(out.contains("64-bit long mode"), "{out}");
    assert!(!ready());
}
