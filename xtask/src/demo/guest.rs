//! The demo's guests: bare-metal programs on a virtual CPU.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::container::ROUNDS;
use super::programs::Programs;
use super::stage::Stage;
use super::table::median;

/// What a guest costs and sees.
pub(crate) struct Guests {
    /// From the start of the monitor to the guest's first output.
    pub(crate) first_output: Duration,
    /// Memory of the monitor beyond what the guest uses, in bytes.
    pub(crate) monitor_memory: u64,
    /// The hypervisor's signature that the guest reads from CPUID.
    pub(crate) hypervisor: String,
}

/// The part of the monitor's measurements that the demo reads.
#[derive(Deserialize)]
struct Stats {
    vmm_resident_bytes: u64,
}

/// Runs a guest in real mode and one in long mode; nothing where there is no usable `/dev/kvm`.
pub(crate) fn run(stage: &Stage, programs: &Programs) -> Result<Option<Guests>> {
    let mut greeting = String::new();
    for mode in ["real", "long"] {
        let file = stage.scratch().join(format!("{mode}.guest"));
        let written = stage.show(
            Command::new(&programs.vmm)
                .args(["guest", mode, "--output"])
                .arg(&file),
        )?;
        ensure!(written.code() == 0, "cannot write the guest");
        let outcome = stage.show(
            Command::new(&programs.vmm)
                .args(["boot", "--timeout", "30", "--kernel"])
                .arg(&file),
        )?;
        if outcome.code() == HOST_LACKS_SOMETHING {
            stage.say("No guest can run here; the message says what is missing.");
            return Ok(None);
        }
        ensure!(
            outcome.code() == 0,
            "the guest should end with status 0, and ended with {}",
            outcome.code()
        );
        greeting = outcome.stdout;
    }
    stage.say("No operating system in it: the program is alone on a CPU, first in 16-bit mode, then in 64-bit mode.");
    measure(stage, programs, &greeting).map(Some)
}

/// Exit status of `cofferdam-vmm` when the host has no `/dev/kvm`, or not for this user.
const HOST_LACKS_SOMETHING: i32 = 4;

fn measure(stage: &Stage, programs: &Programs, greeting: &str) -> Result<Guests> {
    let stats = stage.scratch().join("stats.json");
    let mut first_output = Vec::new();
    let mut monitor_memory = Vec::new();
    for _ in 0..ROUNDS {
        let mut command = Command::new(&programs.vmm);
        command
            .args(["boot", "--timeout", "30", "--kernel"])
            .arg(stage.scratch().join("long.guest"));
        let outcome = stage.quietly(command.arg("--stats").arg(&stats))?;
        first_output.push(outcome.first_output.context("the guest printed nothing")?);
        let text = fs::read(&stats).context("the monitor wrote no measurements")?;
        let stats: Stats = serde_json::from_slice(&text)
            .context("the monitor's measurements are not what was expected")?;
        monitor_memory.push(stats.vmm_resident_bytes);
    }
    Ok(Guests {
        first_output: median(first_output),
        monitor_memory: median(monitor_memory),
        hypervisor: greeting
            .lines()
            .find_map(|line| line.trim().strip_prefix("Hypervisor:"))
            .map(|line| line.trim().to_owned())
            .context("the guest does not tell its hypervisor")?,
    })
}
