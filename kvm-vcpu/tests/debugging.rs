//! Guests stop where they are told to, and say where they ended.
#![allow(clippy::cast_possible_truncation)]

mod common;

use common::{CODE, TABLES, long, machine, modes, real};
use kvm_vcpu::{
    Breakpoints, CpuMode, Debugging, DescriptorTables, Error, Exit, Kvm, Mode, PageTables, Watch,
};

/// mov eax, 5; mov [0x3000], eax; inc eax; mov [0x3008], eax; hlt, in long mode
const GUEST: [u8; 22] = [
    0xb8, 5, 0, 0, 0, 0x89, 0x04, 0x25, 0, 0x30, 0, 0, 0xff, 0xc0, 0x89, 0x04, 0x25, 8, 0x30, 0, 0,
    0xf4,
];

#[test]
#[ignore = "needs kvm"]
fn the_instruction_under_a_software_breakpoint_is_not_executed() {
    let vm = machine();
    vm.write(CODE, &GUEST).unwrap();
    // hlt, where a guest comes whose `int3` the CPU does not pass on
    vm.write(0x2000, &[0xf4]).unwrap();
    let descriptors = DescriptorTables::new(0x8000).handle(3, 0x2000);
    let descriptors = descriptors.install(vm.memory()).unwrap();
    let [_, _, mode] = modes(&vm);
    let mode = mode.with_descriptors(descriptors);
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    let memory = vcpu.memory().clone();
    vcpu.set_debugging(&Debugging::default().software_breakpoints(true))
        .unwrap();
    let mut breakpoints = Breakpoints::default();
    let physical = vcpu.translate(CODE + 12).unwrap().unwrap();
    assert_eq!(physical, CODE + 12);
    assert!(breakpoints.insert(&memory, physical).unwrap());
    assert!(!breakpoints.insert(&memory, physical).unwrap());
    assert_eq!(memory.read_value::<u8>(physical).unwrap(), 0xcc);

    let effective = Kvm::open().unwrap().effective_debugging().unwrap();
    match vcpu.run().unwrap() {
        Exit::Debug { exception, pc, .. } if effective.software_breakpoints => {
            assert_eq!((exception, pc), (3, CODE + 12));
            assert_eq!(vcpu.registers().unwrap().rip, CODE + 12);
        }
        // A CPU in software lets the guest have it.
        Exit::Halt if !effective.software_breakpoints => {
            assert_eq!(vcpu.registers().unwrap().rip, 0x2001);
        }
        other => panic!("{other:?}, although {effective:?}"),
    }
    assert_eq!(vcpu.registers().unwrap().rax, 5);
    assert!(breakpoints.remove(&memory, physical).unwrap());
    assert!(!breakpoints.remove(&memory, physical).unwrap());
    vcpu.set_mode(&mode).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 6);
    assert!(breakpoints.insert(&memory, u64::MAX).is_err());
    assert_eq!(breakpoints.iter().count(), 0);
    assert_eq!(vcpu.translate(0x6000_0000).unwrap(), None);
}

#[test]
#[ignore = "needs kvm"]
fn hardware_breakpoints_stop_where_they_are_or_not_at_all() {
    let mut vcpu = long(&GUEST);
    let watch = Debugging::default().watch(0x3008, 4, Watch::Write);
    vcpu.set_debugging(&watch.clone().breakpoint(CODE + 5))
        .unwrap();
    let mut stops = Vec::new();
    while let Exit::Debug { pc, dr6, .. } = vcpu.run().unwrap() {
        stops.push((pc, dr6 & 0xf));
        vcpu.set_debugging(&watch).unwrap();
    }
    assert_eq!(vcpu.registers().unwrap().rax, 6);
    // A watchpoint stops after the access.
    let effective = Kvm::open().unwrap().effective_debugging().unwrap();
    let mut expected = Vec::new();
    expected.extend(effective.breakpoints.then_some((CODE + 5, 2)));
    expected.extend(effective.watchpoints.then_some((CODE + 21, 1)));
    assert_eq!(stops, expected, "{effective:?}");
}

#[test]
#[ignore = "needs kvm"]
fn what_stops_a_guest_here_is_found_out() {
    let kvm = Kvm::open().unwrap();
    let effective = kvm.effective_debugging().unwrap();
    assert_eq!(kvm.effective_debugging().unwrap(), effective);
    println!("{effective:?}");
    assert!(effective.single_step);
    // An `int3` that nobody asked to stop at is the guest's: without a table, its end.
    let mut vcpu = long(&[0xcc]);
    assert!(!matches!(vcpu.run().unwrap(), Exit::Debug { .. }));
}

