//! Two vCPUs that talk through memory: one counts, the other answers each number.
//!
//! `cargo run -p cofferdam-kvm-vcpu --example two_vcpus`

use std::process::ExitCode;
use std::thread;

use kvm_vcpu::{Exit, Kvm, Mode, Region, Result, Vcpu};

const BALL: u64 = 0x8000;

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let vm = Kvm::open()?.create_vm(&[Region::anonymous(0, 0x10_000)])?;
    // Each waits until the ball is at its number, moves it on by one, and halts at 20:
    // again: mov ax, [0x8000]; cmp ax, 20; jae end; test al, 1; jz (or jnz) again; inc word [0x8000];
    // jmp again; end: hlt
    for (start, jump) in [(0x1000, 0x74), (0x2000, 0x75)] {
        vm.write(
            start,
            &[
                0xa1, 0x00, 0x80, 0x3d, 0x14, 0x00, 0x73, 0x0a, 0xa8, 0x01, jump, 0xf4, 0xff, 0x06,
                0x00, 0x80, 0xeb, 0xee, 0xf4,
            ],
        )?;
    }
    let mut odd = vm.create_vcpu(0, &Mode::real(0, 0x1000))?;
    let mut even = vm.create_vcpu(1, &Mode::real(0, 0x2000))?;
    let results = thread::scope(|scope| {
        let threads = [&mut odd, &mut even].map(|vcpu| scope.spawn(|| play(vcpu)));
        threads.map(thread::ScopedJoinHandle::join)
    });
    for result in results {
        match result {
            Ok(exit) => println!("{:?}", exit?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
    println!("the ball is at {}", vm.read_value::<u16>(BALL)?);
    Ok(ExitCode::SUCCESS)
}

fn play(vcpu: &mut Vcpu) -> Result<Exit> {
    loop {
        match vcpu.run()? {
            Exit::Interrupted => {}
            exit => return Ok(exit),
        }
    }
}
