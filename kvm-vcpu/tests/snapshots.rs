//! A snapshot is a machine's whole state: running on from it equals having run through.
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::fs::File;

use common::{CODE, MEMORY, machine, modes};
use kvm_vcpu::{
    Error, Exit, Feature, Gsi, GuestMemory, IrqChip, Kvm, Mode, Region, Snapshot, SnapshotProblem,
    Vcpu, Vm,
};
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};

fn memory_file() -> File {
    memfd_create("snapshot", MemfdFlags::CLOEXEC)
        .unwrap()
        .into()
}

fn take(vm: &Vm, vcpu: &mut Vcpu) -> (Snapshot, File) {
    let file = memory_file();
    vm.memory().save(&file).unwrap();
    let snapshot = Snapshot::take(&Kvm::open().unwrap(), vm, &[vcpu]).unwrap();
    let bytes = snapshot.to_bytes();
    let back = Snapshot::from_bytes(&bytes).unwrap();
    assert_eq!(back.to_bytes(), bytes);
    (back, file)
}

/// A generator of pseudo-random numbers that leaves a trail in memory, some of it through a vector
/// register: mov ecx, 500; again: imul eax, eax, 1103515245; add eax, 12345; mov [rcx*4 + 0x8000], eax;
/// movups [rcx*4 + 0x9000], xmm1; movups xmm1, [rcx*4 + 0x8000]; dec ecx; jnz again; hlt
const WORK: [u8; 44] = [
    0xb9, 0xf4, 0x01, 0x00, 0x00, 0x69, 0xc0, 0x6d, 0x4e, 0xc6, 0x41, 0x05, 0x39, 0x30, 0x00, 0x00,
    0x89, 0x04, 0x8d, 0x00, 0x80, 0x00, 0x00, 0x0f, 0x11, 0x0c, 0x8d, 0x00, 0x90, 0x00, 0x00, 0x0f,
    0x10, 0x0c, 0x8d, 0x00, 0x80, 0x00, 0x00, 0xff, 0xc9, 0x75, 0xda, 0xf4,
];

fn worker() -> (Vm, Vcpu) {
    let vm = machine();
    vm.write(CODE, &WORK).unwrap();
    let vcpu = vm.create_vcpu(0, &modes(&vm)[2]).unwrap();
    (vm, vcpu)
}

fn run_to_the_end(memory: &GuestMemory, vcpu: &mut Vcpu) -> (Vec<u8>, kvm_vcpu::Registers) {
    loop {
        match vcpu.run().unwrap() {
            Exit::Halt => break,
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        }
    }
    let mut trail = vec![0; 0x2000];
    memory.read(0x8000, &mut trail).unwrap();
    (trail, vcpu.registers().unwrap())
}

#[test]
#[ignore = "needs kvm"]
fn running_on_from_a_snapshot_equals_running_through() {
    let kvm = Kvm::open().unwrap();
    let (vm, mut vcpu) = worker();
    let expected = run_to_the_end(vm.memory(), &mut vcpu);
    assert_ne!(&expected.0[0x1010..0x1018], [0; 8]);

    for steps in [0, 1, 2, 5, 77, 400] {
        let (vm, mut vcpu) = worker();
        vcpu.set_single_step(true).unwrap();
        for _ in 0..steps {
            assert!(matches!(vcpu.run().unwrap(), Exit::Debug { .. }));
        }
        vcpu.set_single_step(false).unwrap();
        assert_eq!(vcpu.settle().unwrap(), None);
        let (snapshot, file) = take(&vm, &mut vcpu);
        // From one snapshot as often as wanted, whatever becomes of the others.
        let mut first = snapshot.restore(&kvm, &file).unwrap();
        let mut second = snapshot.restore(&kvm, &file).unwrap();
        for (vm, vcpus) in [&mut first, &mut second] {
            assert_eq!(
                run_to_the_end(vm.memory(), &mut vcpus[0]),
                expected,
                "{steps}"
            );
        }
        assert_eq!(run_to_the_end(vm.memory(), &mut vcpu), expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(12)
    ))]

    #[test]
    #[ignore = "needs kvm"]
    fn it_can_be_taken_at_any_instruction(steps in 0..900usize) {
        let kvm = Kvm::open().unwrap();
        let (vm, mut vcpu) = worker();
        let expected = run_to_the_end(vm.memory(), &mut vcpu);
        let (vm, mut vcpu) = worker();
        vcpu.set_single_step(true).unwrap();
        for _ in 0..steps {
            let exit = vcpu.run().unwrap();
            prop_assert!(matches!(exit, Exit::Debug { .. }), "{:?}", exit);
        }
        vcpu.set_single_step(false).unwrap();
        prop_assert_eq!(vcpu.settle().unwrap(), None);
        let (snapshot, file) = take(&vm, &mut vcpu);
        drop((vm, vcpu));
        let (vm, mut vcpus) = snapshot.restore(&kvm, &file).unwrap();
        prop_assert!(run_to_the_end(vm.memory(), &mut vcpus[0]) == expected);
    }
}

