//! gdb debugs a guest.
#![cfg(feature = "gdb")]
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::net::TcpListener;
use std::ops::ControlFlow;
use std::process::Command;
use std::thread;

use common::{CODE, long};
use kvm_vcpu::{Exit, GdbEnd};

/// mov eax, 5; inc eax; mov [0x3000], eax; inc eax; hlt
const GUEST: [u8; 17] = [
    0xb8, 5, 0, 0, 0, 0xff, 0xc0, 0x89, 0x04, 0x25, 0, 0x30, 0, 0, 0xff, 0xc0, 0xf4,
];

#[test]
#[ignore = "needs kvm"]
fn gdb_steps_breaks_reads_and_writes() {
    let mut vcpu = long(&GUEST);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gdb = thread::spawn(move || {
        let mut gdb = Command::new("gdb");
        gdb.args(["-nx", "-q", "-batch", "-ex", "set architecture i386:x86-64"]);
        for command in [
            &format!("target remote 127.0.0.1:{port}")[..],
            "stepi",
            "printf \"step rip=%#lx rax=%ld\\n\", $rip, $rax",
            // Put in and, below, taken out; whether it stops a guest is the CPU's affair.
            "break *0x100e",
            "stepi",
            "printf \"break rip=%#lx rax=%ld\\n\", $rip, $rax",
            "set $rax = 41",
            "delete",
            "stepi",
            "printf \"memory %d\\n\", *(int*)0x3000",
            "set *(int*)0x3004 = 7",
            "x/i 0x100e",
            "continue",
        ] {
            gdb.args(["-ex", command]);
        }
        gdb.output().expect("gdb is installed")
    });
    let (connection, _) = listener.accept().unwrap();
    let end = vcpu
        .serve_gdb(connection, |_, exit| match exit {
            Exit::Halt => ControlFlow::Break("halted"),
            other => panic!("{other:?}"),
        })
        .unwrap();
    let output = gdb.join().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(end, GdbEnd::Guest("halted"), "{text}");
    for line in [
        "step rip=0x1005 rax=5",
        "break rip=0x1007 rax=6",
        "memory 41",
        "inc    %eax",
        "exited normally",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(vcpu.registers().unwrap().rax, 42);
    let memory = vcpu.memory();
    assert_eq!(memory.read_value::<u32>(0x3004).unwrap(), 7);
    let mut code = [0; 17];
    memory.read(CODE, &mut code).unwrap();
    assert_eq!(code, GUEST);
}
