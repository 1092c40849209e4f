//! vCPUs beside raw ioctls in C, alternating in one run: what the wrapper adds.
//!
//! CPU time of the thread, which others that use the machine do not lengthen; for a kick, real time. Needs
//! /dev/kvm and cc.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kvm_vcpu::{Exit, Kvm, Mode, Region, Snapshot, Vcpu, Vm};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::time::{ClockId, clock_gettime};

/// What the C program does under a name, and how often.
struct What {
    name: &'static str,
    title: &'static str,
    /// How often in one sample.
    rounds: u32,
    /// How many samples are taken of each program; the fastest counts, which others disturbed least.
    samples: usize,
    /// Memory, and how much of it is in use, in MiB.
    memory: Option<(u64, u64)>,
}

const fn what(name: &'static str, title: &'static str, rounds: u32, samples: usize) -> What {
    What {
        name,
        title,
        rounds,
        samples,
        memory: None,
    }
}

const ALL: [What; 12] = [
    what("port", "exit for a port write", 2000, 80),
    what("port-read", "exit for a port read, answered", 2000, 80),
    what("memory", "exit for a memory-mapped write", 2000, 80),
    what(
        "memory-read",
        "exit for a memory-mapped read, answered",
        2000,
        80,
    ),
    what("stop", "kick, and a run that returns", 2000, 80),
    what("kick", "kick of a running guest (real time)", 100, 20),
    what("registers", "registers read and written", 5000, 60),
    what("machine", "machine made, run, dropped", 5, 40),
    What {
        memory: Some((128, 128)),
        ..what("save", "snapshot of 128 MiB, all in use", 1, 5)
    },
    What {
        memory: Some((4096, 512)),
        ..what("save", "snapshot of 4 GiB, 512 MiB in use", 1, 3)
    },
    What {
        memory: Some((128, 128)),
        ..what("restore", "restore of 128 MiB, run", 3, 20)
    },
    What {
        memory: Some((4096, 512)),
        ..what("restore", "restore of 4 GiB, run", 3, 20)
    },
];

fn start(kvm: &Kvm, code: &[u8], size: u64) -> (Vm, Vcpu) {
    let vm = kvm
        .create_vm(&[Region::anonymous(0, size)])
        .expect("a machine");
    vm.write(0x1000, code).expect("in memory");
    let vcpu = vm.create_vcpu(0, &Mode::real(0, 0x1000)).expect("a vCPU");
    (vm, vcpu)
}

fn cpu_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let time = Duration::try_from(time).expect("no time before the start");
    time.as_secs_f64() * 1e9
}

/// Nanoseconds a round.
fn timed(rounds: u32, mut round: impl FnMut()) -> f64 {
    let began = cpu_time();
    for _ in 0..rounds {
        round();
    }
    (cpu_time() - began) / f64::from(rounds)
}

fn memory_file() -> File {
    memfd_create("memory", MemfdFlags::CLOEXEC)
        .expect("a memfd")
        .into()
}

/// Nanoseconds a round of what the C program does under the same name.
fn measure(kvm: &Kvm, what: &What) -> f64 {
    let code: &[u8] = match what.name {
        "port" => &[0xe6, 0x80, 0xeb, 0xfc],
        "port-read" => &[0xe4, 0x80, 0xeb, 0xfc],
        "memory" => &[0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xa2, 0x00, 0x00, 0xeb, 0xfb],
        "memory-read" => &[0xb8, 0x00, 0x90, 0x8e, 0xd8, 0xa0, 0x00, 0x00, 0xeb, 0xfb],
        "stop" | "kick" => &[0xeb, 0xfe],
        _ => &[0xf4],
    };
    let (size, used) = what.memory.unwrap_or((0, 0));
    let size = (size << 20).max(0x10_000);
    if what.name == "machine" {
        return timed(what.rounds, || {
            let (_vm, mut vcpu) = start(kvm, code, size);
            assert_eq!(vcpu.run().expect("ran"), Exit::Halt);
        });
    }
    let (vm, mut vcpu) = start(kvm, code, size);
    for page in 0..(used << 20) / 4096 {
        vm.write(page * 4096 + 8, &[1]).expect("in memory");
    }
    match what.name {
        "registers" => timed(what.rounds, || {
            let registers = vcpu.registers().expect("read");
            vcpu.set_registers(&registers).expect("written");
        }),
        "stop" => {
            let handle = vcpu.handle().expect("a handle");
            timed(what.rounds, || {
                handle.kick();
                assert_eq!(vcpu.run().expect("ran"), Exit::Kicked);
            })
        }
        "kick" => kick(vcpu, what.rounds),
        "save" => {
            let file = memory_file();
            timed(what.rounds, || {
                let state = Snapshot::take(kvm, &vm, &[&mut vcpu]).expect("taken");
                std::hint::black_box(state.to_bytes());
                vm.memory().save(&file).expect("saved");
            })
        }
        "restore" => {
            let file = memory_file();
            vm.memory().save(&file).expect("saved");
            let state = Snapshot::take(kvm, &vm, &[&mut vcpu]).expect("taken");
            timed(what.rounds, || {
                let (_vm, mut vcpus) = state.restore(kvm, &file).expect("restored");
                assert_eq!(vcpus[0].run().expect("ran"), Exit::Halt);
            })
        }
        _ => timed(what.rounds, || match vcpu.run().expect("ran") {
            Exit::PortOut(out) => {
                std::hint::black_box(out.data());
            }
            Exit::MmioWrite(write) => {
                std::hint::black_box(write.data());
            }
            Exit::PortIn(read) => vcpu.reply(read.reply(1)).expect("replied"),
            Exit::MmioRead(read) => vcpu.reply(read.reply(1)).expect("replied"),
            other => panic!("{other:?}"),
        }),
    }
}

