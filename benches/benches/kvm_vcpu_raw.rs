//! vCPUs beside raw ioctls in C, alternating in one run: what the wrapper adds.
//!
//! Needs /dev/kvm and cc.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kvm_vcpu::{Exit, Kvm, Mode, Region, Vcpu, Vm};

/// How often each is measured; medians count.
const RUNS: usize = 15;

fn start(kvm: &Kvm, code: &[u8]) -> (Vm, Vcpu) {
    let vm = kvm
        .create_vm(&[Region::anonymous(0, 0x10_000)])
        .expect("a machine");
    vm.write(0x1000, code).expect("in memory");
    let vcpu = vm.create_vcpu(0, &Mode::real(0, 0x1000)).expect("a vCPU");
    (vm, vcpu)
}

/// Nanoseconds a round of what the C program does under the same name.
fn measure(kvm: &Kvm, what: &str, rounds: u32) -> f64 {
    let code: &[u8] = match what {
        "port" => &[0xe6, 0x80, 0xeb, 0xfc],
        "memory" => &[0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xa2, 0x00, 0x00, 0xeb, 0xfb],
        _ => &[0xf4],
    };
    let mut machine = (what != "machine").then(|| start(kvm, code));
    let began = Instant::now();
    for _ in 0..rounds {
        match (what, &mut machine) {
            ("registers", Some((_, vcpu))) => {
                let registers = vcpu.registers().expect("read");
                vcpu.set_registers(&registers).expect("written");
            }
            (_, Some((_, vcpu))) => match vcpu.run().expect("ran") {
                Exit::PortOut(out) => {
                    std::hint::black_box(out.data());
                }
                Exit::MmioWrite(write) => {
                    std::hint::black_box(write.data());
                }
                other => panic!("{other:?}"),
            },
            (_, None) => {
                let (_vm, mut vcpu) = start(kvm, code);
                assert_eq!(vcpu.run().expect("ran"), Exit::Halt);
            }
        }
    }
    began.elapsed().as_secs_f64() * 1e9 / f64::from(rounds)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // As a test (`cargo test --benches`) it is only built.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c/kvm.c");
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("kvm");
    let compiled = Command::new("cc")
        .args(["-O2", "-o"])
        .args([&program, &source])
        .status()
        .expect("cc is installed");
    assert!(compiled.success());
    let kvm = Kvm::open().expect("/dev/kvm");
    println!(
        "{:<34} {:>10} {:>10} {:>7}",
        "median of a round", "C", "kvm-vcpu", "ratio"
    );
    for (what, name, rounds) in [
        ("port", "exit for a port write", 20_000),
        ("memory", "exit for a memory-mapped write", 20_000),
        ("registers", "registers read and written", 50_000),
        ("machine", "machine made, run, dropped", 30),
    ] {
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..RUNS {
            let output = Command::new(&program)
                .args([what, &rounds.to_string()])
                .output()
                .expect("it runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            raw.push(text.trim().parse().expect("a number"));
            ours.push(measure(&kvm, what, rounds));
        }
        let (raw, ours) = (median(raw), median(ours));
        println!("{name:<34} {raw:>8.0}ns {ours:>8.0}ns {:>7.3}", ours / raw);
    }
}
