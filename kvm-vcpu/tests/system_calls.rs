//! A machine is made and runs its first instruction with no more system calls than that takes.
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::env;
use std::process::Command;

use common::CODE;
use kvm_vcpu::{Exit, Kvm, Mode, Region, Synced};

/// Set in the process that is traced.
const TRACED: &str = "KVM_VCPU_TEST_TRACED";

/// What is traced: a machine of one region and one vCPU that writes to a port; then what costs no call
/// once it runs.
#[test]
#[ignore = "needs kvm"]
fn traced() {
    let vm = Kvm::open()
        .unwrap()
        .create_vm(&[Region::anonymous(0, 0x10_000)])
        .unwrap();
    // out 0x80, al; jmp back
    vm.write(CODE, &[0xe6, 0x80, 0xeb, 0xfc]).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
    if env::var_os(TRACED).is_none() {
        return;
    }
    // A kick before a run needs no signal, and leaves through a run all the same.
    let handle = vcpu.handle().unwrap();
    handle.kick();
    assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
    // Registers come with exits, and are set by runs.
    vcpu.sync_registers(Synced::all()).unwrap();
    for value in 1..=3 {
        assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
        vcpu.system_registers().unwrap();
        let mut registers = vcpu.registers().unwrap();
        registers.rax = value;
        vcpu.set_registers_at_next_run(&registers);
    }
    match vcpu.run().unwrap() {
        Exit::PortOut(out) => assert_eq!(out.value(), 3),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs kvm"]
fn a_machine_takes_no_more_calls_than_it_needs() {
    let output = Command::new("strace")
        .args(["-f", "-e", "trace=ioctl,tgkill", "-o", "/dev/stdout"])
        .arg(env::current_exe().unwrap())
        .args([
            "--exact",
            "traced",
            "--ignored",
            "--test-threads",
            "1",
            "-q",
        ])
        .env(TRACED, "1")
        .output()
        .expect("strace is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(!text.contains("tgkill"), "{text}");
    let mut calls = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once(", KVM_")?;
        let end = rest.find([',', ')']).unwrap_or(rest.len());
        Some(&rest[..end])
    });
    // To the end of the first instruction: those of the kernel's own example, the version, and what
    // the CPU can do.
    let first: Vec<&str> = (&mut calls).take_while(|call| *call != "RUN").collect();
    let expected = [
        "GET_API_VERSION",
        "CREATE_VM",
        "GET_VCPU_MMAP_SIZE",
        "SET_USER_MEMORY_REGION",
        "GET_SUPPORTED_CPUID",
        "CREATE_VCPU",
        "SET_CPUID2",
        "GET_SREGS",
        "SET_SREGS",
        "SET_REGS",
    ];
    assert_eq!(first, expected, "{text}");
    // From there on: the two capabilities, once each, and runs.
    let rest: Vec<&str> = calls.collect();
    let expected = [
        "CHECK_EXTENSION",
        "RUN",
        "CHECK_EXTENSION",
        "RUN",
        "RUN",
        "RUN",
        "RUN",
    ];
    assert_eq!(rest, expected, "{text}");
}
