//! What must hold for every guest, with the host CPU and our own page walk as oracles.
#![allow(clippy::cast_possible_truncation)]

mod common;

// Running instructions on the host takes inline assembly.
#[allow(unsafe_code)]
#[path = "common/sys.rs"]
mod sys;

use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use common::{CODE, MEMORY, machine, modes};
use kvm_vcpu::{
    DebugRegisters, DescriptorTable, Error, Exit, Feature, FpuRegisters, IrqChip, Kvm, MapFlags,
    Mode, PageSize, PageTableProblem, PageTables, Region, Registers, Segment, Translation, Vcpu,
    Vm,
};
use proptest::prelude::*;
use sys::{ARITHMETIC, INSTRUCTIONS, Instruction, State};

/// As many cases as asked for, or else few enough for a quick run.
fn cases() -> ProptestConfig {
    match std::env::var("PROPTEST_CASES") {
        Ok(_) => ProptestConfig::default(),
        Err(_) => ProptestConfig::with_cases(32),
    }
}

/// Where the guest of the arithmetic test leaves its trace, top down.
const TRACE_TOP: u64 = 0xf000;

/// Guest code that runs the instructions, and pushes flags, `eax` and `edx` after each.
///
/// `wide` is the prefix for 32-bit operands. `mov` and `push` leave the flags alone.
fn traced(start: State, program: &[(&Instruction, u32)], wide: &[u8]) -> Vec<u8> {
    let mut code = Vec::new();
    let mov = |code: &mut Vec<u8>, register: u8, value: u32| {
        code.extend_from_slice(wide);
        code.push(0xb8 + register);
        code.extend(value.to_le_bytes());
    };
    mov(&mut code, 0, start.eax);
    mov(&mut code, 2, start.edx);
    for (instruction, operand) in program {
        mov(&mut code, 1, *operand);
        if is_division(instruction) {
            mov(&mut code, 2, 0);
        }
        code.extend_from_slice(wide);
        code.extend_from_slice(instruction.code);
        for push in [0x9c, 0x50, 0x52] {
            code.extend_from_slice(wide);
            code.push(push);
        }
        if is_division(instruction) {
            // test eax, eax: a division leaves even the carry undefined, which others go on from.
            code.extend_from_slice(wide);
            code.extend([0x85, 0xc0]);
        }
    }
    code.push(0xf4);
    code
}

fn is_division(instruction: &Instruction) -> bool {
    instruction.name.contains("div")
}

/// The same on the host; after each instruction what it left, and which flags of it count.
fn on_host(start: State, program: &[(&Instruction, u32)]) -> Vec<(State, u64)> {
    let mut state = start;
    let test = INSTRUCTIONS
        .iter()
        .find(|i| i.name == "test eax, ecx")
        .unwrap();
    // Undefined flags stay so until an instruction defines them again.
    let mut undefined = 0;
    program
        .iter()
        .map(|(instruction, operand)| {
            state.ecx = *operand;
            if is_division(instruction) {
                state.edx = 0;
            }
            state = (instruction.run)(state);
            let kept = kept(instruction, *operand);
            undefined = undefined & kept | instruction.undefined & !kept;
            let left = (state, ARITHMETIC & !undefined);
            if is_division(instruction) {
                let eax = state.eax;
                state.ecx = eax;
                state = (test.run)(state);
                undefined = test.undefined;
            }
            left
        })
        .collect()
}

/// Which flags are as before.
fn kept(instruction: &Instruction, operand: u32) -> u64 {
    use sys::{AF, CF, PF, SF, ZF};
    if operand.is_multiple_of(32) && instruction.name.ends_with("cl") {
        return ARITHMETIC;
    }
    match instruction.name.split(' ').next().unwrap_or("") {
        "rol" | "ror" | "rcl" | "rcr" => PF | AF | ZF | SF,
        "not" | "bswap" | "xchg" | "cmovc" => ARITHMETIC,
        "inc" | "dec" => CF,
        "bt" => ZF,
        _ => 0,
    }
}

/// One machine for all cases of a test, with a vCPU for each mode: making one takes longer than a case.
type Shared = LazyLock<(Vm, [Mode; 3], Mutex<[Vcpu; 3]>)>;

fn shared() -> (Vm, [Mode; 3], Mutex<[Vcpu; 3]>) {
    let vm = machine();
    let modes = modes(&vm);
    let vcpus = [0, 1, 2].map(|i| vm.create_vcpu(i, &modes[i as usize]).unwrap());
    (vm, modes, Mutex::new(vcpus))
}

