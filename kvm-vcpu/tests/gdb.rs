//! gdb debugs a guest.
#![cfg(feature = "gdb")]
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::process::Command;
use std::thread;

use common::{CODE, long, machine, modes};
use kvm_vcpu::{EffectiveDebugging, Error, Exit, GdbEnd, Kvm, Vcpu};

/// mov eax, 5; inc eax; mov [0x3000], eax; inc eax; hlt
const GUEST: [u8; 17] = [
    0xb8, 5, 0, 0, 0, 0xff, 0xc0, 0x89, 0x04, 0x25, 0, 0x30, 0, 0, 0xff, 0xc0, 0xf4,
];

fn effective() -> EffectiveDebugging {
    Kvm::open().unwrap().effective_debugging().unwrap()
}

/// Has gdb do this, and gives what it said and how the session ended. The guest ends when all its vCPUs
/// have halted.
fn debug(
    vcpus: &mut [Vcpu],
    effective: EffectiveDebugging,
    commands: &[&str],
) -> (String, GdbEnd<&'static str>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-q", "-batch", "-ex", "set architecture i386:x86-64"]);
    gdb.args(["-ex", &format!("target remote 127.0.0.1:{port}")]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    let gdb = thread::spawn(move || gdb.output().expect("gdb is installed"));
    let (connection, _) = listener.accept().unwrap();
    let (first, others) = vcpus.split_first_mut().unwrap();
    let mut others: Vec<_> = others.iter_mut().collect();
    let count = others.len() + 1;
    let mut halted = BTreeSet::new();
    let end = first.serve_gdb(&mut others, effective, connection, |vcpu, exit| {
        assert_eq!(exit, Exit::Halt);
        halted.insert(vcpu.id());
        if halted.len() == count {
            ControlFlow::Break("halted")
        } else {
            ControlFlow::Continue(())
        }
    });
    let output = gdb.join().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8_lossy(&text).into_owned(), end.unwrap())
}

#[track_caller]
fn says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
#[ignore = "needs kvm"]
fn gdb_steps_reads_and_writes() {
    let mut vcpus = [long(&GUEST)];
    let commands = [
        "stepi",
        "printf \"step rip=%#lx rax=%ld\\n\", $rip, $rax",
        "stepi",
        "printf \"then rip=%#lx rax=%ld\\n\", $rip, $rax",
        "set $rax = 41",
        "stepi",
        "printf \"memory %d\\n\", *(int*)0x3000",
        "set *(int*)0x3004 = 7",
        "x/i 0x100e",
        "continue",
    ];
    let (text, end) = debug(&mut vcpus, effective(), &commands);
    assert_eq!(end, GdbEnd::Guest("halted"), "{text}");
    says(
        &text,
        &[
            "step rip=0x1005 rax=5",
            "then rip=0x1007 rax=6",
            "memory 41",
            "inc    %eax",
            "exited normally",
        ],
    );
    assert_eq!(vcpus[0].registers().unwrap().rax, 42);
    let value: u32 = vcpus[0].memory().read_value(0x3004).unwrap();
    assert_eq!(value, 7);
}

#[test]
#[ignore = "needs kvm"]
fn what_has_no_effect_is_refused() {
    let here = effective();
    for (command, works, refused) in [
        (
            "break *0x100e",
            here.software_breakpoints,
            "Cannot insert breakpoint",
        ),
        (
            "hbreak *0x100e",
            here.breakpoints,
            "Could not insert hardware breakpoint",
        ),
        (
            "watch *(int*)0x3000",
            here.watchpoints,
            "Could not insert hardware watchpoint",
        ),
    ] {
        let mut vcpus = [long(&GUEST)];
        let commands = [
            command,
            "continue",
            "printf \"at %#lx\\n\", $rip",
            "delete",
            "continue",
        ];
        let (text, end) = debug(&mut vcpus, here, &commands);
        assert_eq!(end, GdbEnd::Guest("halted"), "{text}");
        if works {
            says(&text, &["at 0x100e"]);
        } else {
            says(&text, &[refused, "at 0x1000"]);
        }
        assert_eq!(vcpus[0].registers().unwrap().rax, 7);
        let mut code = [0; 17];
        vcpus[0].memory().read(CODE, &mut code).unwrap();
        assert_eq!(code, GUEST);
    }
}

#[test]
#[ignore = "needs kvm"]
fn gdb_watches_memory_by_steps_where_the_cpu_does_not() {
    let mut vcpus = [long(&GUEST)];
    let commands = [
        "set can-use-hw-watchpoints 0",
        "watch *(int*)0x3000",
        "continue",
        "printf \"at %#lx\\n\", $rip",
        "delete",
        "continue",
    ];
    let (text, end) = debug(&mut vcpus, effective(), &commands);
    assert_eq!(end, GdbEnd::Guest("halted"), "{text}");
    says(&text, &["Old value = 0", "New value = 6", "at 0x100e"]);
}

#[test]
#[ignore = "needs kvm"]
fn each_vcpu_is_a_thread() {
    let vm = machine();
    // again: cmp byte [0x3000], 0; je again; mov eax, 1; hlt
    let waits = [
        0x80, 0x3c, 0x25, 0, 0x30, 0, 0, 0, 0x74, 0xf6, 0xb8, 1, 0, 0, 0, 0xf4,
    ];
    vm.write(CODE, &waits).unwrap();
    // mov ebx, 7; mov byte [0x3000], 1; again: hlt; jmp again
    let writes = [
        0xbb, 7, 0, 0, 0, 0xc6, 0x04, 0x25, 0, 0x30, 0, 0, 1, 0xf4, 0xeb, 0xfd,
    ];
    vm.write(CODE + 0x100, &writes).unwrap();
    let [_, _, mode] = modes(&vm);
    let mut vcpus = [0, 1].map(|id| vm.create_vcpu(id, &mode).unwrap());
    let mut regs = vcpus[1].registers().unwrap();
    regs.rip = CODE + 0x100;
    vcpus[1].set_registers(&regs).unwrap();
    let commands = [
        "info threads",
        "thread 2",
        "printf \"second at %#lx\\n\", $rip",
        "set scheduler-locking on",
        "stepi",
        "printf \"second rbx=%ld\\n\", $rbx",
        "thread 1",
        "printf \"first still at %#lx\\n\", $rip",
        "stepi",
        "stepi",
        "stepi",
        "printf \"first waits at %#lx\\n\", $rip",
        // The first ends when the second has run beside it.
        "set scheduler-locking off",
        "continue",
    ];
    let (text, end) = debug(&mut vcpus, effective(), &commands);
    assert_eq!(end, GdbEnd::Guest("halted"), "{text}");
    says(
        &text,
        &[
            "Thread 1.1 (vCPU 0, 64-bit long mode)",
            "Thread 1.2 (vCPU 1, 64-bit long mode)",
            "second at 0x1100",
            "second rbx=7",
            "first still at 0x1000",
            "first waits at 0x1008",
            "exited normally",
        ],
    );
    assert_eq!(vcpus[0].registers().unwrap().rax, 1);
}

#[test]
#[ignore = "needs kvm"]
fn vcpus_of_another_machine_are_refused() {
    let (mut vcpu, mut other) = (long(&GUEST), long(&GUEST));
    let (here, _there) = std::os::unix::net::UnixStream::pair().unwrap();
    let refused = vcpu.serve_gdb(&mut [&mut other], effective(), here, |_, _| {
        ControlFlow::Break(())
    });
    assert!(
        matches!(refused, Err(Error::OtherMachine { id: 0 })),
        "{refused:?}"
    );
}