#[test]
#[ignore = "needs kvm"]
fn interrupt_controllers_and_several_vcpus_are_part_of_it() {
    let kvm = Kvm::open().unwrap();
    let vm = machine();
    vm.create_irqchip(IrqChip::InKernel).unwrap();
    vm.create_pit().unwrap();
    // The first PIC, with vectors from 0x20 on; then out 0x80, al.
    let code = [
        0xb0, 0x11, 0xe6, 0x20, 0xb0, 0x20, 0xe6, 0x21, 0xb0, 0x04, 0xe6, 0x21, 0xb0, 0x01, 0xe6,
        0x21, 0xb0, 0xfd, 0xe6, 0x21, 0xe6, 0x80, 0xfb, 0xf4, 0xeb, 0xfd,
    ];
    vm.write(CODE, &code).unwrap();
    // mov al, 0x77; out 0x81, al; iret, at vector 0x21
    vm.write(0x2000, &[0xb0, 0x77, 0xe6, 0x81, 0xcf]).unwrap();
    vm.memory().write_value(0x21 * 4, 0x2000u32).unwrap();
    let mode = Mode::real(0, CODE as u16);
    let mut boot = vm.create_vcpu(0, &mode).unwrap();
    let mut other = vm.create_vcpu(1, &Mode::Reset).unwrap();
    assert!(matches!(boot.run().unwrap(), Exit::PortOut(_)));
    while boot.settle().unwrap().is_some() {}
    let file = memory_file();
    vm.memory().save(&file).unwrap();
    let snapshot = Snapshot::take(&kvm, &vm, &[&mut boot, &mut other]).unwrap();
    let snapshot = Snapshot::from_bytes(&snapshot.to_bytes()).unwrap();
    drop((vm, boot, other));

    let (vm, mut vcpus) = snapshot.restore(&kvm, &file).unwrap();
    assert_eq!(vcpus.iter().map(Vcpu::id).collect::<Vec<_>>(), [0, 1]);
    vm.set_irq_line(Gsi(1), true).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    match vcpus[0].run_until(deadline).unwrap() {
        Exit::PortOut(out) => assert_eq!((out.port, out.value()), (0x81, 0x77)),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs kvm"]
fn a_vcpu_in_the_middle_of_an_exit_is_refused_until_it_is_settled() {
    let kvm = Kvm::open().unwrap();
    let vm = machine();
    // in al, 0x40; hlt
    vm.write(CODE, &[0xe4, 0x40, 0xf4]).unwrap();
    let mut vcpu = vm.create_vcpu(5, &Mode::real(0, CODE as u16)).unwrap();
    let Exit::PortIn(read) = vcpu.run().unwrap() else {
        panic!("no read")
    };
    vcpu.reply(read.reply(0x99)).unwrap();
    let e = Snapshot::take(&kvm, &vm, &[&mut vcpu]).unwrap_err();
    assert!(matches!(e, Error::Unsettled { id: 5 }), "{e:?}");
    assert_eq!(vcpu.settle().unwrap(), None);
    assert_eq!(vcpu.settle().unwrap(), None);
    let (snapshot, file) = take(&vm, &mut vcpu);
    let (_vm, mut vcpus) = snapshot.restore(&kvm, &file).unwrap();
    assert_eq!(vcpus[0].run().unwrap(), Exit::Halt);
    assert_eq!(vcpus[0].registers().unwrap().rax, 0x99);
}

#[test]
#[ignore = "needs kvm"]
fn every_change_of_a_byte_is_noticed() {
    let (vm, mut vcpu) = worker();
    let (snapshot, file) = take(&vm, &mut vcpu);
    let bytes = snapshot.to_bytes();
    for at in (0..bytes.len()).step_by(37) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x10;
        assert!(
            matches!(Snapshot::from_bytes(&changed), Err(Error::Snapshot(_))),
            "{at}"
        );
    }
    for len in (0..bytes.len()).step_by(101) {
        assert!(Snapshot::from_bytes(&bytes[..len]).is_err(), "{len}");
    }
    let mut other_version = bytes.clone();
    other_version[15] = 9;
    assert!(matches!(
        Snapshot::from_bytes(&other_version),
        Err(Error::Snapshot(SnapshotProblem::Version { found: 9, .. }))
    ));
    // A memory file that was cut.
    file.set_len(MEMORY - 0x1000).unwrap();
    assert!(matches!(
        snapshot.restore(&Kvm::open().unwrap(), &file),
        Err(Error::Region { .. })
    ));
}

/// The tiles of AMX are 8 KiB beside the page that every vCPU has.
#[test]
#[ignore = "needs kvm"]
fn more_extended_registers_than_this_host_keeps_are_another_cpu() {
    const TILES: usize = 8192;
    let (vm, mut vcpu) = worker();
    let (snapshot, file) = take(&vm, &mut vcpu);
    let area = vcpu.xsave().unwrap();
    let mut bytes = snapshot.to_bytes();
    let at = bytes.windows(area.len()).position(|w| *w == *area).unwrap();
    let len = &mut bytes[at - 4..at];
    assert_eq!(*len, (area.len() as u32).to_le_bytes());
    len.copy_from_slice(&((area.len() + TILES) as u32).to_le_bytes());
    let end = at + area.len();
    bytes.splice(end..end, [0xa5; TILES]);
    let body = bytes.len() - 4;
    let checksum = crc32fast::hash(&bytes[..body]);
    bytes[body..].copy_from_slice(&checksum.to_le_bytes());

    let large = Snapshot::from_bytes(&bytes).unwrap();
    assert_eq!(large.to_bytes(), bytes);
    let e = large.restore(&Kvm::open().unwrap(), &file).unwrap_err();
    assert!(matches!(e, Error::OtherCpu { .. }), "{e}");
    let expected = format!(
        "{} bytes of extended registers (here {})",
        area.len() + TILES,
        area.len()
    );
    assert!(e.to_string().contains(&expected), "{e}");
}

/// The snapshot with other contents, and the checksum that they have.
fn changed(snapshot: &Snapshot, change: impl FnOnce(&mut Vec<u8>)) -> Snapshot {
    let mut bytes = snapshot.to_bytes();
    bytes.truncate(bytes.len() - 4);
    change(&mut bytes);
    let checksum = crc32fast::hash(&bytes);
    bytes.extend(checksum.to_le_bytes());
    Snapshot::from_bytes(&bytes).unwrap()
}

/// Where the file has the host's CPUID: behind its name and version, a count and seven words a leaf.
const HOST: usize = 15 + 4;

#[test]
#[ignore = "needs kvm"]
fn a_snapshot_of_another_cpu_says_what_is_missing_here() {
    let kvm = Kvm::open().unwrap();
    let (vm, mut vcpu) = worker();
    let (snapshot, file) = take(&vm, &mut vcpu);
    let here = kvm.supported_cpuid().unwrap();
    let place = |leaf: u32| {
        let index = here.leaves().iter().position(|l| l.leaf == leaf).unwrap();
        HOST + 4 + 28 * index
    };
    let refused = |snapshot: &Snapshot| match snapshot.restore(&kvm, &file) {
        Err(Error::OtherCpu { features }) => features,
        other => panic!("{other:?}"),
    };
    let other_vendor = changed(&snapshot, |bytes| {
        let ebx = place(0) + 4 * 4;
        bytes[ebx..ebx + 4].copy_from_slice(b"Fake");
    });
    let features = refused(&other_vendor);
    assert!(features[0].starts_with("vendor Fake"), "{features:?}");
    // No CPU has both.
    let missing = [Feature::VMX, Feature::SVM]
        .into_iter()
        .find(|f| !here.has(*f));
    let missing = missing.unwrap();
    let newer = changed(&snapshot, |bytes| {
        let ecx = place(missing.leaf) + 5 * 4;
        bytes[ecx + usize::from(missing.bit) / 8] |= 1 << (missing.bit % 8);
    });
    assert_eq!(refused(&newer), [missing.name]);
    changed(&snapshot, |_| {}).restore(&kvm, &file).unwrap();
}

#[test]
#[ignore = "needs kvm"]
fn regions_that_cannot_be_are_an_error_although_the_checksum_is_right() {
    let kvm = Kvm::open().unwrap();
    let (vm, mut vcpu) = worker();
    let (snapshot, file) = take(&vm, &mut vcpu);
    let leaves = kvm.supported_cpuid().unwrap().leaves().len();
    let absurd = changed(&snapshot, |bytes| {
        let regions = HOST + 4 + 28 * leaves;
        assert_eq!(bytes[regions..regions + 4], 1u32.to_le_bytes());
        let half: Vec<u8> = [0, 1u64 << 63]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        let two = [&2u32.to_le_bytes()[..], &half, &[0, 0], &half, &[0, 0]].concat();
        bytes.splice(regions..regions + 4 + 18, two);
    });
    let e = absurd.restore(&kvm, &file).unwrap_err();
    assert!(
        matches!(
            e,
            Error::Snapshot(SnapshotProblem::Invalid("list of regions"))
        ),
        "{e:?}"
    );
}

#[test]
#[ignore = "needs kvm"]
fn registers_that_the_next_run_sets_are_part_of_it() {
    // out 0x80, eax; hlt
    let vm = machine();
    vm.write(CODE, &[0x66, 0xe7, 0x80, 0xf4]).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    let mut registers = vcpu.registers().unwrap();
    registers.rax = 0x1234_5678;
    vcpu.set_registers_at_next_run(&registers);
    let (snapshot, file) = take(&vm, &mut vcpu);
    let (_vm, mut vcpus) = snapshot.restore(&Kvm::open().unwrap(), &file).unwrap();
    match vcpus[0].run().unwrap() {
        Exit::PortOut(out) => assert_eq!(out.value(), 0x1234_5678),
        other => panic!("{other:?}"),
    }
}

// Other hosts may not let a guest be a hypervisor.
#[test]
#[ignore = "needs lab"]
fn a_guest_that_is_a_hypervisor_is_not_saved() {
    const SVME: u64 = 1 << 12;
    let kvm = Kvm::open().unwrap();
    let (vm, mut vcpu) = worker();
    let mut sregs = vcpu.system_registers().unwrap();
    sregs.efer |= SVME;
    vcpu.set_system_registers(&sregs).unwrap();
    let e = Snapshot::take(&kvm, &vm, &[&mut vcpu]).unwrap_err();
    assert!(matches!(e, Error::CannotSave { .. }), "{e:?}");
    assert!(e.to_string().contains("hypervisor"), "{e}");
    sregs.efer &= !SVME;
    vcpu.set_system_registers(&sregs).unwrap();
    Snapshot::take(&kvm, &vm, &[&mut vcpu]).unwrap();
}

#[test]
#[ignore = "needs kvm"]
fn vcpus_of_another_machine_are_refused() {
    let ((vm, mut vcpu), (_other, mut foreign)) = (worker(), worker());
    let taken = Snapshot::take(&Kvm::open().unwrap(), &vm, &[&mut vcpu, &mut foreign]);
    assert!(
        matches!(taken, Err(Error::OtherMachine { id: 0 })),
        "{taken:?}"
    );
}

#[test]
fn what_is_no_snapshot_is_said_to_be_none() {
    let e = Snapshot::from_bytes(b"\x7fELF").unwrap_err();
    assert_eq!(
        e.to_string(),
        "cannot restore this snapshot: it is not a snapshot file: give the file that Snapshot::to_bytes made"
    );
    assert!(Snapshot::from_bytes(b"cofferdam-vcpu\n").is_err());
}

/// How many bytes of a file this process has pages for, in all mappings of it.
fn mapped_in(name: &str) -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut is_it = false;
    let mut kib = 0;
    for line in maps.lines() {
        if line
            .split(' ')
            .next()
            .is_some_and(|range| range.contains('-'))
        {
            is_it = line.contains(name);
        } else if let Some(size) = line.strip_prefix("Rss:").filter(|_| is_it) {
            kib += size.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
        }
    }
    kib << 10
}

