//! Interrupts reach the guest from every side, and its writes reach eventfds.
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::{CODE, machine};
use kvm_vcpu::{Error, Exit, Gsi, IoAddress, IoEvent, IrqChip, Mode, Msi, Route, Vcpu, Vm};
use rustix::event::{EventfdFlags, eventfd};

/// Where the handler is.
const HANDLER: u16 = 0x2000;

/// Real-mode code at `CODE`, and a handler that writes its vector to port 0x80, for `vectors`.
fn load(vm: &Vm, code: &[u8], vectors: &[u8]) {
    vm.write(CODE, code).unwrap();
    for (i, vector) in vectors.iter().enumerate() {
        let handler = HANDLER + 16 * i as u16;
        // mov al, vector; out 0x80, al; mov al, 0x20; out 0x20, al; iret
        let code = [0xb0, *vector, 0xe6, 0x80, 0xb0, 0x20, 0xe6, 0x20, 0xcf];
        vm.write(handler.into(), &code).unwrap();
        vm.memory()
            .write_value(u64::from(*vector) * 4, u32::from(handler))
            .unwrap();
    }
}

/// Sets the first PIC up with vectors from 0x20 on and everything unmasked, says so with 0xff on port
/// 0x80, and then: sti; hlt; jmp back.
const WAIT_WITH_PIC: [u8; 28] = [
    0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6, 0x21,
    0xb0, 0x00, 0xe6, 0x21, 0xb0, 0xff, 0xe6, 0x80, 0xfb, 0xf4, 0xeb, 0xfd,
];

fn next_vector(vcpu: &mut Vcpu) -> u32 {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match vcpu.run_until(deadline).unwrap() {
            Exit::PortOut(out) if out.port == 0x80 => return out.value(),
            // Where the controllers are not in the kernel, the end of an interrupt comes here.
            Exit::PortOut(out) if out.port == 0x20 => {}
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

fn event() -> File {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
        .unwrap()
        .into()
}

fn signalled(mut event: &File) -> u64 {
    let mut bytes = [0; 8];
    match event.read(&mut bytes) {
        Ok(_) => u64::from_ne_bytes(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => 0,
        Err(e) => panic!("{e}"),
    }
}

#[test]
#[ignore = "needs kvm"]
fn lines_and_eventfds_reach_the_guest_through_the_kernels_controllers() {
    let vm = machine();
    vm.create_irqchip(IrqChip::InKernel).unwrap();
    load(&vm, &WAIT_WITH_PIC, &[0x21, 0x23]);
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0xff);
    vm.set_irq_line(Gsi(1), true).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0x21);
    vm.set_irq_line(Gsi(1), false).unwrap();

    let event = event();
    vm.connect_irqfd(&event, Gsi(3)).unwrap();
    (&event).write_all(&1u64.to_ne_bytes()).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0x23);
    assert_eq!(signalled(&event), 0, "the kernel takes the signal");

    vm.disconnect_irqfd(&event, Gsi(3)).unwrap();
    (&event).write_all(&1u64.to_ne_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_millis(30);
    assert_eq!(vcpu.run_until(deadline).unwrap(), Exit::TimedOut);
    assert_eq!(signalled(&event), 1);
}

#[test]
#[ignore = "needs kvm"]
fn lines_are_routed_anew() {
    let vm = machine();
    vm.create_irqchip(IrqChip::InKernel).unwrap();
    load(&vm, &WAIT_WITH_PIC, &[0x21, 0x23]);
    vm.set_routes(&[(Gsi(40), Route::PicMaster(3))]).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0xff);
    vm.set_irq_line(Gsi(40), true).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0x23);
    // As they were in the beginning.
    vm.set_irq_line(Gsi(40), false).unwrap();
    vm.set_routes(&Route::of_a_pc()).unwrap();
    vm.set_irq_line(Gsi(1), true).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0x21);
}

#[test]
#[ignore = "needs kvm"]
fn the_timer_ticks() {
    let vm = machine();
    vm.create_irqchip(IrqChip::InKernel).unwrap();
    vm.create_pit().unwrap();
    // Channel 0 in mode 2 with a divisor of 0x4000 (73 Hz), and then as before.
    let mut code = vec![
        0xb0, 0x34, 0xe6, 0x43, 0xb0, 0x00, 0xe6, 0x40, 0xb0, 0x40, 0xe6, 0x40,
    ];
    code.extend(WAIT_WITH_PIC);
    load(&vm, &code, &[0x20]);
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    // A tick may come before the guest has said that it is ready.
    while next_vector(&mut vcpu) != 0xff {}
    for _ in 0..3 {
        assert_eq!(next_vector(&mut vcpu), 0x20);
    }
}