fn program() -> impl Strategy<Value = (State, Vec<(&'static Instruction, u32)>)> {
    let operand = prop_oneof![any::<u32>(), 0..64u32, Just(u32::MAX), Just(1 << 31)];
    let one = (0..INSTRUCTIONS.len(), operand).prop_map(|(i, operand)| {
        let instruction = &INSTRUCTIONS[i];
        // The dividend is below 2^32: a positive divisor of 2 or more keeps `idiv` in range.
        let operand = if is_division(instruction) {
            (operand & 0x7fff_ffff) | 2
        } else {
            operand
        };
        (instruction, operand)
    });
    let start = (any::<u32>(), any::<u32>()).prop_map(|(eax, edx)| State {
        eax,
        edx,
        ecx: 0,
        flags: 0,
    });
    (start, prop::collection::vec(one, 1..40))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    #[ignore = "needs kvm"]
    fn arithmetic_in_every_mode_equals_the_hosts(((start, program), mode) in (program(), 0..3usize)) {
        static SHARED: Shared = LazyLock::new(shared);
        let (vm, modes, vcpus) = &*SHARED;
        let vcpu = &mut vcpus.lock().unwrap()[mode];
        let mode = modes[mode].clone().with_stack(TRACE_TOP);
        let (wide, width): (&[u8], u64) = match mode {
            Mode::Real { .. } => (&[0x66], 4),
            Mode::Protected { .. } => (&[], 4),
            _ => (&[], 8),
        };
        let code = traced(start, &program, wide);
        prop_assert!(CODE + (code.len() as u64) < TRACE_TOP - 40 * 3 * 8);
        vm.write(CODE, &code).unwrap();
        vcpu.set_mode(&mode).unwrap();
        prop_assert_eq!(vcpu.run().unwrap(), Exit::Halt);

        let mut at = TRACE_TOP;
        let mut pop = || {
            at -= width;
            vm.read_value::<u32>(at).unwrap()
        };
        for (i, (host, defined)) in on_host(start, &program).into_iter().enumerate() {
            let (flags, eax, edx) = (u64::from(pop()), pop(), pop());
            prop_assert_eq!(
                (eax, edx, flags & defined),
                (host.eax, host.edx, host.flags & defined),
                "instruction {}: {} with ecx {:#x}", i, program[i].0.name, program[i].1
            );
        }
    }

    #[test]
    #[ignore = "needs kvm"]
    fn registers_come_back_as_they_were_set(regs in registers(), segments in segments(), cr2: u64, base: u32, limit: u16) {
        static SHARED: Shared = LazyLock::new(shared);
        let (_, [.., long], vcpus) = &*SHARED;
        let vcpu = &vcpus.lock().unwrap()[2];
        vcpu.set_mode(long).unwrap();
        vcpu.set_registers(&regs).unwrap();
        prop_assert_eq!(vcpu.registers().unwrap(), regs);

        let mut sregs = vcpu.system_registers().unwrap();
        sregs.cr2 = cr2;
        sregs.gdt = DescriptorTable { base: base.into(), limit };
        sregs.idt = DescriptorTable { base: u64::from(base) << 8, limit: !limit };
        [sregs.ds, sregs.es, sregs.fs, sregs.gs] = segments;
        vcpu.set_system_registers(&sregs).unwrap();
        prop_assert_eq!(vcpu.system_registers().unwrap(), sregs);
        // And the general ones are what they were.
        prop_assert_eq!(vcpu.registers().unwrap(), regs);
    }

    #[test]
    #[ignore = "needs kvm"]
    fn vector_and_debug_registers_come_back_as_they_were_set(fpu in fpu(), debug in debug_registers()) {
        static SHARED: Shared = LazyLock::new(shared);
        let vcpu = &SHARED.2.lock().unwrap()[2];
        vcpu.set_fpu_registers(&fpu).unwrap();
        prop_assert_eq!(vcpu.fpu_registers().unwrap(), fpu);
        let area = vcpu.xsave().unwrap();
        vcpu.set_xsave(&area).unwrap();
        prop_assert_eq!(vcpu.xsave().unwrap(), area);
        vcpu.set_debug_registers(&debug).unwrap();
        prop_assert_eq!(vcpu.debug_registers().unwrap(), debug);
        prop_assert_eq!(vcpu.fpu_registers().unwrap(), fpu);
    }

    #[test]
    #[ignore = "needs kvm"]
    fn every_read_lands_where_the_walk_says(layout in layout(), probes in prop::collection::vec((0..8usize, any::<u64>()), 1..12)) {
        let huge = Kvm::open().unwrap().supported_cpuid().unwrap().has(Feature::PDPE1GB);
        let vm = machine();
        let mut tables = PageTables::new(common::TABLES, 0x4_0000);
        // The code, at an address that no layout uses.
        tables.map(CODE_PAGE, CODE, 0x1000, PageSize::Small, MapFlags::empty()).unwrap();
        let mut mapped = Vec::new();
        for mapping in layout.into_iter().filter(|m| huge || m.size != PageSize::Huge) {
            let result = tables.map(mapping.virt, mapping.physical, mapping.size.bytes(), mapping.size, mapping.flags);
            match result {
                Ok(()) => mapped.push(mapping.virt),
                Err(Error::PageTable { problem: PageTableProblem::Mapped, .. }) => {}
                Err(e) => return Err(TestCaseError::fail(e.to_string())),
            }
        }
        let root = tables.install(vm.memory()).unwrap();
        // mov rax, [rsi]; hlt
        vm.write(CODE, &[0x48, 0x8b, 0x06, 0xf4]).unwrap();
        let mode = Mode::long(CODE_PAGE, root);
        let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
        for (which, offset) in probes {
            // Near something mapped, most often; 8 bytes aligned, so that no read is in two pages.
            let virt = match mapped.get(which) {
                Some(start) => start.wrapping_add(offset % (4 << 20)) & !7,
                None => offset & !7,
            };
            check_read(&mut vcpu, &mode, virt, tables.walk(virt))?;
        }
    }
}

/// Reads through the guest's eyes what the walk says it sees.
fn check_read(
    vcpu: &mut Vcpu,
    mode: &Mode,
    virt: u64,
    expected: Option<Translation>,
) -> Result<(), TestCaseError> {
    const TAG: u64 = 0x7a67_7a67_0000_0000;
    if let Some(there) = expected {
        // The page tables themselves are left as they are.
        let tables = common::TABLES..common::TABLES + 0x4_0000;
        if there.physical + 8 > MEMORY
            || tables.contains(&there.physical)
            || there.physical & !0xfff == CODE
        {
            return Ok(());
        }
        vcpu.memory()
            .write_value(there.physical, TAG | there.physical)
            .unwrap();
    }
    vcpu.set_mode(mode).unwrap();
    let mut regs = vcpu.registers().unwrap();
    regs.rsi = virt;
    vcpu.set_registers(&regs).unwrap();
    let exit = vcpu.run().unwrap();
    if let Some(there) = expected {
        prop_assert_eq!(exit, Exit::Halt, "at {:#x}", virt);
        prop_assert_eq!(vcpu.registers().unwrap().rax, TAG | there.physical);
    } else {
        // A fault that no interrupt table handles.
        prop_assert_eq!(exit, Exit::Shutdown, "at {:#x}", virt);
    }
    Ok(())
}

/// A page that no random layout maps.
const CODE_PAGE: u64 = 0xffff_ffff_ffff_f000;

#[derive(Debug, Clone)]
struct Mapping {
    virt: u64,
    physical: u64,
    size: PageSize,
    flags: MapFlags,
}

fn layout() -> impl Strategy<Value = Vec<Mapping>> {
    let size = prop_oneof![
        4 => Just(PageSize::Small),
        2 => Just(PageSize::Large),
        1 => Just(PageSize::Huge),
    ];
    // Few different indexes, so that mappings share tables and collide.
    let index = prop_oneof![0..3u64, 509..511u64];
    let mapping = (
        size,
        [index.clone(), index.clone(), index.clone(), index],
        0..MEMORY >> 12,
        any::<bool>(),
    )
        .prop_map(|(size, [a, b, c, d], page, executable)| {
            let virt = (a << 39 | b << 30 | c << 21 | d << 12) & !(size.bytes() - 1);
            let virt = ((virt << 16).cast_signed() >> 16).cast_unsigned();
            let mut flags = MapFlags::WRITE;
            flags.set(MapFlags::NO_EXECUTE, !executable);
            Mapping {
                virt,
                physical: (page << 12) & !(size.bytes() - 1),
                size,
                flags,
            }
        });
    prop::collection::vec(mapping, 1..8)
}

fn registers() -> impl Strategy<Value = Registers> {
    (any::<[u64; 17]>(), any::<u64>()).prop_map(|(r, flags)| Registers {
        rax: r[0],
        rbx: r[1],
        rcx: r[2],
        rdx: r[3],
        rsi: r[4],
        rdi: r[5],
        rsp: r[6],
        rbp: r[7],
        r8: r[8],
        r9: r[9],
        r10: r[10],
        r11: r[11],
        r12: r[12],
        r13: r[13],
        r14: r[14],
        r15: r[15],
        rip: r[16],
        // The flags that a program may set; bit 1 is always one.
        rflags: flags & (ARITHMETIC | 1 << 9 | 1 << 10) | 2,
    })
}

fn fpu() -> impl Strategy<Value = FpuRegisters> {
    let words = any::<(u16, u16, u8, u16, u64, u64, u16)>();
    let st = any::<[[u8; 10]; 8]>();
    (words, st, any::<[u128; 16]>()).prop_map(|(words, st, xmm)| FpuRegisters {
        // The other bytes of a register are reserved.
        st: st.map(|bytes| std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))),
        control: words.0,
        status: words.1,
        tag: words.2,
        opcode: words.3,
        instruction: words.4,
        operand: words.5,
        xmm,
        mxcsr: words.6.into(),
    })
}

