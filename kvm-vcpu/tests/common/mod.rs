//! Machines for tests.
#![allow(dead_code, clippy::cast_possible_truncation)]

use kvm_vcpu::{Kvm, Mode, PageTables, Region, Vcpu, Vm};

/// Where the tests' guests are loaded.
pub(crate) const CODE: u64 = 0x1000;
/// Guests' memory.
pub(crate) const MEMORY: u64 = 2 << 20;
/// Where page tables go.
pub(crate) const TABLES: u64 = 0x10_0000;

pub(crate) fn machine() -> Vm {
    Kvm::open()
        .unwrap()
        .create_vm(&[Region::anonymous(0, MEMORY)])
        .unwrap()
}

/// Real mode, protected mode, and long mode with memory mapped one to one.
pub(crate) fn modes(vm: &Vm) -> [Mode; 3] {
    let mut tables = PageTables::new(TABLES, 0x8000);
    tables.identity(MEMORY).unwrap();
    let root = tables.install(vm.memory()).unwrap();
    [
        Mode::real(0, CODE as u16),
        Mode::protected(CODE as u32),
        Mode::long(CODE, root),
    ]
}

/// A vCPU at the first of these bytes, in real mode.
pub(crate) fn real(code: &[u8]) -> Vcpu {
    let vm = machine();
    vm.write(CODE, code).unwrap();
    vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap()
}

/// A vCPU at the first of these bytes, in long mode.
pub(crate) fn long(code: &[u8]) -> Vcpu {
    let vm = machine();
    vm.write(CODE, code).unwrap();
    let [_, _, mode] = modes(&vm);
    vm.create_vcpu(0, &mode).unwrap()
}