#[test]
#[ignore = "needs kvm"]
fn without_controllers_the_host_injects() {
    let vm = machine();
    // sti; nop; hlt; jmp back
    load(&vm, &[0xfb, 0x90, 0xf4, 0xeb, 0xfb], &[0x42]);
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert!(vcpu.can_take_interrupt());
    vcpu.interrupt(0x42).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0x42);
    assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
}

#[test]
#[ignore = "needs kvm"]
fn the_window_for_an_interrupt_is_told() {
    let vm = machine();
    // cli; out 0x81, al; sti; nop; jmp $
    load(&vm, &[0xfa, 0xe6, 0x81, 0xfb, 0x90, 0xeb, 0xfe], &[0x42]);
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
    assert!(!vcpu.can_take_interrupt());
    vcpu.request_interrupt_window(true);
    assert_eq!(vcpu.run().unwrap(), Exit::InterruptWindow);
    assert!(vcpu.can_take_interrupt());
    vcpu.request_interrupt_window(false);
    vcpu.interrupt(0x42).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0x42);
}

#[test]
#[ignore = "needs kvm"]
fn writes_signal_eventfds_without_an_exit() {
    let vm = machine();
    // mov al, 7; out 0x50, al; mov al, 8; out 0x50, al; hlt
    vm.write(CODE, &[0xb0, 7, 0xe6, 0x50, 0xb0, 8, 0xe6, 0x50, 0xf4])
        .unwrap();
    let seven = event();
    let on_seven = IoEvent {
        at: IoAddress::Port(0x50),
        len: 1,
        value: Some(7),
    };
    vm.connect_ioeventfd(&seven, on_seven).unwrap();
    let mode = Mode::real(0, CODE as u16);
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    match vcpu.run().unwrap() {
        Exit::PortOut(out) => assert_eq!(out.value(), 8),
        other => panic!("{other:?}"),
    }
    assert_eq!(signalled(&seven), 1);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);

    vm.disconnect_ioeventfd(&seven, on_seven).unwrap();
    vcpu.set_mode(&mode).unwrap();
    match vcpu.run().unwrap() {
        Exit::PortOut(out) => assert_eq!(out.value(), 7),
        other => panic!("{other:?}"),
    }
    assert_eq!(signalled(&seven), 0);
}

#[test]
#[ignore = "needs kvm"]
fn controllers_come_before_vcpus() {
    let vm = machine();
    let _vcpu = vm.create_vcpu(0, &Mode::real(0, 0)).unwrap();
    for chip in [IrqChip::InKernel, IrqChip::Split { pins: 24 }] {
        let e = vm.create_irqchip(chip).unwrap_err();
        assert!(matches!(e, Error::Order { .. }), "{e:?}");
    }
    let msi = Msi {
        address: 0xfee0_0000,
        data: 0x42,
    };
    assert!(matches!(vm.signal_msi(msi), Err(Error::Ioctl { .. })));
    assert!(matches!(vm.create_pit(), Err(Error::NeedsIrqChip { .. })));
}

#[test]
#[ignore = "needs kvm"]
fn split_controllers_take_messages() {
    let vm = machine();
    vm.create_irqchip(IrqChip::Split { pins: 24 }).unwrap();
    // sti; hlt; jmp back
    load(&vm, &[0xfb, 0xf4, 0xeb, 0xfd], &[0x42]);
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    enable_local_apic(&vcpu);
    let msi = Msi {
        address: 0xfee0_0000,
        data: 0x42,
    };
    assert!(vm.signal_msi(msi).unwrap());
    assert_eq!(next_vector(&mut vcpu), 0x42);
}

/// Sets the enable bit of the local APIC's spurious-interrupt vector register.
fn enable_local_apic(vcpu: &Vcpu) {
    let mut apic = vcpu.local_apic().unwrap();
    apic[0xf0..0xf4].copy_from_slice(&0x1ffu32.to_le_bytes());
    vcpu.set_local_apic(&apic).unwrap();
}