fn debug_registers() -> impl Strategy<Value = DebugRegisters> {
    any::<([u64; 4], u32, u32)>().prop_map(|(addresses, status, control)| DebugRegisters {
        addresses,
        status: status.into(),
        control: control.into(),
    })
}

fn segments() -> impl Strategy<Value = [Segment; 4]> {
    let one = (any::<u32>(), any::<u16>(), 0..4u8).prop_map(|(base, selector, dpl)| Segment {
        base: base.into(),
        limit: u32::MAX,
        selector,
        kind: 3,
        present: true,
        dpl,
        default_big: true,
        code_or_data: true,
        granularity: true,
        ..Segment::default()
    });
    [one.clone(), one.clone(), one.clone(), one]
}

proptest! {
    // A thousand, or more if asked for.
    #![proptest_config(ProptestConfig::with_cases(cases().cases.max(1000)))]

    /// A guest of random bytes, in a machine with and without interrupt controllers, does what it
    /// likes; this program comes back to its deadline whatever that is.
    #[test]
    #[ignore = "needs kvm"]
    fn random_guests_neither_panic_nor_hang_the_host(
        code in prop::collection::vec(any::<u8>(), 1..600),
        mode in 0..3usize,
        controllers: bool,
    ) {
        let vm = machine();
        if controllers {
            vm.create_irqchip(IrqChip::InKernel).unwrap();
        }
        vm.write(CODE, &code).unwrap();
        let mode = modes(&vm)[mode].clone();
        let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
        let deadline = Instant::now() + Duration::from_millis(2);
        let mut exits = 0;
        // A guest may put itself into a state that the kernel refuses to run, with an error.
        while let Ok(exit) = vcpu.run_until(deadline) {
            exits += 1;
            match exit {
                Exit::PortIn(read) => vcpu.reply(read.reply(exits)).unwrap(),
                Exit::MmioRead(read) => vcpu.reply(read.reply(exits.into())).unwrap(),
                Exit::PortOut(_) | Exit::MmioWrite(_) | Exit::Interrupted if exits < 1000 => {}
                _ => break,
            }
        }
        // It can be asked where it ended.
        vcpu.mode().unwrap();
        prop_assert!(Instant::now() < deadline + Duration::from_secs(10));
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    #[ignore = "needs kvm"]
    fn the_dirty_log_is_the_set_of_pages_that_the_guest_wrote(pages in prop::collection::btree_set(0..256u64, 1..20)) {
        const LOGGED: u64 = 0x20_0000;
        let kvm = Kvm::open().unwrap();
        let vm = kvm.create_vm(&[
            Region::anonymous(0, MEMORY),
            Region::anonymous(LOGGED, 0x10_0000).log_dirty(),
        ]).unwrap();
        // mov byte [page], 1 for each, in long mode: c6 04 25 disp32 imm8
        let mut code = Vec::new();
        for page in &pages {
            code.extend([0xc6, 0x04, 0x25]);
            code.extend((LOGGED as u32 + *page as u32 * 0x1000 + 5).to_le_bytes());
            code.push(1);
        }
        code.push(0xf4);
        vm.write(CODE, &code).unwrap();
        let mut tables = PageTables::new(common::TABLES, 0x8000);
        tables.identity(0x40_0000).unwrap();
        let root = tables.install(vm.memory()).unwrap();
        let mut vcpu = vm.create_vcpu(0, &Mode::long(CODE, root)).unwrap();
        prop_assert_eq!(vcpu.run().unwrap(), Exit::Halt);
        let written: Vec<u64> = pages.iter().map(|p| LOGGED + p * 0x1000).collect();
        prop_assert_eq!(vm.take_dirty(LOGGED).unwrap().iter().collect::<Vec<_>>(), written);
    }

    #[test]
    #[ignore = "needs kvm"]
    fn the_dirty_rings_are_the_set_of_pages_that_the_guest_wrote(pages in prop::collection::btree_set(0..2048u64, 1..900)) {
        const LOGGED: u64 = 0x20_0000;
        let kvm = Kvm::open().unwrap();
        let vm = kvm.create_vm(&[
            Region::anonymous(0, MEMORY),
            Region::anonymous(LOGGED, 0x80_0000).log_dirty(),
        ]).unwrap();
        vm.log_dirty_in_rings(2048).unwrap();
        // The list of addresses at 0x8000; next: lodsq; test rax, rax; jz end; mov [rax], al; jmp next; end: hlt
        let code = [0x48, 0xad, 0x48, 0x85, 0xc0, 0x74, 0x04, 0x88, 0x00, 0xeb, 0xf5, 0xf4];
        vm.write(CODE, &code).unwrap();
        let written: Vec<u64> = pages.iter().map(|p| LOGGED + p * 0x1000).collect();
        let list: Vec<u8> = written.iter().chain(&[0]).flat_map(|a| a.to_le_bytes()).collect();
        vm.write(0x8000, &list).unwrap();
        let mut tables = PageTables::new(common::TABLES, 0x1_0000);
        tables.identity(0xa0_0000).unwrap();
        let root = tables.install(vm.memory()).unwrap();
        let mode = Mode::long(CODE, root);
        let mut vcpu = vm.create_vcpu(0, &mode).unwrap();
        // Twice: what was taken is logged anew.
        for _ in 0..2 {
            vcpu.set_mode(&mode).unwrap();
            let mut regs = vcpu.registers().unwrap();
            regs.rsi = 0x8000;
            vcpu.set_registers(&regs).unwrap();
            prop_assert_eq!(vcpu.run().unwrap(), Exit::Halt);
            prop_assert_eq!(vm.take_dirty(LOGGED).unwrap().iter().collect::<Vec<_>>(), written.clone());
            prop_assert_eq!(vm.take_dirty(LOGGED).unwrap().count(), 0);
        }
    }

    #[test]
    fn snapshot_files_never_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = b"cofferdam-vcpu\n\x02\0\0\0".to_vec();
        bytes.extend(noise);
        let _whatever = kvm_vcpu::Snapshot::from_bytes(&bytes);
    }

    #[test]
    fn a_walk_finds_what_was_mapped_and_nothing_else(layout in layout(), offset: u64) {
        let mut tables = PageTables::new(0, 1 << 20);
        for m in layout {
            let before = tables.walk(m.virt);
            match tables.map(m.virt, m.physical, m.size.bytes(), m.size, m.flags) {
                Ok(()) => {
                    prop_assert_eq!(before, None);
                    let inside = offset % m.size.bytes();
                    let there = tables.walk(m.virt + inside).unwrap();
                    prop_assert_eq!(there.physical, m.physical + inside);
                    prop_assert_eq!((there.flags, there.size), (m.flags, m.size));
                }
                // Taken, itself or by a smaller page inside it.
                Err(_) => prop_assert!(before.is_some() || m.size != PageSize::Small),
            }
        }
    }

    #[test]
    fn elf_loading_never_panics(mut file in elf_like(), cut in 0..400usize, at in 0..200usize, byte: u8) {
        let memory = kvm_vcpu::GuestMemory::new(&[Region::anonymous(0, 0x4000)]).unwrap();
        if let Some(b) = file.get_mut(at) {
            *b = byte;
        }
        file.truncate(cut);
        let _whatever = kvm_vcpu::load_elf64(&memory, &file);
        let _whatever = kvm_vcpu::load_multiboot(&memory, &file, "", 0);
    }
}

/// An ELF header with one program header full of noise.
fn elf_like() -> impl Strategy<Value = Vec<u8>> {
    (
        any::<[u64; 6]>(),
        prop::collection::vec(any::<u8>(), 0..200),
    )
        .prop_map(|(words, tail)| {
            let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
            file.extend(0x1000u64.to_le_bytes());
            file.extend(64u64.to_le_bytes());
            file.extend([0; 14]);
            file.extend([56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
            file.resize(64, 0);
            file.extend([1, 0, 0, 0, 7, 0, 0, 0]);
            for word in words {
                // Small numbers get further than large ones.
                file.extend((word >> (word & 0x3f)).to_le_bytes());
            }
            file.extend(tail);
            file
        })
}
