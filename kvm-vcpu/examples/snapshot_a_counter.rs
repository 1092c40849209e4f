//! A guest that counts, saved in the middle and resumed twice from the same place.
//!
//! `cargo run -p cofferdam-kvm-vcpu --example snapshot_a_counter`

use std::fs::File;
use std::process::ExitCode;
use std::time::Instant;

use kvm_vcpu::{Asm, Bits, Error, Exit, Kvm, Mode, Reg, Region, Result, Snapshot, Vcpu};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode> {
    let mut guest = Asm::new(Bits::B16, 0x1000);
    let again = guest.here();
    guest.add(Reg::Ax, 1).out_imm(0x80).jmp(again);

    let kvm = Kvm::open()?;
    let vm = kvm.create_vm(&[Region::anonymous(0, 0x1000_0000)])?;
    vm.write(0x1000, &guest.finish()?)?;
    let mut vcpu = vm.create_vcpu(0, &Mode::real(0, 0x1000))?;
    println!("counting:     {:?}", count(&mut vcpu, 5)?);
    while vcpu.settle()?.is_some() {}

    let memory = memory_file().map_err(|source| Error::MemoryFile {
        operation: "make a temporary file",
        source,
    })?;
    vm.memory().save(&memory)?;
    let saved = Snapshot::take(&kvm, &vm, &[&mut vcpu])?.to_bytes();
    println!(
        "saved {} bytes and {} of memory",
        saved.len(),
        vm.memory().size()
    );

    for _ in 0..2 {
        let start = Instant::now();
        let (_vm, mut vcpus) = Snapshot::from_bytes(&saved)?.restore(&kvm, &memory)?;
        let counted = count(&mut vcpus[0], 5)?;
        println!("resumed:      {counted:?} after {:?}", start.elapsed());
    }
    println!("the original: {:?}", count(&mut vcpu, 5)?);
    Ok(ExitCode::SUCCESS)
}

/// The next numbers that the guest writes.
fn count(vcpu: &mut Vcpu, how_many: usize) -> Result<Vec<u32>> {
    let mut numbers = Vec::new();
    while numbers.len() < how_many {
        match vcpu.run()? {
            Exit::PortOut(out) => numbers.push(out.value()),
            Exit::Interrupted => {}
            other => {
                println!("unexpected: {other:?}");
                std::process::exit(1);
            }
        }
    }
    Ok(numbers)
}

/// A file without a name, which is gone when it is closed.
fn memory_file() -> std::io::Result<File> {
    let path = std::env::temp_dir().join(format!("counter-{}", std::process::id()));
    let file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}