/// From the kick to the return in the other thread, in nanoseconds; the mean.
fn kick(mut vcpu: Vcpu, rounds: u32) -> f64 {
    let handle = vcpu.handle().expect("a handle");
    let (entering, kicked_at) = (AtomicU32::new(0), AtomicU64::new(0));
    let began = Instant::now();
    let now = || u64::try_from(began.elapsed().as_nanos()).expect("short");
    let total = thread::scope(|scope| {
        let runner = scope.spawn(|| {
            let mut total = 0;
            for _ in 0..rounds {
                entering.fetch_add(1, Ordering::SeqCst);
                assert_eq!(vcpu.run().expect("ran"), Exit::Kicked);
                total += now() - kicked_at.load(Ordering::SeqCst);
            }
            total
        });
        for round in 1..=rounds {
            while entering.load(Ordering::SeqCst) != round {
                thread::yield_now();
            }
            thread::sleep(Duration::from_micros(200));
            kicked_at.store(now(), Ordering::SeqCst);
            handle.kick();
        }
        runner.join().expect("no panic")
    });
    Duration::from_nanos(total).as_secs_f64() * 1e9 / f64::from(rounds)
}

fn fastest(samples: &[f64]) -> f64 {
    samples.iter().copied().fold(f64::INFINITY, f64::min)
}

/// With a unit that fits.
fn time(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n < 1e4 => format!("{n:.0} ns"),
        n if n < 1e7 => format!("{:.1} us", n / 1e3),
        n => format!("{:.1} ms", n / 1e6),
    }
}

fn main() {
    // As a test (`cargo test --benches`) it is only built.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    // Of the names that are given, or else all.
    let wanted: Vec<_> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with('-'))
        .collect();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c/kvm.c");
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("kvm");
    let compiled = Command::new("cc")
        .args(["-O2", "-pthread", "-o"])
        .args([&program, &source])
        .status()
        .expect("cc is installed");
    assert!(compiled.success());
    let kvm = Kvm::open().expect("/dev/kvm");
    let load = fs::read_to_string("/proc/loadavg").expect("/proc is mounted");
    println!("load {}", load.trim());
    println!(
        "{:<40} {:>10} {:>10} {:>7}",
        "fastest round", "C", "kvm-vcpu", "ratio"
    );
    for what in &ALL {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == what.name) {
            continue;
        }
        let (mut raw, mut ours) = (Vec::new(), Vec::new());
        for _ in 0..what.samples {
            let mut command = Command::new(&program);
            command.args([what.name, &what.rounds.to_string()]);
            if let Some((size, used)) = what.memory {
                command.args([size.to_string(), used.to_string()]);
            }
            let output = command.output().expect("it runs");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            raw.push(text.trim().parse().expect("a number"));
            ours.push(measure(&kvm, what));
        }
        let (raw, ours) = (fastest(&raw), fastest(&ours));
        println!(
            "{:<40} {:>10} {:>10} {:>7.3}",
            what.title,
            time(raw),
            time(ours),
            ours / raw
        );
    }
}
