//! Saving and restoring a guest that counts, with little memory and with much.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{done, median};
use crate::exec;

const SIZES_MIB: [u64; 2] = [128, 2048];
const LIMIT: Duration = Duration::from_mins(1);

/// Medians for one size of memory.
#[derive(Serialize)]
pub(super) struct Row {
    memory_mib: u64,
    /// How long the machine stood still.
    stopped_ms: f64,
    /// From the start of the process that restores it to the guest's next instruction.
    restore_ms: f64,
}

pub(super) fn print(rows: &[Row]) {
    println!("{:>10} {:>14} {:>14}", "memory", "stopped", "restored in");
    for row in rows {
        println!(
            "{:>6} MiB {:>11.2} ms {:>11.2} ms",
            row.memory_mib, row.stopped_ms, row.restore_ms
        );
    }
}

pub(super) fn measure(vmm: &Path, rounds: u32) -> Result<Vec<Row>> {
    let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
    let guest = scratch.path().join("guest");
    let mut command = Command::new(vmm);
    command.args(["guest", "multiboot", "--output"]).arg(&guest);
    done(command, exec::aloud)?;
    let place = Place {
        vmm,
        scratch: scratch.path(),
    };
    let row = |memory_mib| place.row(memory_mib, &guest, rounds);
    SIZES_MIB.into_iter().map(row).collect()
}

struct Place<'a> {
    vmm: &'a Path,
    scratch: &'a Path,
}

impl Place<'_> {
    fn row(&self, memory_mib: u64, guest: &Path, rounds: u32) -> Result<Row> {
        let control = self.scratch.join("control");
        let mut command = Command::new(self.vmm);
        command
            .args(["boot", "--no-jail", "--memory", &memory_mib.to_string()])
            .arg("--kernel")
            .arg(guest)
            .arg("--control")
            .arg(&control);
        let machine = Machine::start(command)?;
        let mut stopped = Vec::new();
        let saved = self.scratch.join("saved");
        for _ in 0..rounds {
            exec::go_on()?;
            let body = serde_json::json!({ "to": saved }).to_string();
            let answer: Saved = ask(&control, "PUT /snapshot", &body)?;
            stopped.push(answer.stopped_us / 1e3);
        }
        drop(machine);
        let mut restored = Vec::new();
        for _ in 0..rounds {
            exec::go_on()?;
            restored.push(self.restore(&saved)?);
        }
        let missing = "there are no rounds";
        Ok(Row {
            memory_mib,
            stopped_ms: median(stopped).context(missing)?,
            restore_ms: median(restored).context(missing)?,
        })
    }

    fn restore(&self, saved: &Path) -> Result<f64> {
        let stats = self.scratch.join("stats");
        let mut command = Command::new(self.vmm);
        command
            .args(["restore", "--no-jail", "--timeout", "0.05", "--stats"])
            .arg(&stats)
            .arg(saved)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.status().context("cannot restore it")?;
        let text = std::fs::read(&stats).context("it wrote no statistics")?;
        let stats: Stats = serde_json::from_slice(&text)?;
        Ok(stats.process_start_to_first_run_us / 1e3)
    }
}

#[derive(Deserialize)]
struct Saved {
    stopped_us: f64,
}

#[derive(Deserialize)]
struct Stats {
    process_start_to_first_run_us: f64,
}

/// A machine that counts, and ends with this.
struct Machine(Child);

impl Machine {
    fn start(mut command: Command) -> Result<Machine> {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut machine = Machine(command.spawn().context("cannot start the machine")?);
        let mut output = machine.0.stdout.take().context("it has no output")?;
        output
            .read_exact(&mut [0; 100])
            .context("the guest does not count")?;
        // It must not wait for a reader.
        thread::spawn(move || std::io::copy(&mut output, &mut std::io::sink()));
        Ok(machine)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks the control socket, which is made before the guest runs.
fn ask<T: for<'a> Deserialize<'a>>(control: &Path, request: &str, body: &str) -> Result<T> {
    let mut stream = UnixStream::connect(control).context("cannot reach the control socket")?;
    stream.set_read_timeout(Some(LIMIT))?;
    let len = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        bail!("the control socket does not answer: {answer:?}");
    };
    ensure!(head.starts_with("HTTP/1.1 200"), "it refuses: {body}");
    Ok(serde_json::from_str(body)?)
}
