//! The demo's containers: one to look at, the proofs, and the measurements.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::programs::Programs;
use super::stage::{Outcome, Stage};
use super::table::median;

/// How often what is timed is run.
pub(crate) const ROUNDS: usize = 5;

/// Exit status of the engine when the program is not in the image.
const NOT_FOUND: i32 = 127;

/// Exit status of the engine when it failed itself.
const ENGINE_FAILED: i32 = 125;

/// Runs containers of one image.
pub(crate) struct Containers<'a> {
    programs: &'a Programs,
    image: String,
    state: PathBuf,
    report: PathBuf,
}

/// What a process in a container sees.
pub(crate) struct Seen {
    pub(crate) kernel: String,
    pub(crate) processes: usize,
    /// The namespaces that are the host's own, by name.
    pub(crate) shared: Vec<String>,
    pub(crate) same_kernel: bool,
}

/// What a container costs.
pub(crate) struct Cost {
    /// From the start of the program to the first output.
    pub(crate) first_output: Duration,
    /// Of that, reading, verifying and unpacking the image.
    pub(crate) unpack: Duration,
    /// Memory of the engine while the container runs, in bytes.
    pub(crate) engine_memory: u64,
}

/// The part of the engine's report that the demo reads.
#[derive(Deserialize)]
struct Report {
    limits_not_set: Vec<LimitNotSet>,
    usage: Usage,
    engine_memory_bytes: Option<u64>,
    timings: Timings,
}

#[derive(Deserialize)]
struct LimitNotSet {
    option: String,
    reason: String,
}

#[derive(Deserialize)]
struct Usage {
    oom_kills: Option<u64>,
    pids_refused: Option<u64>,
    cpu: Option<Duration>,
}

#[derive(Deserialize)]
struct Timings {
    unpack: Duration,
    run: Duration,
}

impl Report {
    fn not_set(&self, option: &str) -> Option<&LimitNotSet> {
        self.limits_not_set
            .iter()
            .find(|limit| limit.option == option)
    }
}

impl<'a> Containers<'a> {
    pub(crate) fn new(stage: &Stage, programs: &'a Programs, image: String) -> Self {
        Self {
            programs,
            image,
            state: stage.scratch().join("containers"),
            report: stage.scratch().join("report.json"),
        }
    }

    fn command(&self, options: &[&str], inside: &[&str]) -> Command {
        let mut command = Command::new(&self.programs.engine);
        command
            .arg("--root")
            .arg(&self.state)
            .arg("run")
            .args(options);
        if !rustix::process::geteuid().is_root() {
            command.arg("--best-effort-limits");
        }
        command.arg(&self.image).args(inside);
        command
    }

    fn reported(
        &self,
        stage: &Stage,
        options: &[&str],
        inside: &[&str],
        show: bool,
    ) -> Result<(Outcome, Report)> {
        let report = self.report.to_string_lossy();
        let options = [options, &["--report", &report]].concat();
        let mut command = self.command(&options, inside);
        let outcome = if show {
            stage.show(&mut command)?
        } else {
            stage.quietly(&mut command)?
        };
        let text = fs::read(&self.report)
            .with_context(|| format!("the container was not started: {}", outcome.stderr.trim()))?;
        fs::remove_file(&self.report)?;
        let report = serde_json::from_slice(&text)
            .context("the engine's report is not what was expected")?;
        Ok((outcome, report))
    }

    /// A container with limits that writes to its root and ends with a status of its own; false if
    /// the image has no shell for that.
    pub(crate) fn first(&self, stage: &Stage) -> Result<bool> {
        let script = "echo hello from $(hostname); mkdir /data; echo new > /data/file; rm /etc/group; exit 7";
        let outcome = stage.show(&mut self.command(
            &[
                "--memory",
                "64M",
                "--pids",
                "32",
                "--cpus",
                "0.5",
                "--hostname",
                "cofferdam",
                "--summary",
            ],
            &["sh", "-c", script],
        ))?;
        match outcome.code() {
            7 => {}
            NOT_FOUND => return Ok(false),
            ENGINE_FAILED => bail!("cofferdam cannot run the image; its message is above"),
            code => bail!("the container's exit status should be 7, and is {code}"),
        }
        stage.say("The image itself is as it was: all of this went to a layer that is gone again.");
        Ok(true)
    }

    /// Shows that the container is alone and that its limits hold.
    pub(crate) fn proofs(&self, stage: &Stage) -> Result<Seen> {
        let seen = self.isolation(stage)?;
        self.memory_limit(stage)?;
        self.process_limit(stage)?;
        self.cpu_limit(stage)?;
        Ok(seen)
    }

