//! A guest that says hello from 16-bit real mode, the mode that every x86 CPU starts in.
//!
//! `cargo run -p cofferdam-kvm-vcpu --example hello_real_mode`

use std::process::ExitCode;

use kvm_vcpu::{Asm, Bits, Cond, Console, Exit, Kvm, Mode, Reg, Region, Result};

const SERIAL: u16 = 0x3f8;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let mut guest = Asm::new(Bits::B16, 0x1000);
    let (text, done) = (guest.label(), guest.label());
    guest.mov_label(Reg::Si, text).mov(Reg::Dx, SERIAL.into());
    let next = guest.here();
    guest
        .lodsb()
        .cmp_al(0)
        .jump_if(Cond::Equal, done)
        .out_dx()
        .jmp(next);
    guest.place(done).hlt();
    guest.place(text).text("hello from real mode\n");

    let vm = Kvm::open()?.create_vm(&[Region::anonymous(0, 0x10_000)])?;
    vm.write(0x1000, &guest.finish()?)?;
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, 0x1000))?;

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
