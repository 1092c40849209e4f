//! What else the kernel offers: capabilities, clocks, statistics, collected writes, more registers.
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::time::{Duration, Instant, SystemTime};

use common::{CODE, MEMORY, long, machine, modes, real};
use kvm_vcpu::{
    Capability, Error, Exit, IdleInstructions, IoAddress, Kvm, Mode, StatisticKind, Vm,
};

#[test]
#[ignore = "needs kvm"]
fn capabilities_are_probed_by_name() {
    let kvm = Kvm::open().unwrap();
    assert!(kvm.has(Capability::IrqChip) && kvm.has(Capability::Ioeventfd));
    let all = kvm.capabilities();
    assert!(all.len() > 10, "{all:?}");
    for capability in all {
        assert!(kvm.extent(capability) > 0);
        assert!(capability.name().starts_with("KVM_CAP_"));
    }
}

#[test]
#[ignore = "needs kvm"]
fn the_clock_goes_on_from_where_it_is_set() {
    let vm = machine();
    let hour = Duration::from_hours(1);
    vm.set_clock(hour).unwrap();
    let (first, second) = (vm.clock().unwrap(), vm.clock().unwrap());
    assert!(first.elapsed >= hour && second.elapsed >= first.elapsed);
    assert!(second.elapsed < hour + Duration::from_mins(5));
    // Which kernels before 5.16 do not tell.
    if let Some(told) = first.host_time {
        let ago = SystemTime::now().duration_since(told).unwrap();
        assert!(ago < Duration::from_mins(5), "{ago:?}");
    }
    let vcpu = vm.create_vcpu(0, &Mode::real(0, 0)).unwrap();
    // It uses no clock of the kernel's, so there is nobody to tell.
    assert!(!vcpu.note_pause().unwrap());
    assert!(vcpu.tsc_khz().unwrap() > 1000);
}

#[test]
#[ignore = "needs kvm"]
fn the_kernel_counts_exits() {
    // out 0x80, al; jmp back
    let mut vcpu = real(&[0xe6, 0x80, 0xeb, 0xfc]);
    let statistics = vcpu.statistics().unwrap();
    let exits = || statistics.get("exits").unwrap().unwrap();
    let before = exits();
    for _ in 0..10 {
        assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
    }
    assert!(exits() >= before + 10, "{} {before}", exits());
    let all = statistics.read().unwrap();
    let exits = all.iter().find(|s| s.name == "exits").unwrap();
    assert_eq!(exits.kind, StatisticKind::Cumulative);
    assert!(
        all.iter()
            .all(|s| !s.name.is_empty() && !s.values.is_empty())
    );
    assert_eq!(statistics.get("no_such_thing").unwrap(), None);
    assert!(!machine().statistics().unwrap().read().unwrap().is_empty());
}

#[test]
#[ignore = "needs kvm"]
fn writes_are_collected_without_an_exit() {
    let vm = machine();
    let device = MEMORY + 0x1000;
    vm.coalesce(IoAddress::Memory(device), 0x100).unwrap();
    vm.coalesce(IoAddress::Port(0x60), 1).unwrap();
    // mov eax, 0x201000; mov byte [eax], 1; mov dword [eax + 4], 0x12345678; out 0x60, al; hlt, in
    // protected mode
    let mut code = vec![0xb8, 0x00, 0x10, 0x20, 0x00, 0xc6, 0x00, 1];
    code.extend([0xc7, 0x40, 4, 0x78, 0x56, 0x34, 0x12, 0xe6, 0x60, 0xf4]);
    vm.write(CODE, &code).unwrap();
    let mode = Mode::protected(CODE as u32);
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let writes = vcpu.take_coalesced().unwrap();
    match &writes[..] {
        [Exit::MmioWrite(a), Exit::MmioWrite(b), Exit::PortOut(c)] => {
            assert_eq!((a.address, a.data()), (device, &[1][..]));
            assert_eq!((b.address, b.value()), (device + 4, 0x1234_5678));
            assert_eq!((c.port, c.data()), (0x60, &[0][..]));
        }
        other => panic!("{other:?}"),
    }
    assert!(vcpu.take_coalesced().unwrap().is_empty());
    vm.do_not_coalesce(IoAddress::Memory(device), 0x100)
        .unwrap();
    vcpu.set_mode(&mode).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::MmioWrite(_)));
}