#[test]
#[ignore = "needs kvm"]
fn messages_come_through_eventfds() {
    let vm = machine();
    vm.create_irqchip(IrqChip::Split { pins: 24 }).unwrap();
    // sti; hlt; jmp back
    load(&vm, &[0xfb, 0xf4, 0xeb, 0xfd], &[0x42, 0x43]);
    let message = |vector| {
        Route::Msi(Msi {
            address: 0xfee0_0000,
            data: vector,
        })
    };
    vm.set_routes(&[(Gsi(30), message(0x42)), (Gsi(31), message(0x43))])
        .unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    enable_local_apic(&vcpu);
    let (first, second) = (event(), event());
    vm.connect_irqfd(&first, Gsi(30)).unwrap();
    vm.connect_irqfd(&second, Gsi(31)).unwrap();
    (&second).write_all(&1u64.to_ne_bytes()).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0x43);
    acknowledge(&vcpu);
    (&first).write_all(&1u64.to_ne_bytes()).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0x42);
    assert_eq!((signalled(&first), signalled(&second)), (0, 0));
}

/// Ends the interrupts that are in service, as a guest that wrote to the local APIC would.
fn acknowledge(vcpu: &Vcpu) {
    let mut apic = vcpu.local_apic().unwrap();
    for word in 0..8 {
        apic[0x100 + 16 * word..][..4].fill(0);
    }
    vcpu.set_local_apic(&apic).unwrap();
}

#[test]
#[ignore = "needs kvm"]
fn a_level_that_the_guest_acknowledges_is_sampled_anew() {
    let vm = machine();
    vm.create_irqchip(IrqChip::InKernel).unwrap();
    let mut code = WAIT_WITH_PIC.to_vec();
    // Level-triggered, for line 5: out 0x4d0, 0x20 (the edge/level control register), first.
    let level = [0xba, 0xd0, 0x04, 0xb0, 0x20, 0xee];
    code.splice(0..0, level);
    load(&vm, &code, &[0x25]);
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    assert_eq!(next_vector(&mut vcpu), 0xff);
    let (device, acknowledged) = (event(), event());
    vm.connect_level_irqfd(&device, &acknowledged, Gsi(5))
        .unwrap();
    for _ in 0..3 {
        (&device).write_all(&1u64.to_ne_bytes()).unwrap();
        assert_eq!(next_vector(&mut vcpu), 0x25);
        assert_eq!(signalled(&acknowledged), 0, "not before the guest has");
        // The guest ends the interrupt, and waits for the next; on a busy machine it takes its time.
        let patience = Instant::now() + Duration::from_secs(20);
        let ended = loop {
            let deadline = Instant::now() + Duration::from_millis(50);
            assert_eq!(vcpu.run_until(deadline).unwrap(), Exit::TimedOut);
            match signalled(&acknowledged) {
                0 => assert!(Instant::now() < patience, "it is never acknowledged"),
                count => break count,
            }
        };
        assert_eq!(ended, 1);
    }
    // A device that still wants attention signals again, and the guest is interrupted again.
    vm.disconnect_irqfd(&device, Gsi(5)).unwrap();
    (&device).write_all(&1u64.to_ne_bytes()).unwrap();
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(vcpu.run_until(deadline).unwrap(), Exit::TimedOut);
}

#[test]
#[ignore = "needs kvm"]
fn a_guest_takes_an_nmi_with_interrupts_off_and_one_at_a_time() {
    let vm = machine();
    // cli; again: inc bx; out 0x81, al; jmp again
    load(&vm, &[0xfa, 0x43, 0xe6, 0x81, 0xeb, 0xfb], &[2]);
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    let port = |vcpu: &mut Vcpu| loop {
        match vcpu.run().unwrap() {
            Exit::PortOut(out) => return out.port,
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(port(&mut vcpu), 0x81);
    assert!(!vcpu.can_take_interrupt());
    vcpu.nmi().unwrap();
    assert_eq!(port(&mut vcpu), 0x80);
    // Another waits until the handler is done, at its `iret`, after which a turn of the loop may pass.
    vcpu.nmi().unwrap();
    assert_eq!(port(&mut vcpu), 0x20);
    let ports: Vec<u16> = (0..4).map(|_| port(&mut vcpu)).collect();
    let turns = ports.iter().position(|p| *p == 0x80).unwrap();
    assert!(turns <= 1, "{ports:x?}");
    assert_eq!(ports[turns + 1..][..2], [0x20, 0x81]);
}