    fn isolation(&self, stage: &Stage) -> Result<Seen> {
        // The shell counts by itself, so that it counts nothing that it started.
        let script = "set -- /proc/[0-9]*; echo processes $#; read h < /proc/sys/kernel/hostname; echo hostname $h";
        let outcome =
            stage.show(&mut self.command(&["--hostname", "inside"], &["sh", "-c", script]))?;
        let word = |key: &str| {
            let line = outcome
                .stdout
                .lines()
                .find_map(|line| line.strip_prefix(key));
            line.map(|value| value.trim().to_owned())
                .with_context(|| format!("the container printed no {key}"))
        };
        let processes = word("processes")?
            .parse()
            .context("not a number of processes")?;
        ensure!(
            processes == 1,
            "the container sees {processes} processes instead of its own only"
        );
        ensure!(
            word("hostname")? == "inside",
            "the container has not its own host name"
        );
        let host = fs::read_dir("/proc")
            .context("cannot read /proc")?
            .flatten();
        let host = host
            .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
            .count();
        stage.say(&format!(
            "It sees one process where the host has {host}, and a host name of its own."
        ));

        let script = "cat /proc/sys/kernel/osrelease /proc/sys/kernel/random/boot_id; \
                      for n in /proc/self/ns/*; do echo ${n##*/} $(readlink $n); done";
        let outcome = stage.quietly(&mut self.command(&[], &["sh", "-c", script]))?;
        let mut lines = outcome.stdout.lines();
        let kernel = lines.next().unwrap_or_default().to_owned();
        let boot = lines.next().unwrap_or_default();
        let here = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("cannot read the boot id")?;
        let shared = lines
            .filter_map(|line| line.split_once(' '))
            .filter(|(name, inside)| {
                // The `…_for_children` links name what a child would get; no namespace of their own.
                !name.ends_with("_for_children")
                    && fs::read_link(format!("/proc/self/ns/{name}"))
                        .is_ok_and(|own| own.as_os_str() == *inside)
            })
            .map(|(name, _)| name.to_owned())
            .collect();
        Ok(Seen {
            kernel,
            processes,
            shared,
            same_kernel: boot == here.trim(),
        })
    }

    fn memory_limit(&self, stage: &Stage) -> Result<()> {
        let inside = ["dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"];
        let (outcome, report) = self.reported(stage, &["--memory", "32M"], &inside, true)?;
        if let Some(limit) = report.not_set("--memory") {
            stage.say(&format!(
                "No memory limit could be set here: {}",
                limit.reason
            ));
            return Ok(());
        }
        let kills = report.usage.oom_kills.unwrap_or(0);
        ensure!(
            kills > 0 && outcome.code() == 137,
            "a process that wants 256 MiB under a limit of 32 MiB should be killed; exit status {}, {kills} kills",
            outcome.code()
        );
        stage.say("It wanted 256 MiB, its limit was 32 MiB: the kernel killed it for want of memory (exit status 137).");
        Ok(())
    }

    fn process_limit(&self, stage: &Stage) -> Result<()> {
        // Asked first with a harmless command: without a limit, the bomb would hit the host.
        let (_, report) = self.reported(stage, &["--pids", "24"], &["true"], false)?;
        if let Some(limit) = report.not_set("--pids") {
            stage.say(&format!(
                "No process limit could be set here, so no fork bomb: {}",
                limit.reason
            ));
            return Ok(());
        }
        let bomb = "bomb() { bomb | bomb & }; bomb 2>/dev/null; exec sleep 1";
        let (_, report) = self.reported(stage, &["--pids", "24"], &["sh", "-c", bomb], true)?;
        let refused = report.usage.pids_refused.unwrap_or(0);
        ensure!(
            refused > 0,
            "a fork bomb under a limit of 24 processes was never refused one"
        );
        stage.say(&format!(
            "The fork bomb stopped at 24 processes: {refused} more were refused, and all are gone."
        ));
        Ok(())
    }

    fn cpu_limit(&self, stage: &Stage) -> Result<()> {
        let busy = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done";
        let (_, report) = self.reported(stage, &["--cpus", "0.2"], &["sh", "-c", busy], true)?;
        if let Some(limit) = report.not_set("--cpus") {
            stage.say(&format!("No CPU limit could be set here: {}", limit.reason));
            return Ok(());
        }
        let cpu = report
            .usage
            .cpu
            .context("the kernel does not tell the container's CPU time")?;
        let share = cpu.as_secs_f64() / report.timings.run.as_secs_f64();
        ensure!(
            share < 0.5,
            "a busy loop under a limit of 0.2 CPUs had {share:.2}"
        );
        stage.say(&format!(
            "The busy loop had {:.0} ms of CPU in {:.0} ms, {share:.2} CPUs.",
            cpu.as_secs_f64() * 1e3,
            report.timings.run.as_secs_f64() * 1e3
        ));
        Ok(())
    }

    /// Times a container that says one word.
    pub(crate) fn measure(&self, stage: &Stage) -> Result<Cost> {
        let mut first_output = Vec::new();
        let mut unpack = Vec::new();
        let mut engine_memory = Vec::new();
        for _ in 0..ROUNDS {
            let (outcome, report) = self.reported(stage, &[], &["echo", "ready"], false)?;
            first_output.push(
                outcome
                    .first_output
                    .context("the container printed nothing")?,
            );
            unpack.push(report.timings.unpack);
            engine_memory.push(
                report
                    .engine_memory_bytes
                    .context("the kernel does not tell the engine's memory")?,
            );
        }
        Ok(Cost {
            first_output: median(first_output),
            unpack: median(unpack),
            engine_memory: median(engine_memory),
        })
    }
}
