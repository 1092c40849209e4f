//! Every exit carries what the kernel knows, and answers reach the guest.
#![allow(clippy::cast_possible_truncation)]

mod common;

use common::{CODE, long, machine, modes, real};
use kvm_vcpu::{CpuMode, Error, Exit, InternalError, Kvm, Mode, Region};

#[test]
#[ignore = "needs kvm"]
fn each_mode_runs_and_is_told_apart() {
    let vm = machine();
    // mov al, 42; out 0x80, al; hlt: the same bytes in all modes
    vm.write(CODE, &[0xb0, 42, 0xe6, 0x80, 0xf4]).unwrap();
    let expected = [CpuMode::Real, CpuMode::Protected32, CpuMode::Long];
    for ((mode, cpu_mode), id) in modes(&vm).iter().zip(expected).zip(0..) {
        let mut vcpu = vm.create_vcpu(id, mode).unwrap();
        match vcpu.run().unwrap() {
            Exit::PortOut(out) => {
                assert_eq!((out.port, out.size, out.data()), (0x80, 1, &[42][..]));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        assert_eq!(vcpu.mode().unwrap(), cpu_mode);
        assert_eq!(vcpu.registers().unwrap().rip, CODE + 5);
    }
}

#[test]
#[ignore = "needs kvm"]
fn real_mode_starts_at_segment_and_offset() {
    let vm = machine();
    // mov ax, cs; out 0x80, ax; push ax; hlt, at 1234:0010
    vm.write(0x12350, &[0x8c, 0xc8, 0xe7, 0x80, 0x50, 0xf4])
        .unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0x1234, 0x10)).unwrap();
    match vcpu.run().unwrap() {
        Exit::PortOut(out) => assert_eq!((out.size, out.value()), (2, 0x1234)),
        other => panic!("{other:?}"),
    }
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vm.read_value::<u16>(0x1234e).unwrap(), 0x1234);
}

#[test]
#[ignore = "needs kvm"]
fn a_port_read_is_answered_once_and_in_time() {
    // in eax, 0x40; in al, 0x41; hlt
    let mut vcpu = real(&[0x66, 0xe5, 0x40, 0xe4, 0x41, 0xf4]);
    let Exit::PortIn(first) = vcpu.run().unwrap() else {
        panic!("no read")
    };
    assert_eq!((first.port, first.size, first.count), (0x40, 4, 1));
    assert!(matches!(
        vcpu.reply(first.reply_bytes(&[1])),
        Err(Error::ReplyLength {
            expected: 4,
            given: 1
        })
    ));
    // The vCPU can be used while the exit is open.
    assert_eq!(vcpu.registers().unwrap().rip & !7, CODE);
    vcpu.reply(first.reply(0x1234_5678)).unwrap();
    assert!(matches!(vcpu.reply(first.reply(1)), Err(Error::StaleReply)));
    let Exit::PortIn(second) = vcpu.run().unwrap() else {
        panic!("no read")
    };
    assert_eq!(vcpu.registers().unwrap().rax, 0x1234_5678);
    assert!(matches!(vcpu.reply(first.reply(1)), Err(Error::StaleReply)));
    // Nobody answers the second: an empty bus.
    assert_eq!(second.port, 0x41);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 0x1234_56ff);
}

#[test]
#[ignore = "needs kvm"]
fn a_reply_to_another_vcpu_is_stale() {
    let code = [0xe4, 0x41, 0xf4];
    let (mut a, mut b) = (real(&code), real(&code));
    let (Exit::PortIn(read), Exit::PortIn(_)) = (a.run().unwrap(), b.run().unwrap()) else {
        panic!("no reads")
    };
    assert!(matches!(b.reply(read.reply(1)), Err(Error::StaleReply)));
    a.reply(read.reply(1)).unwrap();
}

