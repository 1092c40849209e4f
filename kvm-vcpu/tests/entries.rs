//! Boot protocols and tables leave a CPU on which guests can go on as on hardware.
#![allow(clippy::cast_possible_truncation)]

mod common;

use common::{CODE, MEMORY, TABLES, machine};
use kvm_vcpu::{
    CpuMode, DescriptorTables, Error, Exit, MapFlags, Mode, PageSize, PageTableProblem, PageTables,
    SystemRegisters, Topology, Vcpu,
};

fn port_value(vcpu: &mut Vcpu) -> u32 {
    match vcpu.run().unwrap() {
        Exit::PortOut(out) if out.port == 0x80 => out.value(),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs kvm"]
fn linux_is_entered_in_64_bits_with_segments_that_can_be_loaded() {
    const BOOT_PARAMS: u64 = 0x7000;
    let vm = machine();
    // mov ax, 0x18; mov ds, ax; mov ss, ax; mov esp, 0x6000; push 0x10; lea rax, [rip + 3]; push rax;
    // retfq; mov eax, [rsi]; out 0x80, eax; hlt
    let code = [
        0x66, 0xb8, 0x18, 0x00, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x60, 0x00, 0x00, 0x6a, 0x10,
        0x48, 0x8d, 0x05, 0x03, 0x00, 0x00, 0x00, 0x50, 0x48, 0xcb, 0x8b, 0x06, 0xe7, 0x80, 0xf4,
    ];
    vm.write(CODE, &code).unwrap();
    vm.memory().write_value(BOOT_PARAMS, 0x5347_1234).unwrap();
    let mode = Mode::linux64(vm.memory(), CODE, BOOT_PARAMS, 0x8000).unwrap();
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    assert_eq!(vcpu.mode().unwrap(), CpuMode::Long);
    assert_eq!(vcpu.registers().unwrap().rflags & 1 << 9, 0);
    assert_eq!(port_value(&mut vcpu), 0x5347_1234);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);

    // The tables are as long as they say.
    assert_eq!(
        vm.read_value::<u64>(0x8000 + Mode::LINUX64_TABLES).unwrap(),
        0
    );
    for (entry, boot_params, tables) in [
        (4 << 30, 0, 0x8000),
        (0, 4 << 30, 0x8000),
        (0, 0, MEMORY - 0x1000),
        (0, 0, 0x8001),
    ] {
        let e = Mode::linux64(vm.memory(), entry, boot_params, tables).unwrap_err();
        assert!(
            matches!(e, Error::PageTable { .. } | Error::OutOfBounds { .. }),
            "{e}"
        );
    }
}

#[test]
#[ignore = "needs kvm"]
fn pvh_and_multiboot_are_entered_in_32_bits_without_paging() {
    let vm = machine();
    // xchg eax, ebx; out 0x80, eax; mov eax, cr0; out 0x80, eax; xchg eax, ebx; hlt
    let code = [0x93, 0xe7, 0x80, 0x0f, 0x20, 0xc0, 0xe7, 0x80, 0x93, 0xf4];
    vm.write(CODE, &code).unwrap();
    for (id, mode, magic) in [
        (0, Mode::pvh(CODE as u32, 0x9000), 0),
        (1, Mode::multiboot(CODE as u32, 0x9000), 0x2bad_b002),
    ] {
        let mut vcpu = vm.create_vcpu(id, &mode).unwrap();
        assert_eq!(vcpu.mode().unwrap(), CpuMode::Protected32);
        assert_eq!(port_value(&mut vcpu), 0x9000);
        // PE set, PG and WP clear; ET may read as either.
        assert_eq!(port_value(&mut vcpu) & !(1 << 4), 1);
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        assert_eq!(vcpu.registers().unwrap().rax, magic);
        let sregs = vcpu.system_registers().unwrap();
        assert_eq!((sregs.cr4, sregs.efer), (0, 0));
    }
}

/// Memory mapped to itself for everybody, and the tables at 0x8000.
fn with_tables(code: &[u8], tables: &DescriptorTables) -> Vcpu {
    let vm = machine();
    vm.write(CODE, code).unwrap();
    // hlt, the handler
    vm.write(0x2000, &[0xf4]).unwrap();
    let mut pages = PageTables::new(TABLES, 0x8000);
    let all = MapFlags::WRITE | MapFlags::USER;
    pages.map(0, 0, MEMORY, PageSize::Large, all).unwrap();
    let root = pages.install(vm.memory()).unwrap();
    let mode = Mode::long(CODE, root).with_descriptors(tables.install(vm.memory()).unwrap());
    vm.create_vcpu(0, &mode).unwrap()
}

#[test]
#[ignore = "needs kvm"]
fn exceptions_are_handled_on_their_own_stacks() {
    let tables = DescriptorTables::new(0x8000).handle_on(14, 0x2000, 0x7000);
    // mov al, [0x600000], which is not mapped
    let mut vcpu = with_tables(&[0x8a, 0x04, 0x25, 0, 0, 0x60, 0], &tables);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    // ss, rsp, rflags, cs, rip and the error code.
    assert_eq!(vcpu.registers().unwrap().rsp, 0x7000 - 48);
    assert_eq!(vcpu.system_registers().unwrap().cr2, 0x60_0000);
    let return_to: u64 = vcpu.memory().read_value(0x7000 - 40).unwrap();
    assert_eq!(return_to, CODE);

    let eight = (0..8).fold(DescriptorTables::new(0), |t, i| t.handle_on(i, 0, i.into()));
    let memory = vcpu.memory();
    assert!(matches!(
        eight.install(memory),
        Err(Error::TooMany { given: 8, .. })
    ));
}

// A host that emulates privileged code may not deliver what level 3 raises.
#[test]
#[ignore = "needs lab"]
fn programs_of_level_3_reach_the_kernel_on_its_stack() {
    // push 0x1b; push 0x9000; push 2; push 0x23; push 0x1100; iretq
    let mut code = vec![0x6a, 0x1b, 0x68, 0x00, 0x90, 0, 0, 0x6a, 0x02, 0x6a, 0x23];
    code.extend([0x68, 0x00, 0x11, 0, 0, 0x48, 0xcf]);
    code.resize(0x100, 0);
    // int 0x40, in level 3
    code.extend([0xcd, 0x40]);
    let tables = DescriptorTables::new(0x8000)
        .kernel_stack(0x6000)
        .handle(0x40, 0x2000);
    let mut allowed = with_tables(&code, &tables.clone().allow_user(0x40));
    assert_eq!(allowed.run().unwrap(), Exit::Halt);
    assert_eq!(allowed.registers().unwrap().rsp, 0x6000 - 40);
    let from: u64 = allowed.memory().read_value(0x6000 - 32).unwrap();
    assert_eq!(from, 0x23);
    // Otherwise it is a #GP, which nobody handles.
    assert_eq!(with_tables(&code, &tables).run().unwrap(), Exit::Shutdown);
}

#[test]
#[ignore = "needs kvm"]
fn a_stack_that_overflows_meets_its_guard_page() {
    const TOP: u64 = PageTables::HIGHER_HALF + 0x4000_3000;
    let vm = machine();
    // push rax; jmp back
    vm.write(CODE, &[0x50, 0xeb, 0xfd]).unwrap();
    vm.write(0x2000, &[0xf4]).unwrap();
    let mut pages = PageTables::new(TABLES, 0x1_0000);
    pages.identity(MEMORY).unwrap();
    pages.higher_half(MEMORY).unwrap();
    pages.guard(TOP - 0x2000).unwrap();
    let flags = MapFlags::WRITE | MapFlags::NO_EXECUTE;
    let refused = pages.map(TOP - 0x2000, 0, 0x1000, PageSize::Small, flags);
    assert!(matches!(
        refused,
        Err(Error::PageTable {
            problem: PageTableProblem::Guarded,
            ..
        })
    ));
    pages
        .map(TOP - 0x1000, 0x3000, 0x1000, PageSize::Small, flags)
        .unwrap();
    assert_eq!(pages.walk(TOP - 0x1001), None);
    let upper = pages.walk(PageTables::HIGHER_HALF + 0x5123).unwrap();
    assert_eq!((upper.physical, upper.flags), (0x5123, flags));
    let root = pages.install(vm.memory()).unwrap();
    let tables = DescriptorTables::new(0x8000).handle_on(14, 0x2000, 0x7000);
    let mode = Mode::long(CODE, root)
        .with_stack(TOP)
        .with_descriptors(tables.install(vm.memory()).unwrap());
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.system_registers().unwrap().cr2, TOP - 0x1008);
}

