//! A guest with an interrupt table of its own: it touches a page that is not there, and its handler
//! says where.
//!
//! `cargo run -p cofferdam-kvm-vcpu --example page_fault_handler`

use std::process::ExitCode;

use kvm_vcpu::{Asm, Bits, DescriptorTable, Exit, Kvm, Mode, PageTables, Reg, Region, Result, Vm};

const CODE: u64 = 0x1000;
const HANDLER: u64 = 0x2000;
const GDT: u64 = 0x3000;
const IDT: u64 = 0x4000;
const STACK: u64 = 0x8000;
const MISSING: u32 = 0x1234_5678;
const PAGE_FAULT: u64 = 14;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let vm = Kvm::open()?.create_vm(&[Region::anonymous(0, 0x20_0000)])?;

    let mut guest = Asm::new(Bits::B64, CODE);
    // mov esi, MISSING; mov al, [rsi]
    guest.mov(Reg::Si, MISSING).bytes(&[0x8a, 0x06]).hlt();
    vm.write(CODE, &guest.finish()?)?;
    let mut handler = Asm::new(Bits::B64, HANDLER);
    // The address is in CR2: out 0x80, eax.
    handler.mov_from_cr(Reg::Ax, 2).bytes(&[0xe7, 0x80]).hlt();
    vm.write(HANDLER, &handler.finish()?)?;
    tables(&vm)?;

    let mut pages = PageTables::new(0x10_0000, 0x8000);
    pages.identity(0x20_0000)?;
    let root = pages.install(vm.memory())?;
    let mut vcpu = vm.create_vcpu(0, &Mode::long(CODE, root).with_stack(STACK))?;
    let mut sregs = vcpu.system_registers()?;
    sregs.gdt = DescriptorTable {
        base: GDT,
        limit: 23,
    };
    sregs.idt = DescriptorTable {
        base: IDT,
        limit: 0xfff,
    };
    vcpu.set_system_registers(&sregs)?;

    loop {
        match vcpu.run()? {
            Exit::PortOut(out) => println!("page fault at {:#x}", out.value()),
            Exit::Halt => break,
            other => {
                println!("unexpected: {other:?}");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    // What the CPU pushed for the handler: error code, rip, cs.
    let rip: u64 = vm.read_value(vcpu.registers()?.rsp + 8)?;
    println!("the instruction was at {rip:#x}");
    Ok(ExitCode::SUCCESS)
}

/// The descriptors of 64-bit code and of data, and a gate to the handler.
fn tables(vm: &Vm) -> Result<()> {
    for (i, descriptor) in (0..).zip([0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffffu64]) {
        vm.memory().write_value(GDT + 8 * i, descriptor)?;
    }
    // Selector 8, present, interrupt gate; the offset is below 64 KiB.
    let gate = HANDLER | 8 << 16 | 0x8e00 << 32;
    vm.memory().write_value(IDT + 16 * PAGE_FAULT, gate)
}
