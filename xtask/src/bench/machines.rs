//! `cargo xtask bench --machines`: a distribution's kernel under `cofferdam-vmm` and under QEMU's
//! microvm, in turn, in the lab; and snapshots of a small guest on this machine's own KVM.

mod guest;
mod snapshots;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::contender::quantile;
use super::{directory, done, order, write};
use crate::exec::{self, Interrupted};
use crate::lab::{self, End, Lab};
use crate::places;
use crate::tools::{self, Tool};
use guest::{Contender, Stage};

const TOOLS: [Tool; 3] = [
    Tool::program("qemu-system-x86_64", "qemu-system-x86", "be compared with"),
    Tool::program("ip", "iproute2", "make a network in the lab"),
    tools::CLOUD_KERNEL,
];
/// The stage's name in `/lab/out`.
const STAGE: &str = "stage.json";

/// One measured value.
#[derive(Serialize, Deserialize)]
struct Sample {
    measure: String,
    contender: Contender,
    value: f64,
}

/// What came of one measure: the medians.
#[derive(Serialize)]
struct Row {
    measure: String,
    medians: BTreeMap<&'static str, f64>,
}

#[derive(Serialize)]
struct Results {
    rounds: u32,
    machines: Vec<Row>,
    /// CPU time in ms that our program takes before a distribution's kernel runs.
    start_ms: f64,
    snapshots: Vec<snapshots::Row>,
}

pub(crate) fn run(rounds: u32) -> Result<()> {
    tools::require(&TOOLS)?;
    exec::catch_signals();
    let mut cargo = Command::new(places::cargo());
    cargo
        .args(["rustc", "--release", "--package", "vmm"])
        // Without the C library's own pages, as it is meant to be run.
        .args([
            "--bin",
            "cofferdam-vmm",
            "--",
            "-C",
            "target-feature=+crt-static",
        ])
        .current_dir(places::workspace());
    done(cargo, exec::aloud)?;
    let vmm = places::target().join("release/cofferdam-vmm");
    let shared = tempfile::Builder::new()
        .prefix("machines-")
        .tempdir_in(directory()?)
        .context("cannot make a temporary directory")?;

    let snapshots = snapshots::measure(&vmm, rounds)?;
    let mut stage = Stage::set(vmm, shared.path())?;
    let starts: Result<_> = (0..rounds).map(|_| stage.start()).collect();
    let start_ms = median(starts?).context("there are no rounds")?;
    let mut samples = Vec::new();
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        stage.round = round;
        let list = shared.path().join(STAGE);
        fs::write(&list, serde_json::to_vec(&stage)?)
            .with_context(|| format!("cannot write {}", list.display()))?;
        samples.extend(in_lab(shared.path())?);
    }

    let results = Results {
        rounds,
        machines: rows(&samples),
        start_ms,
        snapshots,
    };
    print(&results);
    println!("\nwritten: {}", write("machines", &results)?.display());
    Ok(())
}

/// Measures one round in a lab of its own.
fn in_lab(shared: &Path) -> Result<Vec<Sample>> {
    let lab = Lab {
        systemd: false,
        memory: 3072,
        cpus: lab::CPUS,
        timeout: None,
        kernel: None,
        out: shared.to_path_buf(),
        env: Vec::new(),
        terminal: false,
        input: None,
        command: vec!["/run/lab/agent".into(), "lab-machines".into()],
    };
    let mut samples = Samples::default();
    match lab.run(&mut samples, &mut io::stderr())? {
        End::Status(0) => Ok(samples.all),
        End::Status(status) => bail!("the lab's run ended with status {status}"),
        End::TimedOut(_) => bail!("the lab took too long"),
        End::Signal(_) => Err(Interrupted.into()),
    }
}

/// The lab's side.
pub(crate) fn run_inside() -> Result<ExitCode> {
    let list = Path::new("/lab/out").join(STAGE);
    let bytes = fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let stage: Stage = serde_json::from_slice(&bytes)?;
    stage.perform(|sample| {
        let mut line = serde_json::to_vec(&sample)?;
        line.push(b'\n');
        Ok(io::stdout().write_all(&line)?)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Takes the lab's output apart.
#[derive(Default)]
struct Samples {
    all: Vec<Sample>,
    line: Vec<u8>,
}

impl Write for Samples {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            self.all.push(serde_json::from_slice(&line)?);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn rows(samples: &[Sample]) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for sample in samples {
        if rows.iter().any(|r| r.measure == sample.measure) {
            continue;
        }
        let of = |contender: Contender| {
            let same = |s: &&Sample| s.measure == sample.measure && s.contender == contender;
            let values = samples.iter().filter(same).map(|s| s.value);
            median(values.collect()).map(|m| (contender.name(), m))
        };
        rows.push(Row {
            measure: sample.measure.clone(),
            medians: Contender::ALL.into_iter().filter_map(of).collect(),
        });
    }
    rows
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    (!values.is_empty()).then(|| quantile(&values, 50))
}

fn print(results: &Results) {
    println!("Medians of {} rounds in the lab:\n", results.rounds);
    print!("{:<34}", "");
    for contender in Contender::ALL {
        print!(" {:>16}", contender.name());
    }
    println!(" {:>8}", "ratio");
    for row in &results.machines {
        print!("{:<34}", row.measure);
        for contender in Contender::ALL {
            match row.medians.get(contender.name()) {
                Some(value) => print!(" {value:>16.2}"),
                None => print!(" {:>16}", ""),
            }
        }
        let of = |c: Contender| row.medians.get(c.name());
        match of(Contender::Qemu).zip(of(Contender::Ours)) {
            Some((theirs, ours)) if row.measure.ends_with("/s") => {
                println!(" {:>8.2}", ours / theirs);
            }
            Some((theirs, ours)) => println!(" {:>8.2}", theirs / ours),
            None => println!(),
        }
    }
    println!(
        "\nThe ratio says how many times as good {} is as {}.",
        Contender::Ours.name(),
        Contender::Qemu.name()
    );
    println!(
        "\nOn this machine, {} takes {:.2} ms of CPU time before the kernel runs.",
        Contender::Ours.name(),
        results.start_ms
    );
    println!("\nSnapshots of a guest that counts, on this machine's KVM:\n");
    snapshots::print(&results.snapshots);
}