#[test]
#[ignore = "needs kvm"]
fn pages_allow_what_they_say() {
    const ELSEWHERE: u64 = 0x4000_0000;
    let vm = machine();
    // mov [rdi], al; jmp rdi
    vm.write(CODE, &[0x88, 0x07, 0xff, 0xe7]).unwrap();
    // hlt, the handler, and at 0x3000 where the pages elsewhere lead
    vm.write(0x2000, &[0xf4]).unwrap();
    vm.write(0x3000, &[0xf4]).unwrap();
    let mut pages = PageTables::new(TABLES, 0x8000);
    pages.identity(MEMORY).unwrap();
    let flags = [
        MapFlags::WRITE,
        MapFlags::empty(),
        MapFlags::WRITE | MapFlags::NO_EXECUTE,
    ];
    for (at, flags) in (ELSEWHERE..).step_by(0x1000).zip(flags) {
        pages
            .map(at, 0x3000, 0x1000, PageSize::Small, flags)
            .unwrap();
    }
    let root = pages.install(vm.memory()).unwrap();
    let tables = DescriptorTables::new(0x8000).handle_on(14, 0x2000, 0x7000);
    let tables = tables.install(vm.memory()).unwrap();
    let mode = Mode::long(CODE, root).with_descriptors(tables);
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    // Present, and a write or the fetch of an instruction.
    for (page, fault) in [(0, None), (1, Some(0b11)), (2, Some(0b1_0001))] {
        vcpu.set_mode(&mode).unwrap();
        let mut regs = vcpu.registers().unwrap();
        regs.rdi = ELSEWHERE + page * 0x1000;
        regs.rax = 0xf4;
        vcpu.set_registers(&regs).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        let there = vcpu.registers().unwrap().rip;
        match fault {
            None => assert_eq!(there, regs.rdi + 1),
            Some(fault) => {
                assert_eq!(there, 0x2001);
                assert_eq!(vm.read_value::<u64>(0x7000 - 48).unwrap(), fault);
                assert_eq!(vcpu.system_registers().unwrap().cr2, regs.rdi);
            }
        }
    }
}

