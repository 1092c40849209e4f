//! A machine is made and runs its first instruction with no more system calls than that takes.
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::collections::BTreeMap;
use std::env;
use std::process::Command;

use common::CODE;
use kvm_vcpu::{Exit, Kvm, Mode, Region};

/// Set in the process that is traced.
const TRACED: &str = "KVM_VCPU_TEST_TRACED";

/// What is traced: a machine of one region and one vCPU that halts.
#[test]
#[ignore = "needs kvm"]
fn traced() {
    let vm = Kvm::open()
        .unwrap()
        .create_vm(&[Region::anonymous(0, 0x10_000)])
        .unwrap();
    vm.write(CODE, &[0xf4]).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    if env::var_os(TRACED).is_some() {
        // A kick before a run needs no signal; a run that is not kicked no call beside its own.
        let handle = vcpu.handle().unwrap();
        handle.kick();
        assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
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
    let mut calls: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let Some((_, rest)) = line.split_once(", KVM_") else {
            continue;
        };
        let end = rest.find([',', ')']).unwrap_or(rest.len());
        *calls.entry(&rest[..end]).or_default() += 1;
    }
    let expected = BTreeMap::from([
        ("CHECK_EXTENSION", 5),
        ("CREATE_VCPU", 1),
        ("CREATE_VM", 1),
        ("GET_API_VERSION", 1),
        ("GET_SREGS", 1),
        ("GET_SUPPORTED_CPUID", 1),
        ("GET_VCPU_MMAP_SIZE", 1),
        ("RUN", 2),
        ("SET_CPUID2", 1),
        ("SET_REGS", 1),
        ("SET_SREGS", 1),
        ("SET_USER_MEMORY_REGION", 1),
    ]);
    assert_eq!(calls, expected, "{text}");
}
