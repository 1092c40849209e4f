//! Rings of dirty pages tell what the log without them tells, and a full one loses nothing.
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{CODE, MEMORY, TABLES, machine};
use kvm_vcpu::{Error, Exit, Kvm, Mode, PageTables, Region, Vcpu, Vm};

/// Where the region is that is logged, and how many pages it has.
const LOGGED: u64 = 0x20_0000;
const PAGES: u64 = 2048;
/// Entries of a ring that takes them all.
const MANY: u32 = 4096;
/// Entries of a ring that does not.
const FEW: u32 = 1024;

/// A machine whose guest writes to all pages from `first` on, every `step`-th; and its mode.
fn start(entries: u32) -> (Vm, Mode) {
    let kvm = Kvm::open().unwrap();
    let vm = kvm
        .create_vm(&[
            Region::anonymous(0, MEMORY),
            Region::anonymous(LOGGED, PAGES * 0x1000).log_dirty(),
        ])
        .unwrap();
    vm.log_dirty_in_rings(entries).unwrap();
    // again: mov [rdi], eax; add rdi, rsi; cmp rdi, rbx; jb again; hlt
    let code = [
        0x89, 0x07, 0x48, 0x01, 0xf7, 0x48, 0x39, 0xdf, 0x72, 0xf6, 0xf4,
    ];
    vm.write(CODE, &code).unwrap();
    let mut tables = PageTables::new(TABLES, 0x1_0000);
    tables.identity(LOGGED + PAGES * 0x1000).unwrap();
    let root = tables.install(vm.memory()).unwrap();
    (vm, Mode::long(CODE, root))
}

/// Puts the vCPU at the loop, for the pages from `first` on, every `step`-th.
fn aim(vcpu: &Vcpu, mode: &Mode, first: u64, step: u64) -> BTreeSet<u64> {
    vcpu.set_mode(mode).unwrap();
    let mut regs = vcpu.registers().unwrap();
    regs.rdi = LOGGED + first * 0x1000;
    regs.rsi = step * 0x1000;
    regs.rbx = LOGGED + PAGES * 0x1000;
    vcpu.set_registers(&regs).unwrap();
    (first..PAGES)
        .step_by(step as usize)
        .map(|p| LOGGED + p * 0x1000)
        .collect()
}