#[test]
#[ignore = "needs kvm"]
fn a_reset_leaves_nothing_of_the_mode_before() {
    let mut pages = PageTables::new(TABLES, 0x8000);
    pages.identity(MEMORY).unwrap();
    let vm = machine();
    let tables = DescriptorTables::new(0x8000).install(vm.memory()).unwrap();
    let mode = Mode::long(CODE, pages.install(vm.memory()).unwrap()).with_descriptors(tables);
    let vcpu = vm.create_vcpu(0, &Mode::Reset).unwrap();
    let expected = vcpu.system_registers().unwrap();
    vcpu.set_mode(&mode).unwrap();
    let mut sregs = vcpu.system_registers().unwrap();
    (sregs.cr2, sregs.cr8) = (0x1234, 5);
    vcpu.set_system_registers(&sregs).unwrap();
    vcpu.set_mode(&Mode::Reset).unwrap();
    let found = vcpu.system_registers().unwrap();
    // Whether a segment was accessed, and how wide the task state is, Intel's and AMD's virtualization
    // tell differently.
    let without_kinds = |mut s: SystemRegisters| {
        let data = [&mut s.ds, &mut s.es, &mut s.fs, &mut s.gs, &mut s.ss];
        let others = [&mut s.cs, &mut s.tr, &mut s.ldt];
        for segment in data.into_iter().chain(others) {
            segment.kind = 0;
        }
        s
    };
    assert_eq!(without_kinds(found), without_kinds(expected));
    assert_eq!(vcpu.registers().unwrap().rip, 0xfff0);
}

#[test]
#[ignore = "needs kvm"]
fn vcpus_are_told_their_place_among_the_others() {
    let vm = machine();
    let topology = Topology {
        threads_per_core: 2,
        cores_per_package: 2,
    };
    for index in 0..4 {
        let id = topology.apic_id(index);
        let table = vm.cpuid_for(id).with_topology(id, topology);
        let vcpu = vm.create_vcpu(id, &Mode::real(0, 0)).unwrap();
        let now = vcpu.set_cpuid(&table).unwrap();
        assert_eq!(now.get(1, 0).unwrap().ebx >> 24, id);
        assert_eq!(now.get(1, 0).unwrap().ebx >> 16 & 0xff, 4);
        if now.get(0, 0).unwrap().eax >= 0xb {
            let (smt, core) = (now.get(0xb, 0).unwrap(), now.get(0xb, 1).unwrap());
            assert_eq!((smt.eax, smt.ebx, smt.ecx >> 8), (1, 2, 1));
            assert_eq!((core.eax, core.ebx, core.ecx >> 8), (2, 4, 2));
            assert_eq!((smt.edx, core.edx), (id, id));
            assert_eq!(now.get(0xb, 2).unwrap().ecx >> 8, 0);
        }
    }
}
