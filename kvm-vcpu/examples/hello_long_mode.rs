//! A guest that says hello from 64-bit long mode, reading its text through a page in the upper half
//! of the address space.
//!
//! `cargo run -p cofferdam-kvm-vcpu --example hello_long_mode`

use std::process::ExitCode;

use kvm_vcpu::{
    Asm, Bits, Cond, Console, Exit, Kvm, MapFlags, Mode, PageSize, PageTables, Reg, Region, Result,
};

const SERIAL: u16 = 0x3f8;
const CODE: u64 = 0x10_0000;
const TEXT: u64 = 0x5000;
const UPPER: u64 = 0xffff_8000_0000_0000;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let mut guest = Asm::new(Bits::B64, CODE);
    let done = guest.label();
    guest.mov(Reg::Dx, SERIAL.into());
    // mov rsi, UPPER
    guest.bytes(&[0x48, 0xbe]).bytes(&UPPER.to_le_bytes());
    let next = guest.here();
    guest
        .lodsb()
        .cmp_al(0)
        .jump_if(Cond::Equal, done)
        .out_dx()
        .jmp(next);
    guest.place(done).hlt();

    let vm = Kvm::open()?.create_vm(&[Region::anonymous(0, 0x20_0000)])?;
    vm.write(CODE, &guest.finish()?)?;
    vm.write(TEXT, b"hello from long mode\n\0")?;
    let mut tables = PageTables::new(0x1_0000, 0x1_0000);
    tables.identity(0x20_0000)?;
    tables.map(UPPER, TEXT, 0x1000, PageSize::Small, MapFlags::NO_EXECUTE)?;
    let root = tables.install(vm.memory())?;
    let mut vcpu = vm.create_vcpu(0, &Mode::long(CODE, root))?;

    let mut console = Console::at(SERIAL);
    loop {
        let exit = vcpu.run()?;
        if !console.take(&exit) {
            print!("{}", console.text());
            println!("then {exit:?} in {}", vcpu.mode()?);
            return Ok(if exit == Exit::Halt {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
}
