//! CPUID, model-specific registers, and debugging of a guest.
#![allow(clippy::cast_possible_truncation)]

mod common;

use common::{CODE, long, machine, modes, real};
use kvm_vcpu::{
    CpuidLevel, CpuidTable, Error, Exit, Feature, Kvm, Mode, MsrAccess, MsrExits, MsrFilter,
    MsrReason, Vcpu, msr,
};

#[test]
#[ignore = "needs kvm"]
fn cpuid_is_read_back_as_it_was_set() {
    let kvm = Kvm::open().unwrap();
    let supported = kvm.supported_cpuid().unwrap();
    assert!(supported.has(Feature::LONG_MODE) && supported.has(Feature::SSE2));
    let vm = machine();
    let vcpu = vm.create_vcpu(3, &Mode::real(0, 0)).unwrap();
    // The vCPU's own number, and that there is a hypervisor.
    let mut table = vcpu.cpuid().unwrap();
    assert_eq!(table.get(1, 0).unwrap().ebx >> 24, 3);
    assert!(table.has(Feature::HYPERVISOR));
    table.set(Feature::RDRAND, false).set(Feature::AES, false);
    let now = vcpu.set_cpuid(&table).unwrap();
    assert_eq!(now, vcpu.cpuid().unwrap());
    // Whether this host hides them or not, nothing else is lost, and what is read back is what a
    // guest sees.
    let seen = kvm.effective_cpuid(&table).unwrap();
    for feature in [Feature::RDRAND, Feature::AES] {
        assert_eq!(now.has(feature), seen.has(feature), "{}", feature.name);
    }
    let missing = supported.features_missing_in(&now);
    let missing: Vec<&str> = missing.iter().map(|f| f.name).collect();
    assert!(
        // A host whose own page tables have four levels may announce five, and then not give them.
        missing
            .iter()
            .all(|name| ["rdrand", "aes", "la57"].contains(name)),
        "{missing:?}"
    );
}

#[test]
#[ignore = "needs lab"]
fn hardware_virtualization_hides_what_is_cleared() {
    let kvm = Kvm::open().unwrap();
    let mut table = kvm.supported_cpuid().unwrap();
    assert!(table.has(Feature::SSE4_2));
    table.set(Feature::SSE4_2, false);
    let vcpu = machine().create_vcpu(0, &Mode::real(0, 0)).unwrap();
    assert!(!vcpu.set_cpuid(&table).unwrap().has(Feature::SSE4_2));
    assert!(!kvm.effective_cpuid(&table).unwrap().has(Feature::SSE4_2));
}

#[test]
#[ignore = "needs kvm"]
fn what_a_guest_sees_is_found_out_by_looking() {
    let kvm = Kvm::open().unwrap();
    let mut table = kvm.supported_cpuid().unwrap();
    table.set(Feature::RDRAND, false);
    let effective = kvm.effective_cpuid(&table).unwrap();
    assert_eq!(effective.leaves().len(), table.leaves().len());
    // The vendor is the CPU's whether or not this host hides anything.
    let vendor = |t: &CpuidTable| {
        let leaf = t.get(0, 0).unwrap();
        (leaf.ebx, leaf.ecx, leaf.edx)
    };
    assert_eq!(vendor(&effective), vendor(&table));
    // And a guest agrees: mov eax, 1; cpuid; hlt.
    let mut vcpu = real(&[0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0xf4]);
    vcpu.set_cpuid(&table).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let rdrand = vcpu.registers().unwrap().rcx >> 30 & 1 != 0;
    assert_eq!(effective.has(Feature::RDRAND), rdrand);
}