#[test]
#[ignore = "needs kvm"]
fn floating_point_and_debug_registers_come_back_as_they_were_set() {
    // movaps xmm1, xmm2; hlt
    let mut vcpu = long(&[0x0f, 0x28, 0xca, 0xf4]);
    let mut fpu = vcpu.fpu_registers().unwrap();
    fpu.xmm[2] = 0x0123_4567_89ab_cdef_1122_3344_5566_7788;
    fpu.control = 0x27f;
    fpu.mxcsr = 0x1f80;
    vcpu.set_fpu_registers(&fpu).unwrap();
    assert_eq!(vcpu.fpu_registers().unwrap(), fpu);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let after = vcpu.fpu_registers().unwrap();
    assert_eq!(after.xmm[1], fpu.xmm[2]);
    // Where `xsave` keeps the second vector register.
    let xsave = vcpu.xsave().unwrap();
    assert_eq!(xsave[160 + 16..160 + 32], fpu.xmm[2].to_le_bytes());

    let mut debug = vcpu.debug_registers().unwrap();
    debug.addresses = [1, 2, 3, 4 << 30];
    debug.control |= 1;
    vcpu.set_debug_registers(&debug).unwrap();
    assert_eq!(vcpu.debug_registers().unwrap(), debug);

    vcpu.set_xcr0(3).unwrap();
    assert_eq!(vcpu.xcr0().unwrap(), 3);
}

// A KVM that emulates the guest's privileged code has no hypercalls of KVM's.
#[test]
#[ignore = "needs lab"]
fn hypercalls_come_to_user_space_when_asked_for() {
    let vm = machine();
    // mov eax, KVM_HC_MAP_GPA_RANGE; mov ebx, 0x1000; mov ecx, 1; mov edx, 0; vmcall; out 0x80, al; which
    // the kernel makes vmmcall where the CPU has that.
    let code = [
        0xb8, 12, 0, 0, 0, 0xbb, 0, 0x10, 0, 0, 0xb9, 1, 0, 0, 0, 0xba, 0, 0, 0, 0, 0x0f, 0x01,
        0xc1, 0xe6, 0x80,
    ];
    vm.write(CODE, &code).unwrap();
    let [_, _, mode] = modes(&vm);
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    vm.exit_on_hypercalls().unwrap();
    let exit = vcpu.run().unwrap();
    let Exit::Hypercall(call) = exit else {
        panic!("{exit:?}")
    };
    assert_eq!((call.number, &call.args[..3]), (12, &[0x1000, 1, 0][..]));
    vcpu.reply(call.reply(0x42)).unwrap();
    let exit = vcpu.run().unwrap();
    assert!(
        matches!(&exit, Exit::PortOut(out) if out.data() == [0x42]),
        "{exit:?}"
    );
}

#[test]
#[ignore = "needs kvm"]
fn exits_that_must_be_asked_for_are_there_or_named() {
    type Ask = fn(&Vm) -> Result<(), Error>;
    let kvm = Kvm::open().unwrap();
    let all: [(Capability, Ask); 3] = [
        (Capability::BusLockExit, Vm::exit_on_bus_locks),
        (Capability::NotifyExit, |vm| {
            vm.exit_on_shut_windows(1 << 20)
        }),
        (Capability::DisableExits, |vm| {
            vm.wait_in_guest(IdleInstructions::PAUSE)
        }),
    ];
    for (capability, ask) in all {
        let vm = machine();
        match ask(&vm) {
            Ok(()) => assert!(kvm.has(capability)),
            Err(Error::Unsupported {
                capability: named, ..
            }) => {
                assert!(!kvm.has(capability) && named.starts_with(capability.name()));
            }
            Err(e) => panic!("{e}"),
        }
        let _vcpu = vm.create_vcpu(0, &Mode::Reset).unwrap();
        assert!(matches!(ask(&vm), Err(Error::Order { .. })));
    }
}

// A KVM that emulates `hlt` waits for ever with it.
#[test]
#[ignore = "needs lab"]
fn a_guest_that_waits_by_itself_does_not_exit() {
    let kvm = Kvm::open().unwrap();
    for (wait, halts) in [
        (IdleInstructions::HLT, false),
        (IdleInstructions::empty(), true),
    ] {
        let vm = machine();
        vm.write(CODE, &[0xf4]).unwrap();
        match vm.wait_in_guest(wait) {
            Ok(()) => {}
            Err(Error::Unsupported { .. }) if kvm.extent(Capability::DisableExits) & 2 == 0 => {
                continue;
            }
            Err(e) => panic!("{e}"),
        }
        let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
        let exit = vcpu
            .run_until(Instant::now() + Duration::from_millis(200))
            .unwrap();
        assert_eq!(exit, if halts { Exit::Halt } else { Exit::TimedOut });
    }
}

#[test]
#[ignore = "needs kvm"]
fn the_counter_runs_as_fast_as_it_is_told() {
    let vm = machine();
    let vcpu = vm.create_vcpu(0, &Mode::Reset).unwrap();
    let own = vcpu.tsc_khz().unwrap();
    vcpu.set_tsc_khz(own).unwrap();
    assert_eq!(vcpu.tsc_khz().unwrap(), own);
    let can = Kvm::open().unwrap().has(Capability::TscControl);
    match vcpu.set_tsc_khz(own / 2) {
        Ok(()) => assert_eq!((can, vcpu.tsc_khz().unwrap()), (true, own / 2)),
        Err(e) => {
            assert!(!can && matches!(e, Error::Unsupported { .. }), "{e}");
            assert_eq!(vcpu.tsc_khz().unwrap(), own);
        }
    }
}
