//! Registers come with exits and are set by runs, without calls of their own; and all of `xsave`.
#![allow(clippy::cast_possible_truncation)]

mod common;

use common::real;
use kvm_vcpu::{Error, Exit, Kvm, Synced, Vcpu};

/// What the guest writes to its port next.
fn next(vcpu: &mut Vcpu) -> u32 {
    loop {
        match vcpu.run().unwrap() {
            Exit::PortOut(out) => return out.value(),
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

/// inc eax; out 0x80, eax; jmp back
const COUNT: [u8; 7] = [0x66, 0x40, 0x66, 0xe7, 0x80, 0xeb, 0xf9];

#[test]
#[ignore = "needs kvm"]
fn registers_that_come_with_an_exit_are_those_that_the_kernel_tells() {
    let mut vcpu = real(&COUNT);
    vcpu.sync_registers(Synced::GENERAL | Synced::SYSTEM)
        .unwrap();
    for count in 1..5 {
        assert_eq!(next(&mut vcpu), count);
        let (regs, sregs) = (vcpu.registers().unwrap(), vcpu.system_registers().unwrap());
        assert_eq!(regs.rax, u64::from(count));
        // Setting them makes the next reading a call.
        vcpu.set_registers(&regs).unwrap();
        vcpu.set_system_registers(&sregs).unwrap();
        assert_eq!(vcpu.registers().unwrap(), regs);
        assert_eq!(vcpu.system_registers().unwrap(), sregs);
    }
    vcpu.sync_registers(Synced::empty()).unwrap();
    assert_eq!(next(&mut vcpu), 5);
    assert_eq!(vcpu.registers().unwrap().rax, 5);
}

#[test]
#[ignore = "needs kvm"]
fn a_run_sets_registers_and_what_was_set_last_counts() {
    let mut vcpu = real(&COUNT);
    assert_eq!(next(&mut vcpu), 1);
    let with = |vcpu: &Vcpu, rax| {
        let mut regs = vcpu.registers().unwrap();
        regs.rax = rax;
        regs
    };
    let regs = with(&vcpu, 100);
    vcpu.set_registers_at_next_run(&regs);
    assert_eq!(vcpu.registers().unwrap(), regs);
    assert_eq!(next(&mut vcpu), 101);
    // It was for one run.
    assert_eq!(next(&mut vcpu), 102);
    assert_eq!(vcpu.registers().unwrap().rax, 102);

    let regs = with(&vcpu, 200);
    vcpu.set_registers_at_next_run(&regs);
    vcpu.set_registers(&with(&vcpu, 300)).unwrap();
    assert_eq!(vcpu.registers().unwrap().rax, 300);
    assert_eq!(next(&mut vcpu), 301);

    let regs = with(&vcpu, 400);
    vcpu.set_registers_at_next_run(&regs);
    let sregs = vcpu.system_registers().unwrap();
    vcpu.set_system_registers(&sregs).unwrap();
    assert_eq!(vcpu.settle().unwrap(), None);
    assert_eq!(vcpu.registers().unwrap().rax, 400);
    assert_eq!(next(&mut vcpu), 401);
}

#[test]
#[ignore = "needs kvm"]
fn extended_registers_come_back_whole() {
    // First, because it has to come before the process's first vCPU; the other tests' may be earlier.
    match Kvm::open().unwrap().permit_amx() {
        Ok(()) | Err(Error::Ioctl { .. }) => {}
        Err(Error::Unsupported { capability, .. }) => assert!(capability.contains("AMX")),
        Err(e) => panic!("{e}"),
    }
    let vcpu = real(&[0xf4]);
    let mut area = vcpu.xsave().unwrap().into_vec();
    assert!(area.len() >= 4096);
    // The legacy area's last vector register, and the header's bit of them.
    area[160 + 15 * 16..][..16].copy_from_slice(&[0x5a; 16]);
    area[512] |= 2;
    vcpu.set_xsave(&area).unwrap();
    assert_eq!(
        vcpu.fpu_registers().unwrap().xmm[15],
        u128::from_ne_bytes([0x5a; 16])
    );
    assert_eq!(vcpu.xsave().unwrap()[..], area[..]);
    // What is missing is in its first state: the legacy area and the header are enough.
    vcpu.set_xsave(&area[..576]).unwrap();
    assert_eq!(
        vcpu.fpu_registers().unwrap().xmm[15],
        u128::from_ne_bytes([0x5a; 16])
    );
    area.push(0);
    assert!(matches!(vcpu.set_xsave(&area), Err(Error::TooMany { .. })));
}
