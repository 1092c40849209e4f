//! All kinds of guest memory, seen by the guest and by the host.
#![allow(clippy::cast_possible_truncation)]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use kvm_vcpu::{Error, Exit, GuestMemory, Kvm, Mode, Region, RegionProblem, Vcpu, Vm};
use rustix::fs::{MemfdFlags, memfd_create};

/// mov word [0x2000], 0x1234 is at 0; the data region is tested through it. Then ax = [0x2002]; hlt.
const CODE: [u8; 10] = [0xc7, 0x06, 0x00, 0x20, 0x34, 0x12, 0xa1, 0x02, 0x20, 0xf4];

fn start(data: Region) -> (Vm, Vcpu) {
    let vm = Kvm::open()
        .unwrap()
        .create_vm(&[data, Region::anonymous(0, 0x1000)])
        .unwrap();
    vm.write(0, &CODE).unwrap();
    let vcpu = vm.create_vcpu(0, &Mode::real(0, 0)).unwrap();
    (vm, vcpu)
}

fn file(contents: &[u8]) -> File {
    let mut file: File = memfd_create("test", MemfdFlags::CLOEXEC).unwrap().into();
    file.write_all(contents).unwrap();
    file
}

fn word(file: &mut File, at: u64) -> u16 {
    let mut bytes = [0; 2];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    u16::from_le_bytes(bytes)
}

fn pages() -> Vec<u8> {
    let mut contents = vec![0; 0x2000];
    contents[0x1002..0x1004].copy_from_slice(&0xbeefu16.to_le_bytes());
    contents
}

#[test]
#[ignore = "needs kvm"]
fn a_shared_file_is_changed_by_the_guest() {
    let mut backing = file(&pages());
    let (_vm, mut vcpu) = start(Region::file_shared(
        0x2000,
        0x1000,
        backing.try_clone().unwrap(),
        0x1000,
    ));
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 0xbeef);
    assert_eq!(word(&mut backing, 0x1000), 0x1234);
}

#[test]
#[ignore = "needs kvm"]
fn a_private_file_is_not() {
    let mut backing = file(&pages());
    let region = Region::file_private(0x2000, 0x1000, backing.try_clone().unwrap(), 0x1000);
    let (vm, mut vcpu) = start(region);
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 0xbeef);
    assert_eq!(vm.read_value::<u16>(0x2000).unwrap(), 0x1234);
    assert_eq!(word(&mut backing, 0x1000), 0);
}

#[test]
#[ignore = "needs kvm"]
fn a_memfd_can_be_shared_and_never_shrinks() {
    let (vm, mut vcpu) = start(Region::memfd(0x2000, 0x1000));
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    let (fd, offset) = vm.memory().file_at(0x2000).unwrap().unwrap();
    assert_eq!(offset, 0);
    let fd: OwnedFd = fd.try_clone_to_owned().unwrap();
    let mut other = File::from(fd);
    assert_eq!(word(&mut other, 0), 0x1234);
    assert!(other.set_len(0).is_err());
    assert!(vm.memory().file_at(0).unwrap().is_none());
    assert!(vm.memory().file_at(0x1000).is_err());
}

#[test]
#[ignore = "needs kvm"]
fn writes_to_read_only_memory_come_to_the_host() {
    let (vm, mut vcpu) = start(Region::anonymous(0x2000, 0x1000).read_only());
    vm.write(0x2002, &0xbeefu16.to_le_bytes()).unwrap();
    match vcpu.run().unwrap() {
        Exit::MmioWrite(write) => assert_eq!((write.address, write.value()), (0x2000, 0x1234)),
        other => panic!("{other:?}"),
    }
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 0xbeef);
    assert_eq!(vm.read_value::<u16>(0x2000).unwrap(), 0);
}

