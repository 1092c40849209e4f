//! vCPUs: exits, registers, stopping, machines and snapshots.
//!
//! Needs /dev/kvm.

use std::fs::File;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use kvm_vcpu::{Exit, GuestMemory, Kvm, Mode, Region, Snapshot, Vcpu, Vm};

const CODE: u64 = 0x1000;

/// A machine with this real-mode code, and a vCPU at its first byte.
fn start(kvm: &Kvm, code: &[u8]) -> (Vm, Vcpu) {
    let vm = kvm
        .create_vm(&[Region::anonymous(0, 0x10_000)])
        .expect("a machine");
    vm.write(CODE, code).expect("in memory");
    let vcpu = vm.create_vcpu(0, &Mode::real(0, 0x1000)).expect("a vCPU");
    (vm, vcpu)
}

fn exits(c: &mut Criterion) {
    let kvm = Kvm::open().expect("/dev/kvm");
    let mut group = c.benchmark_group("kvm-vcpu/exit");

    // out 0x80, al; jmp back
    let (_vm, mut vcpu) = start(&kvm, &[0xe6, 0x80, 0xeb, 0xfc]);
    group.bench_function("port write", |b| {
        b.iter(|| assert!(matches!(vcpu.run(), Ok(Exit::PortOut(_)))));
    });
    let deadline = Instant::now() + Duration::from_hours(1);
    group.bench_function("port write, with a deadline", |b| {
        b.iter(|| assert!(matches!(vcpu.run_until(deadline), Ok(Exit::PortOut(_)))));
    });

    // in al, 0x80; jmp back
    let (_vm, mut vcpu) = start(&kvm, &[0xe4, 0x80, 0xeb, 0xfc]);
    group.bench_function("port read and reply", |b| {
        b.iter(|| match vcpu.run() {
            Ok(Exit::PortIn(read)) => vcpu.reply(read.reply(1)).expect("replied"),
            other => panic!("{other:?}"),
        });
    });

    // mov ax, 0x9000; mov ds, ax; again: mov [0], al; jmp again: no memory is there
    let code = [0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xa2, 0x00, 0x00, 0xeb, 0xfb];
    let (_vm, mut vcpu) = start(&kvm, &code);
    group.bench_function("memory-mapped write", |b| {
        b.iter(|| assert!(matches!(vcpu.run(), Ok(Exit::MmioWrite(_)))));
    });

    // jmp $: the kick is waiting when the run begins.
    let (_vm, mut vcpu) = start(&kvm, &[0xeb, 0xfe]);
    let handle = vcpu.handle().expect("a handle");
    group.bench_function("kick and return", |b| {
        b.iter(|| {
            handle.kick();
            assert_eq!(vcpu.run().expect("ran"), Exit::Kicked);
        });
    });
}

fn registers(c: &mut Criterion) {
    let kvm = Kvm::open().expect("/dev/kvm");
    let (_vm, vcpu) = start(&kvm, &[0xf4]);
    c.bench_function("kvm-vcpu/registers/read and write", |b| {
        b.iter(|| {
            let registers = vcpu.registers().expect("read");
            vcpu.set_registers(&registers).expect("written");
        });
    });
}

fn machines(c: &mut Criterion) {
    let kvm = Kvm::open().expect("/dev/kvm");
    c.bench_function(
        "kvm-vcpu/machine/made, run to its first exit, dropped",
        |b| {
            b.iter(|| {
                let (_vm, mut vcpu) = start(&kvm, &[0xf4]);
                assert_eq!(vcpu.run().expect("ran"), Exit::Halt);
            });
        },
    );
}

/// Restoring maps the file, so its size should not show.
fn snapshots(c: &mut Criterion) {
    let kvm = Kvm::open().expect("/dev/kvm");
    let mut group = c.benchmark_group("kvm-vcpu/restore");
    for mib in [128, 4096] {
        let vm = kvm
            .create_vm(&[Region::anonymous(0, mib << 20)])
            .expect("a machine");
        vm.write(CODE, &[0xf4]).expect("in memory");
        let mut vcpu = vm.create_vcpu(0, &Mode::real(0, 0x1000)).expect("a vCPU");
        let file: File = tempfile::tempfile().expect("a file");
        // A memory of zeros and one page, as a file of holes.
        file.set_len(mib << 20).expect("extended");
        let written = GuestMemory::new(&[Region::file_shared(
            0,
            0x2000,
            file.try_clone().expect("duplicated"),
            0,
        )])
        .expect("mapped");
        written.write(CODE, &[0xf4]).expect("in memory");
        let snapshot = Snapshot::take(&kvm, &vm, &[&mut vcpu])
            .expect("taken")
            .to_bytes();
        group.bench_function(format!("{mib} MiB to the first exit"), |b| {
            b.iter(|| {
                let snapshot = Snapshot::from_bytes(&snapshot).expect("read");
                let (_vm, mut vcpus) = snapshot.restore(&kvm, &file).expect("restored");
                assert_eq!(vcpus[0].run().expect("ran"), Exit::Halt);
            });
        });
    }
}

criterion_group!(benches, exits, registers, machines, snapshots);
criterion_main!(benches);