/// Runs to the end; returns how often the ring was full, unless it overflowed.
fn run(vm: &Vm, vcpu: &mut Vcpu) -> Result<u32, Error> {
    let mut full = 0;
    loop {
        match vcpu.run().unwrap() {
            Exit::DirtyRingFull => {
                full += 1;
                assert!(vm.harvest_dirty_rings()? > 0);
            }
            Exit::Halt => return Ok(full),
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
}

fn taken(vm: &Vm) -> BTreeSet<u64> {
    vm.take_dirty(LOGGED).unwrap().iter().collect()
}

#[test]
#[ignore = "needs kvm"]
fn rings_tell_what_was_written_and_forget_it() {
    let (vm, mode) = start(MANY);
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    let written = aim(&vcpu, &mode, 0, 1);
    assert_eq!(run(&vm, &mut vcpu).unwrap(), 0);
    assert_eq!(taken(&vm), written);
    assert!(taken(&vm).is_empty());
    // They are logged anew, and with them what the host writes.
    let mut written = aim(&vcpu, &mode, 7, 64);
    run(&vm, &mut vcpu).unwrap();
    vm.write(LOGGED + 0x2008, &[1]).unwrap();
    written.insert(LOGGED + 0x2000);
    assert_eq!(taken(&vm), written);
}

#[test]
#[ignore = "needs lab"]
fn a_ring_that_is_full_stops_the_guest_and_loses_nothing() {
    let (vm, mode) = start(FEW);
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    for _ in 0..2 {
        let written = aim(&vcpu, &mode, 0, 1);
        assert!(run(&vm, &mut vcpu).unwrap() >= 1);
        assert_eq!(taken(&vm), written);
    }
}

#[test]
#[ignore = "needs kvm"]
fn a_ring_that_is_too_small_loses_nothing_in_silence() {
    let (vm, mode) = start(FEW);
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    let written = aim(&vcpu, &mode, 0, 1);
    let ended = run(&vm, &mut vcpu);
    match ended.and_then(|full| Ok((full, vm.take_dirty(LOGGED)?))) {
        Ok((full, dirty)) => {
            assert!(full >= 1);
            assert_eq!(dirty.iter().collect::<BTreeSet<_>>(), written);
        }
        // A kernel that stops the guest too late, as one may that emulates it.
        Err(Error::DirtyRingOverflow { entries }) => {
            assert_eq!(entries, FEW);
            let again = vm.take_dirty(LOGGED).unwrap_err();
            assert!(matches!(again, Error::DirtyRingOverflow { .. }));
        }
        Err(e) => panic!("{e}"),
    }
}

#[test]
#[ignore = "needs kvm"]
fn pages_stay_until_they_are_cleared_if_that_is_asked_for() {
    let (vm, mode) = start(MANY);
    vm.log_dirty_until_cleared().unwrap();
    let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
    let written = aim(&vcpu, &mode, 3, 100);
    run(&vm, &mut vcpu).unwrap();
    let dirty = vm.dirty(LOGGED).unwrap();
    assert_eq!(dirty.iter().collect::<BTreeSet<_>>(), written);
    assert_eq!(vm.dirty(LOGGED).unwrap(), dirty);
    vm.clear_dirty(&dirty).unwrap();
    assert_eq!(vm.dirty(LOGGED).unwrap().count(), 0);
}

#[test]
#[ignore = "needs kvm"]
fn rings_are_emptied_while_guests_run() {
    let (vm, mode) = start(MANY);
    let done = AtomicBool::new(false);
    let expected = (0..PAGES)
        .map(|p| LOGGED + p * 0x1000)
        .collect::<BTreeSet<_>>();
    let found = thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let mut found = BTreeSet::new();
            loop {
                let last = done.load(Ordering::SeqCst);
                found.append(&mut taken(&vm));
                if last {
                    return found;
                }
                thread::yield_now();
            }
        });
        let writers: Vec<_> = (0..2)
            .map(|id| {
                let (vm, mode) = (&vm, &mode);
                scope.spawn(move || {
                    let mut vcpu = vm.create_vcpu(id, mode).unwrap();
                    for _ in 0..3 {
                        aim(&vcpu, mode, id.into(), 2);
                        loop {
                            match vcpu.run().unwrap() {
                                Exit::Halt => break,
                                // The other thread empties it.
                                Exit::DirtyRingFull => thread::yield_now(),
                                Exit::Interrupted => {}
                                other => panic!("{other:?}"),
                            }
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = writers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        done.store(true, Ordering::SeqCst);
        let found = collector.join().unwrap();
        for end in ended {
            end.unwrap();
        }
        found
    });
    assert_eq!(found, expected);
}

#[test]
#[ignore = "needs kvm"]
fn rings_that_cannot_be_are_refused() {
    let vm = machine();
    assert!(matches!(vm.harvest_dirty_rings(), Err(Error::NoDirtyRings)));
    for entries in [0, 1, 100, 1000, 1 << 31] {
        let e = vm.log_dirty_in_rings(entries).unwrap_err();
        assert!(matches!(e, Error::DirtyRingSize { .. }), "{entries}: {e}");
    }
    vm.log_dirty_in_rings(FEW).unwrap();
    assert!(matches!(
        vm.log_dirty_in_rings(FEW),
        Err(Error::DirtyRingSize { .. })
    ));
    let _vcpu = vm.create_vcpu(0, &Mode::real(0, 0)).unwrap();
    assert!(matches!(
        vm.log_dirty_in_rings(FEW),
        Err(Error::Order { .. })
    ));
}