#[test]
#[ignore = "needs kvm"]
fn watchpoints_that_cannot_be_are_refused() {
    let vcpu = long(&GUEST);
    let watch = |address, len| Debugging::default().watch(address, len, Watch::Access);
    for (address, len) in [(0x3001, 2), (0x3000, 3), (0x3004, 8), (0, 0)] {
        let e = vcpu.set_debugging(&watch(address, len)).unwrap_err();
        assert!(matches!(e, Error::Watchpoint { .. }), "{e}");
    }
    let five = (0..5).fold(Debugging::default(), Debugging::breakpoint);
    assert!(matches!(
        vcpu.set_debugging(&five),
        Err(Error::TooMany { given: 5, .. })
    ));
}

#[test]
#[ignore = "needs kvm"]
fn an_exception_that_is_injected_is_taken() {
    let vm = machine();
    // jmp $, and at 0x2000 the handler: pop rax; hlt
    vm.write(CODE, &[0xeb, 0xfe]).unwrap();
    vm.write(0x2000, &[0x58, 0xf4]).unwrap();
    let mut tables = PageTables::new(TABLES, 0x8000);
    tables.identity(common::MEMORY).unwrap();
    let root = tables.install(vm.memory()).unwrap();
    let descriptors = DescriptorTables::new(0x8000).handle(13, 0x2000);
    let mode = Mode::long(CODE, root).with_descriptors(descriptors.install(vm.memory()).unwrap());
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    vcpu.inject_exception(13, Some(0x42)).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 0x42);
}

#[test]
#[ignore = "needs kvm"]
fn a_triple_fault_leaves_a_report() {
    // mov al, [rdi], of memory that is not mapped, without a table of interrupts
    let mut vcpu = long(&[0x8a, 0x07, 0xf4]);
    let mut regs = vcpu.registers().unwrap();
    regs.rdi = 0xffff_8000_1234_5678;
    vcpu.set_registers(&regs).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
    let report = vcpu.crash_report().unwrap();
    let text = report.to_string();
    match report.mode {
        CpuMode::Long => {
            assert_eq!((report.pc, report.registers.rdi), (CODE, regs.rdi));
            assert_eq!(report.code[..3], [0x8a, 0x07, 0xf4]);
            assert_eq!(report.fault.unwrap().virt, regs.rdi);
            assert!(text.contains("page walk of 0xffff800012345678:"), "{text}");
        }
        // AMD's virtualization resets the CPU.
        CpuMode::Real => {
            assert_eq!((report.pc, report.fault), (0xffff_fff0, None));
            assert!(text.starts_with("real mode at f000:fff0"), "{text}");
        }
        other => panic!("{other}: {text}"),
    }
}

#[test]
#[ignore = "needs kvm"]
fn a_guest_says_where_it_is_and_what_faulted() {
    let vm = machine();
    // mov al, [rdi]; hlt
    vm.write(CODE, &[0x8a, 0x07, 0xf4]).unwrap();
    let [_, _, mode] = modes(&vm);
    let vcpu = vm.create_vcpu(0, &mode).unwrap();
    let mut sregs = vcpu.system_registers().unwrap();
    sregs.cr2 = 0xffff_8000_1234_5678;
    vcpu.set_system_registers(&sregs).unwrap();
    let report = vcpu.crash_report().unwrap();
    assert_eq!((report.mode, report.pc), (CpuMode::Long, CODE));
    assert_eq!(report.code[..3], [0x8a, 0x07, 0xf4]);
    let walk = report.fault.as_ref().unwrap();
    assert_eq!((walk.virt, walk.translation), (sregs.cr2, None));
    assert_eq!(walk.steps.len(), 1);
    assert_eq!(walk.steps[0].address, TABLES + 256 * 8);
    let text = report.to_string();
    for part in [
        "64-bit long mode at 0008:1000",
        "code at 0x1000: 8a 07 f4",
        "page walk of 0xffff800012345678:\n  level 4 at 0x00100800: 0x0000000000000000, not present\n  not mapped",
    ] {
        assert!(text.contains(part), "{text}");
    }
    #[cfg(feature = "disassemble")]
    assert!(
        text.contains("0x1000: mov al,[rdi]\n  0x1002: hlt"),
        "{text}"
    );
    let there = vcpu.page_walk(CODE + 1).unwrap().unwrap();
    assert_eq!(there.translation.unwrap().physical, CODE + 1);
    assert_eq!(there.steps.len(), 3);

    // Real mode has no page tables, and the code's address counts from its segment.
    let vcpu = real(&[0xf4]);
    let report = vcpu.crash_report().unwrap();
    assert_eq!((report.mode, report.fault.is_none()), (CpuMode::Real, true));
    assert_eq!(report.code[0], 0xf4);
}