#[test]
#[ignore = "needs kvm"]
fn one_memory_can_serve_two_machines() {
    let kvm = Kvm::open().unwrap();
    let memory = GuestMemory::new(&[Region::anonymous(0, 0x1000)]).unwrap();
    // inc word [0x800]; hlt
    memory.write(0, &[0xff, 0x06, 0x00, 0x08, 0xf4]).unwrap();
    for expected in 1..=2u16 {
        let vm = Vm::with_memory(&kvm, memory.clone()).unwrap();
        let mut vcpu = vm.create_vcpu(0, &Mode::real(0, 0)).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        drop(vm);
        assert_eq!(memory.read_value::<u16>(0x800).unwrap(), expected);
    }
}

#[test]
fn huge_pages_work_or_say_how_to_get_them() {
    // Two of the usual 2 MiB; a host may have none.
    match GuestMemory::new(&[Region::huge_pages(0, 4 << 20)]) {
        Ok(memory) => memory.write(0x20_0000, b"there").unwrap(),
        Err(e) => {
            assert!(matches!(e, Error::MapHugePages { .. }), "{e:?}");
            assert!(e.to_string().contains("`sysctl vm.nr_hugepages=2`"), "{e}");
        }
    }
}

// Elsewhere the huge pages that are set aside are for others.
#[test]
#[ignore = "needs lab"]
fn huge_pages_serve_a_guest() {
    const SET_ASIDE: &str = "/proc/sys/vm/nr_hugepages";
    let before = fs::read_to_string(SET_ASIDE).unwrap();
    fs::write(SET_ASIDE, "8").unwrap();
    let (vm, mut vcpu) = start(Region::huge_pages(0x2000, 4 << 20));
    vm.write(0x2002, &0xbeefu16.to_le_bytes()).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(vcpu.registers().unwrap().rax, 0xbeef);
    assert_eq!(vm.read_value::<u16>(0x2000).unwrap(), 0x1234);
    vm.write((4 << 20) + 0x1000, &[1]).unwrap();
    drop((vm, vcpu));
    fs::write(SET_ASIDE, before.trim()).unwrap();
}