#[test]
#[ignore = "needs kvm"]
fn restoring_reads_nothing_of_the_memory() {
    const SIZE: u64 = 16 << 20;
    let kvm = Kvm::open().unwrap();
    let vm = kvm.create_vm(&[Region::anonymous(0, SIZE)]).unwrap();
    // hlt
    vm.memory().fill(0, SIZE as usize, 0xf4).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    let name = format!("restored-{}", std::process::id());
    let file: File = memfd_create(&name, MemfdFlags::CLOEXEC).unwrap().into();
    vm.memory().save(&file).unwrap();
    let snapshot = Snapshot::take(&kvm, &vm, &[&mut vcpu]).unwrap();
    let (_vm, mut vcpus) = snapshot.restore(&kvm, &file).unwrap();
    assert_eq!(mapped_in(&name), 0);
    assert_eq!(vcpus[0].run().unwrap(), Exit::Halt);
    // The page of the instruction, and perhaps its neighbours.
    let touched = mapped_in(&name);
    assert!((0x1000..=0x10_0000).contains(&touched), "{touched}");
}

#[test]
fn saved_memory_has_holes_where_there_is_nothing() {
    use std::os::unix::fs::MetadataExt;
    let memory = GuestMemory::new(&[
        Region::anonymous(0, 0x10_0000),
        Region::anonymous(0x40_0000, 0x10_0000),
    ])
    .unwrap();
    memory.write(0x40_5000, b"there").unwrap();
    let file = memory_file();
    memory.save(&file).unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), 0x20_0000);
    assert_eq!(metadata.blocks() * 512, 0x1000);
    let back = GuestMemory::new(&[Region::file_private(0, 0x20_0000, file, 0)]).unwrap();
    let mut bytes = [0; 5];
    back.read(0x10_5000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"there");
}