#[test]
#[ignore = "needs kvm"]
fn string_instructions_move_many_bytes() {
    // mov cx, 600; mov si, 0x2000; mov dx, 0x3f8; rep outsb; mov cx, 600; mov di, 0x3000; rep insb; hlt
    let mut code = vec![0xb9, 0x58, 0x02, 0xbe, 0x00, 0x20, 0xba, 0xf8, 0x03];
    code.extend([0xf3, 0x6e, 0xb9, 0x58, 0x02, 0xbf, 0x00, 0x30, 0xf3, 0x6c]);
    code.push(0xf4);
    let mut vcpu = real(&code);
    let text: Vec<u8> = (0..600u32).map(|i| (i * 7) as u8).collect();
    vcpu.memory().write(0x2000, &text).unwrap();
    let mut out = Vec::new();
    let mut sent = 0;
    loop {
        match vcpu.run().unwrap() {
            Exit::PortOut(port) => out.extend_from_slice(port.data()),
            Exit::PortIn(read) => {
                let end = sent + read.len();
                vcpu.reply(read.reply_bytes(&text[sent..end])).unwrap();
                sent = end;
            }
            Exit::Halt => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(out, text);
    assert_eq!(sent, 600);
    let mut back = vec![0; 600];
    vcpu.memory().read(0x3000, &mut back).unwrap();
    assert_eq!(back, text);
}

#[test]
#[ignore = "needs kvm"]
fn memory_that_is_not_there_is_a_bus() {
    let vm = Kvm::open()
        .unwrap()
        .create_vm(&[Region::anonymous(0, 0x10_000)])
        .unwrap();
    // mov eax, [0x100000]; mov [0x100004], ax; mov al, [0x100008]; hlt, in protected mode
    let mut code = vec![0xa1, 0, 0, 0x10, 0, 0x66, 0xa3, 4, 0, 0x10, 0];
    code.extend([0xa0, 8, 0, 0x10, 0, 0xf4]);
    vm.write(CODE, &code).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::protected(CODE as u32)).unwrap();
    let Exit::MmioRead(read) = vcpu.run().unwrap() else {
        panic!("no read")
    };
    assert_eq!((read.address, read.size), (0x10_0000, 4));
    vcpu.reply(read.reply(0xdead_beef)).unwrap();
    let Exit::MmioWrite(write) = vcpu.run().unwrap() else {
        panic!("no write")
    };
    assert_eq!((write.address, write.value()), (0x10_0004, 0xbeef));
    assert_eq!(write.data(), [0xef, 0xbe]);
    let Exit::MmioRead(read) = vcpu.run().unwrap() else {
        panic!("no read")
    };
    assert_eq!(read.size, 1);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 0xdead_beff);
}

#[test]
#[ignore = "needs kvm"]
fn a_triple_fault_is_a_shutdown() {
    // ud2, without an interrupt table
    let mut vcpu = long(&[0x0f, 0x0b]);
    assert_eq!(vcpu.run().unwrap(), Exit::Shutdown);
}

#[test]
#[ignore = "needs kvm"]
fn an_instruction_that_cannot_be_emulated_shows_its_bytes() {
    // Code where no memory is has to be fetched and emulated, which KVM refuses.
    let vm = Kvm::open()
        .unwrap()
        .create_vm(&[Region::anonymous(0, 0x10_000)])
        .unwrap();
    // movups xmm0, [0x100000] is MMIO that is emulated; vaddps ymm0, ymm0, [0x100000] is not.
    let code = [0xc5, 0xfc, 0x58, 0x05, 0x00, 0x00, 0x10, 0x00, 0xf4];
    vm.write(CODE, &code).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::protected(CODE as u32)).unwrap();
    let mut sregs = vcpu.system_registers().unwrap();
    // SSE and AVX on.
    sregs.cr4 |= 1 << 9 | 1 << 18;
    vcpu.set_system_registers(&sregs).unwrap();
    vcpu.set_xcr0(7).unwrap();
    match vcpu.run().unwrap() {
        Exit::InternalError(InternalError::Emulation(failure)) => {
            assert!(failure.instruction().starts_with(&code[..8]), "{failure}");
            assert!(failure.to_string().contains("c5 fc 58 05"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(vcpu.registers().unwrap().rip, CODE);
}

#[test]
#[ignore = "needs kvm"]
fn memory_outlives_the_machine_as_long_as_a_vcpu_runs() {
    let vm = machine();
    let memory = vm.memory().clone();
    // inc word [0x2000]; hlt
    vm.write(CODE, &[0xff, 0x06, 0x00, 0x20, 0xf4]).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    drop(vm);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    drop(vcpu);
    assert_eq!(memory.read_value::<u16>(0x2000).unwrap(), 1);
}