#[test]
fn files_that_are_too_short_or_offsets_that_are_odd_are_refused() {
    for (offset, expected) in [
        (0x1000, RegionProblem::FileTooShort),
        (u64::MAX - 0xfff, RegionProblem::FileTooShort),
        (0x10, RegionProblem::Unaligned),
    ] {
        match GuestMemory::new(&[Region::file_shared(0, 0x2000, file(&pages()), offset)]) {
            Err(Error::Region { problem, .. }) => assert_eq!(problem, expected),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
#[ignore = "needs kvm"]
fn the_dirty_log_is_the_set_of_pages_that_were_written() {
    let vm = Kvm::open()
        .unwrap()
        .create_vm(&[
            Region::anonymous(0, 0x1000),
            Region::anonymous(0x10_0000, 0x40_0000).log_dirty(),
        ])
        .unwrap();
    // mov [esi], eax; hlt, in protected mode
    vm.write(0, &[0x89, 0x06, 0xf4]).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::protected(0)).unwrap();
    let mut write = |address: u64| {
        vcpu.set_mode(&Mode::protected(0)).unwrap();
        let mut regs = vcpu.registers().unwrap();
        regs.rsi = address;
        vcpu.set_registers(&regs).unwrap();
        assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    };
    let taken = || -> Vec<u64> { vm.take_dirty(0x10_0000).unwrap().iter().collect() };
    taken();
    for address in [0x10_0004, 0x4f_fff0, 0x13_2000, 0x10_0008] {
        write(address);
    }
    assert_eq!(taken(), [0x10_0000, 0x13_2000, 0x4f_f000]);
    assert_eq!(taken(), [] as [u64; 0]);
    write(0x13_2ff0);
    let dirty = vm.take_dirty(0x10_0000).unwrap();
    assert_eq!(dirty.count(), 1);
    assert_eq!(dirty.iter().collect::<Vec<_>>(), [0x13_2000]);
    for not_logged in [0, 0x10_1000] {
        let e = vm.take_dirty(not_logged).unwrap_err();
        assert!(matches!(e, Error::NotLogged { .. }), "{e:?}");
    }
}

#[test]
#[ignore = "needs kvm"]
fn the_hosts_own_writes_are_logged_and_pages_stay_until_they_are_cleared() {
    use kvm_vcpu::vm_memory::{Bytes, GuestAddress};
    let vm = Kvm::open()
        .unwrap()
        .create_vm(&[
            // Apart, because a kernel may log the page of a first read, too.
            Region::anonymous(0, 0x1000),
            Region::anonymous(0x1000, 0x1f_f000).log_dirty(),
        ])
        .unwrap();
    // mov [0x5000], al; hlt
    vm.write(0, &[0xa2, 0x00, 0x50, 0xf4]).unwrap();
    vm.write(0x1000, &[1]).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, 0)).unwrap();
    let listed = |pages: &kvm_vcpu::DirtyPages| pages.iter().collect::<Vec<_>>();
    assert_eq!(listed(&vm.take_dirty(0x1000).unwrap()), [0x1000]);
    assert!(matches!(vm.dirty(0x1000), Err(Error::NeedsManualLog)));

    vm.log_dirty_until_cleared().unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    // As virtio-queue would.
    let as_vm_memory = vm.memory().as_vm_memory();
    as_vm_memory
        .write_obj(7u32, GuestAddress(0x10_0ffe))
        .unwrap();
    let dirty = vm.dirty(0x1000).unwrap();
    assert_eq!(listed(&dirty), [0x5000, 0x10_0000, 0x10_1000]);
    assert_eq!(vm.dirty(0x1000).unwrap(), dirty);
    vm.clear_dirty(&dirty).unwrap();
    assert_eq!(vm.dirty(0x1000).unwrap().count(), 0);
    vcpu.set_mode(&Mode::real(0, 0)).unwrap();
    assert_eq!(vcpu.run().unwrap(), Exit::Halt);
    assert_eq!(listed(&vm.take_dirty(0x1000).unwrap()), [0x5000]);
    assert_eq!(vm.dirty(0x1000).unwrap().count(), 0);
}

#[test]
#[ignore = "needs kvm"]
fn memory_of_a_machines_own_file_is_used_or_named_as_missing() {
    match Kvm::open()
        .unwrap()
        .create_vm(&[Region::guest_memfd(0x2000, 0x1000)])
    {
        Ok(_) => {
            let (vm, mut vcpu) = start(Region::guest_memfd(0x2000, 0x1000));
            vm.write(0x2002, &0xbeefu16.to_le_bytes()).unwrap();
            assert_eq!(vcpu.run().unwrap(), Exit::Halt);
            assert_eq!(vcpu.registers().unwrap().rax, 0xbeef);
            assert_eq!(vm.read_value::<u16>(0x2000).unwrap(), 0x1234);
            assert!(vm.memory().file_at(0x2000).unwrap().is_some());
            // Not another machine's.
            let e = Vm::with_memory(&Kvm::open().unwrap(), vm.memory().clone()).unwrap_err();
            assert!(matches!(e, Error::Ioctl { .. }), "{e}");
            vm.memory().discard(0x2000, 0x1000).unwrap();
            assert_eq!(vm.read_value::<u16>(0x2000).unwrap(), 0);
        }
        Err(Error::Unsupported { capability, advice }) => {
            assert_eq!(capability, "KVM_CAP_GUEST_MEMFD_FLAGS");
            assert!(advice.contains("6.18"));
        }
        Err(e) => panic!("{e}"),
    }
    let problem = |region| match GuestMemory::new(&[region]) {
        Err(Error::Region { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };
    let region = || Region::guest_memfd(0, 0x1000);
    assert_eq!(problem(region()), RegionProblem::NeedsMachine);
    assert_eq!(
        problem(region().log_dirty()),
        RegionProblem::GuestMemfdFlags
    );
    assert_eq!(
        problem(region().read_only()),
        RegionProblem::GuestMemfdFlags
    );
}