#[test]
fn memory_that_was_never_touched_is_not_read_to_be_saved() {
    const PAGES: u64 = 1 << 14;
    let faults = || -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        after_name
            .split_whitespace()
            .nth(7)
            .unwrap()
            .parse()
            .unwrap()
    };
    let memory = GuestMemory::new(&[Region::anonymous(0, PAGES * 0x1000)]).unwrap();
    memory.write(0x100_5000, b"there").unwrap();
    let file = memory_file();
    let before = faults();
    memory.save(&file).unwrap();
    let during = faults() - before;
    assert!(during < PAGES / 8, "{during} faults");
    let back = GuestMemory::new(&[Region::file_private(0, PAGES * 0x1000, file, 0)]).unwrap();
    let mut bytes = [0; 5];
    back.read(0x100_5000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"there");
}

#[test]
#[ignore = "needs kvm"]
fn what_changed_brings_a_saved_memory_up_to_date() {
    use std::io::Read;
    let kvm = Kvm::open().unwrap();
    let logged = || {
        [
            Region::anonymous(0, 0x10_0000).log_dirty(),
            Region::anonymous(0x40_0000, 0x10_0000).log_dirty(),
        ]
    };
    let vm = kvm.create_vm(&logged()).unwrap();
    // again: inc dword [0x5000]; out 0x80, al; jmp again
    let code = [0x66, 0xff, 0x06, 0x00, 0x50, 0xe6, 0x80, 0xeb, 0xf7];
    vm.write(CODE, &code).unwrap();
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE as u16)).unwrap();
    let file = memory_file();
    vm.memory().save(&file).unwrap();
    // A kernel may log the page of a first read, too.
    assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
    vm.save_dirty(&file).unwrap();
    for round in 0..3u32 {
        assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
        vm.memory()
            .write_value(0x40_8000 + u64::from(round), round + 1)
            .unwrap();
        // That of the code is logged, too, if the kernel had to map it anew meanwhile.
        let saved = vm.save_dirty(&file).unwrap();
        assert!((2..=3).contains(&saved), "{saved}");
        assert_eq!(vm.save_dirty(&file).unwrap(), 0);
        let whole = memory_file();
        vm.memory().save(&whole).unwrap();
        let bytes = |file: &File| {
            let mut bytes = Vec::new();
            // Its own place in the file, which the duplicates share.
            let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert!(bytes(&file) == bytes(&whole), "round {round}");
    }
    // A failure loses nothing: the pages are written the next time.
    vm.memory().write_value(0x6000, 1u8).unwrap();
    let short = memory_file();
    short.set_len(vm.memory().size()).unwrap();
    let read_only = File::open(format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&short)
    ))
    .unwrap();
    assert!(matches!(
        vm.save_dirty(&read_only),
        Err(Error::MemoryFile { .. })
    ));
    assert_eq!(vm.save_dirty(&file).unwrap(), 1);
    // And what is restored keeps a log, too.
    while vcpu.settle().unwrap().is_some() {}
    let snapshot = Snapshot::take(&kvm, &vm, &[&mut vcpu]).unwrap();
    let snapshot = Snapshot::from_bytes(&snapshot.to_bytes()).unwrap();
    let (vm, mut vcpus) = snapshot.restore(&kvm, &file).unwrap();
    assert!(matches!(vcpus[0].run().unwrap(), Exit::PortOut(_)));
    assert!(vm.take_dirty(0).unwrap().iter().any(|page| page == 0x5000));

    let unlogged = machine();
    assert!(matches!(
        unlogged.save_dirty(&file),
        Err(Error::CannotSave { .. })
    ));
}
