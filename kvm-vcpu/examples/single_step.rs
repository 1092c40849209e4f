//! A guest that is stopped after each instruction.
//!
//! `cargo run -p cofferdam-kvm-vcpu --example single_step`

use std::process::ExitCode;

use kvm_vcpu::{Asm, Bits, Cond, Exit, Kvm, Mode, Reg, Region, Result};

const CODE: u16 = 0x1000;
const HLT: u8 = 0xf4;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let mut guest = Asm::new(Bits::B16, CODE.into());
    guest.mov(Reg::Ax, 1).mov(Reg::Cx, 3);
    let again = guest.here();
    guest
        .add(Reg::Ax, 10)
        .sub(Reg::Cx, 1)
        .jump_if(Cond::NotEqual, again)
        .hlt();

    let vm = Kvm::open()?.create_vm(&[Region::anonymous(0, 0x10_000)])?;
    vm.write(CODE.into(), &guest.finish()?)?;
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE))?;
    vcpu.set_single_step(true)?;
    // A halt would be stepped over like any other instruction, so the host looks where it comes.
    while vm.read_value::<u8>(vcpu.registers()?.rip)? != HLT {
        let before = vcpu.registers()?.rip;
        let exit = vcpu.run()?;
        if !matches!(exit, Exit::Debug { .. }) {
            println!("unexpected: {exit:?}");
            return Ok(ExitCode::FAILURE);
        }
        let regs = vcpu.registers()?;
        // After a jump back nothing says how long the instruction was; the only one here has 4 bytes.
        let len = regs.rip.checked_sub(before).unwrap_or(4);
        let bytes = (before..before + len).map(|at| vm.read_value::<u8>(at));
        let shown: Vec<String> = bytes
            .map(|b| Ok(format!("{:02x}", b?)))
            .collect::<Result<_>>()?;
        println!(
            "{before:#x}: {:<21} ax={} cx={}",
            shown.join(" "),
            regs.rax,
            regs.rcx
        );
    }
    Ok(ExitCode::SUCCESS)
}