#[test]
#[ignore = "needs kvm"]
fn a_guest_gets_the_cpu_of_a_level() {
    let kvm = Kvm::open().unwrap();
    let mut table = kvm.supported_cpuid().unwrap();
    table.limit_to(CpuidLevel::V1).unwrap();
    assert_eq!(table.level(), Some(CpuidLevel::V1));
    let mut vcpu = real(&[0xf4]);
    let now = vcpu.set_cpuid(&table).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    // Whether this host hides the rest or not, what is read back is what a guest sees.
    let seen = kvm.effective_cpuid(&table).unwrap();
    for feature in [Feature::SSE3, Feature::POPCNT, Feature::CX16] {
        assert_eq!(now.has(feature), seen.has(feature), "{}", feature.name);
    }
}

#[test]
fn a_template_is_what_tables_have_in_common() {
    let mut a = CpuidTable::default();
    a.set(Feature::SSE2, true).set(Feature::AVX2, true);
    let mut b = CpuidTable::default();
    b.set(Feature::SSE2, true).set(Feature::SMEP, true);
    assert_eq!(a.features_missing_in(&b), [Feature::AVX2]);
    a.intersect(&b);
    assert!(a.has(Feature::SSE2) && !a.has(Feature::AVX2) && !a.has(Feature::SMEP));
    assert!(a.features_missing_in(&b).is_empty());
}

#[test]
#[ignore = "needs kvm"]
fn registers_by_name_come_back_and_unknown_ones_are_named() {
    let list = Kvm::open().unwrap().msr_list().unwrap();
    assert!(list.contains(&msr::STAR) && list.contains(&msr::LSTAR));
    let vcpu = long(&[0xf4]);
    vcpu.set_msrs(&[(msr::LSTAR, 0x1234_5000), (msr::KERNEL_GS_BASE, 7)])
        .unwrap();
    let values = vcpu.msrs(&[msr::KERNEL_GS_BASE, msr::LSTAR]).unwrap();
    assert_eq!(values, [7, 0x1234_5000]);
    assert!(matches!(
        vcpu.msrs(&[msr::LSTAR, 0xdead]),
        Err(Error::Msr {
            operation: "read",
            index: 0xdead
        })
    ));
    assert!(matches!(
        vcpu.set_msrs(&[(0xdead, 0)]),
        Err(Error::Msr {
            operation: "write",
            ..
        })
    ));
}

#[test]
#[ignore = "needs kvm"]
fn unknown_and_filtered_registers_are_answered_here() {
    let vm = machine();
    vm.exit_on_msrs(MsrExits::UNKNOWN | MsrExits::FILTERED)
        .unwrap();
    let star = msr::STAR..msr::STAR + 1;
    vm.filter_msrs(&MsrFilter::allow_all().deny(star, MsrAccess::WRITE))
        .unwrap();
    // mov ecx, 0xdead; rdmsr; mov ecx, STAR; wrmsr; rdmsr; hlt
    let mut code = vec![0xb9, 0xad, 0xde, 0, 0, 0x0f, 0x32, 0xb9];
    code.extend(msr::STAR.to_le_bytes());
    code.extend([0x0f, 0x30, 0x0f, 0x32, 0xf4]);
    vm.write(CODE, &code).unwrap();
    let [_, protected, _] = modes(&vm);
    let mut vcpu = vm.create_vcpu(0, &protected).unwrap();
    let Exit::MsrRead(read) = vcpu.run().unwrap() else {
        panic!("no read")
    };
    assert_eq!((read.index, read.reason), (0xdead, MsrReason::Unknown));
    vcpu.reply(read.reply(0x1_2345_6789)).unwrap();
    let Exit::MsrWrite(write) = vcpu.run().unwrap() else {
        panic!("no write")
    };
    assert_eq!(
        (write.index, write.reason),
        (msr::STAR, MsrReason::Filtered)
    );
    assert_eq!(write.value, 0x1_2345_6789);
    vcpu.reply(write.accept()).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    // The write went nowhere.
    assert_eq!(vcpu.registers().unwrap().rax, 0);
}

