//! A guest that never ends, stopped by another thread and then by a deadline.
//!
//! `cargo run -p cofferdam-kvm-vcpu --example stop_from_another_thread`

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use kvm_vcpu::{Asm, Bits, Kvm, Mode, Reg, Region, Result};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let mut guest = Asm::new(Bits::B16, 0x1000);
    let forever = guest.here();
    guest.add(Reg::Bx, 1).jmp(forever);

    let vm = Kvm::open()?.create_vm(&[Region::anonymous(0, 0x10_000)])?;
    vm.write(0x1000, &guest.finish()?)?;
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, 0x1000))?;

    let handle = vcpu.handle()?;
    let kicker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(50));
        handle.kick();
    });
    println!("{:?} at count {}", vcpu.run()?, vcpu.registers()?.rbx);
    if kicker.join().is_err() {
        return Ok(ExitCode::FAILURE);
    }

    let deadline = Instant::now() + Duration::from_millis(50);
    let exit = vcpu.run_until(deadline)?;
    println!("{exit:?} at count {}", vcpu.registers()?.rbx);
    Ok(ExitCode::SUCCESS)
}