#[test]
#[ignore = "needs kvm"]
fn an_access_that_nobody_answers_is_a_fault() {
    let vm = machine();
    vm.exit_on_msrs(MsrExits::UNKNOWN).unwrap();
    vm.write(CODE, &[0xb9, 0xad, 0xde, 0, 0, 0x0f, 0x32, 0xf4])
        .unwrap();
    let mut vcpu = vm.create_vcpu(0, &modes(&vm)[1]).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::MsrRead(_)));
    // #GP, and no table to handle it.
    assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
}

#[test]
#[ignore = "needs kvm"]
fn what_is_not_allowed_is_denied() {
    let vm = machine();
    vm.exit_on_msrs(MsrExits::FILTERED).unwrap();
    let lstar = msr::LSTAR..msr::LSTAR + 1;
    vm.filter_msrs(&MsrFilter::deny_all().allow(lstar, MsrAccess::READ))
        .unwrap();
    // mov ecx, LSTAR; rdmsr; wrmsr; mov ecx, STAR; rdmsr; hlt
    let mut code = vec![0xb9];
    code.extend(msr::LSTAR.to_le_bytes());
    code.extend([0x0f, 0x32, 0x0f, 0x30, 0xb9]);
    code.extend(msr::STAR.to_le_bytes());
    code.extend([0x0f, 0x32, 0xf4]);
    vm.write(CODE, &code).unwrap();
    let mut vcpu = vm.create_vcpu(0, &modes(&vm)[1]).unwrap();
    vcpu.set_msrs(&[(msr::LSTAR, 0x1234_5000)]).unwrap();
    let Exit::MsrWrite(write) = vcpu.run().unwrap() else {
        panic!("no write")
    };
    assert_eq!((write.index, write.value), (msr::LSTAR, 0x1234_5000));
    vcpu.reply(write.accept()).unwrap();
    let Exit::MsrRead(read) = vcpu.run().unwrap() else {
        panic!("no read")
    };
    assert_eq!((read.index, read.reason), (msr::STAR, MsrReason::Filtered));
    vcpu.reply(read.reply(7)).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 7);
}

#[test]
#[ignore = "needs kvm"]
fn filters_that_are_too_large_are_refused_by_number() {
    let vm = machine();
    let many = |count| {
        (0..count).fold(MsrFilter::deny_all(), |filter, i| {
            filter.allow(2 * i..2 * i + 1, MsrAccess::READ)
        })
    };
    let long = |len| MsrFilter::allow_all().deny(0..len, MsrAccess::WRITE);
    vm.filter_msrs(&many(16)).unwrap();
    vm.filter_msrs(&long(12288)).unwrap();
    for (filter, expected) in [
        (
            many(17),
            "17 ranges of MSRs are too many: the kernel takes 16",
        ),
        (
            long(12289),
            "12289 MSRs in a range are too many: the kernel takes 12288",
        ),
    ] {
        let e = vm.filter_msrs(&filter).unwrap_err();
        assert!(matches!(e, Error::TooMany { .. }), "{e:?}");
        assert_eq!(e.to_string(), expected);
    }
}

/// inc eax; nop; mov [0x3000], eax; hlt, in long mode
const DEBUGGED: [u8; 11] = [0xff, 0xc0, 0x90, 0x89, 0x04, 0x25, 0, 0x30, 0, 0, 0xf4];

fn stop(vcpu: &mut Vcpu) -> (u32, u64) {
    match vcpu.run().unwrap() {
        Exit::Debug { exception, pc, .. } => (exception, pc),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs kvm"]
fn single_steps_stop_after_each_instruction() {
    let mut vcpu = long(&DEBUGGED);
    vcpu.set_single_step(true).unwrap();
    for (pc, rax) in [(2, 1), (3, 1), (10, 1)] {
        assert_eq!(stop(&mut vcpu), (1, CODE + pc));
        let regs = vcpu.registers().unwrap();
        assert_eq!((regs.rip, regs.rax), (CODE + pc, rax));
    }
    vcpu.set_single_step(false).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
}
