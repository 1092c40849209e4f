//! The tests that run in the lab: in one that boots plainly, and one with systemd for those that
//! need it. Where the machine has room, two labs share the work.
//!
//! The host writes the list of programs into the lab's `/lab/out`, and one line for each job to the
//! standard input of this program, run inside; that runs the job and answers with one line of JSON.
//! So the host knows what a lab was at when it stopped, and can go on in another.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::env;
use std::fs;
use std::io::{self, BufRead, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::binary::{Binary, Settings};
use super::plan::{Class, Plan};
use super::summary::{Outcome, Place, Summary};
use crate::exec::{self, Interrupted};
use crate::lab::{self, End, Lab};

/// The list's name in `/lab/out`.
const LIST: &str = "tests.json";
/// A lab's memory, in MiB.
const MEMORY: u32 = 6144;
/// What the rest of the machine needs beside the labs, in MiB.
const REST: u64 = 2048;
/// After so many labs one after another from which nothing came, there is no hope.
const IN_VAIN: u32 = 2;

/// How the lab is booted for some of the tests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Boot {
    Plain,
    Systemd,
}

impl Boot {
    fn name(self) -> &'static str {
        match self {
            Boot::Plain => "plain",
            Boot::Systemd => "systemd",
        }
    }

    /// The classes that run in it.
    fn classes(self) -> &'static [Class] {
        match self {
            Boot::Plain => &[Class::Lab, Class::Root, Class::Kvm],
            Boot::Systemd => &[Class::Systemd],
        }
    }
}

/// The tests of one class in one program.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Job {
    class: Class,
    /// Its place in the list of programs.
    binary: usize,
    /// Whether a lab has stopped over it once.
    again: bool,
}

/// What is still to be done, by all labs together, and what came out.
struct Work<'a> {
    plan: &'a Plan,
    limit: Duration,
    plain: Mutex<VecDeque<Job>>,
    systemd: Mutex<VecDeque<Job>>,
    summary: Mutex<&'a mut Summary>,
}

pub(crate) fn run(plan: &Plan, limit: Duration, summary: &mut Summary) -> Result<()> {
    let jobs = |boot: Boot| {
        let all = boot.classes().iter().flat_map(|&class| {
            let has = move |b: &Binary| !b.names(class).is_empty();
            let programs = plan.binaries.iter().enumerate();
            programs
                .filter(move |(_, b)| has(b))
                .map(move |(binary, _)| Job {
                    class,
                    binary,
                    again: false,
                })
        });
        // What took longest here goes first, so that the labs end at about the same time; what did
        // not run here boots kernels, and takes longer still.
        let mut all: Vec<Job> = all.collect();
        all.sort_by_key(|job| {
            let name = plan.binaries[job.binary].name();
            Reverse(summary.time_here(job.class, &name).unwrap_or(Duration::MAX))
        });
        Mutex::new(all.into())
    };
    let (plain, systemd) = (jobs(Boot::Plain), jobs(Boot::Systemd));
    let work = Work {
        plan,
        limit,
        plain,
        systemd,
        summary: Mutex::new(summary),
    };
    let work = &work;
    let second = (labs_at_once() > 1).then_some([Boot::Systemd, Boot::Plain]);
    thread::scope(|scope| {
        let first = scope.spawn(|| work.share([Boot::Plain, Boot::Systemd]));
        let second = second.map(|order| scope.spawn(move || work.share(order)));
        for worker in [Some(first), second].into_iter().flatten() {
            match worker.join() {
                Ok(result) => result?,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok(())
    })
}

/// Two labs if each has a CPU and memory, else one.
fn labs_at_once() -> usize {
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo.lines().find_map(|line| {
        let kib = line.strip_prefix("MemAvailable:")?.strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    let enough = 2 * u64::from(MEMORY) + REST;
    if cpus > 1 && available.is_some_and(|kib| kib / 1024 >= enough) {
        2
    } else {
        1
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work<'_> {
    fn queue(&self, boot: Boot) -> &Mutex<VecDeque<Job>> {
        match boot {
            Boot::Plain => &self.plain,
            Boot::Systemd => &self.systemd,
        }
    }

    fn next(&self, boot: Boot) -> Option<Job> {
        lock(self.queue(boot)).pop_front()
    }

    fn add(&self, outcome: Outcome) {
        outcome.say();
        lock(&self.summary).add(outcome);
    }

    /// Has failed what the lab could not do.
    fn fail(&self, job: Job, why: &str) {
        let binary = &self.plan.binaries[job.binary];
        let mut outcome = Outcome::new(job.class, Place::Lab, &binary.name());
        let names = binary.names(job.class).into_iter();
        outcome.failed = names.map(str::to_owned).collect();
        why.clone_into(&mut outcome.output);
        self.add(outcome);
    }

    /// Does jobs in one lab after another until there are none.
    fn share(&self, boots: [Boot; 2]) -> Result<()> {
        for boot in boots {
            let mut in_vain = 0;
            while let Some(job) = self.next(boot) {
                exec::go_on()?;
                let (done, stopped) = self.run_in(boot, job)?;
                in_vain = if done > 0 { 0 } else { in_vain + 1 };
                let Some((job, why)) = stopped else { continue };
                let name = self.plan.binaries[job.binary].name();
                let what = format!(
                    "the lab ({}) stopped at {name}, class {}: {why}",
                    boot.name(),
                    job.class.name()
                );
                eprintln!("{what}");
                if job.again || in_vain >= IN_VAIN {
                    self.fail(job, &what);
                } else {
                    lock(self.queue(boot)).push_front(Job { again: true, ..job });
                    lock(&self.summary).remark(format!("{what}\nwhat was left ran in another lab"));
                }
                if in_vain >= IN_VAIN {
                    while let Some(job) = self.next(boot) {
                        self.fail(job, &what);
                    }
                }
            }
        }
        Ok(())
    }

    /// Boots a lab and has it do this job and, while there are some, the next ones. Tells how many
    /// it did, and at which one it stopped and why.
    fn run_in(&self, boot: Boot, first: Job) -> Result<(usize, Option<(Job, String)>)> {
        let parent = lab::directory();
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let shared = tempfile::Builder::new()
            .prefix("test-")
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        let list = shared.path().join(LIST);
        fs::write(&list, serde_json::to_vec(&self.plan.binaries)?)
            .with_context(|| format!("cannot write {}", list.display()))?;
        let (input, jobs) = io::pipe().context("cannot make a pipe")?;
        let lab = Lab {
            systemd: boot == Boot::Systemd,
            memory: MEMORY,
            cpus: lab::CPUS,
            timeout: None,
            kernel: None,
            out: shared.path().to_path_buf(),
            env: Vec::new(),
            terminal: false,
            input: Some(Box::new(input)),
            command: vec![
                "/run/lab/agent".into(),
                "lab-tests".into(),
                self.limit.as_secs().to_string().into(),
            ],
        };
        eprintln!("starting a lab ({})", boot.name());
        let mut desk = Desk {
            work: self,
            boot,
            job: None,
            jobs: Some(jobs),
            line: Vec::new(),
            done: 0,
        };
        desk.give(Some(first)).context("cannot write to a pipe")?;
        let end = lab.run(&mut desk, &mut io::stderr());
        let why = match end {
            Ok(End::Status(status)) => format!("its run of tests ended with status {status}"),
            Ok(End::TimedOut(limit)) => format!("it had run for {} s", limit.as_secs()),
            Ok(End::Signal(_)) => return Err(Interrupted.into()),
            Err(error) => format!("{error:#}"),
        };
        Ok((desk.done, desk.job.map(|job| (job, why))))
    }
}

/// Where one lab's jobs are handed out and its outcomes come in.
struct Desk<'a, 'w> {
    work: &'a Work<'w>,
    boot: Boot,
    /// What the lab is at.
    job: Option<Job>,
    /// To the lab; closed when there is no more to do, which ends it.
    jobs: Option<PipeWriter>,
    line: Vec<u8>,
    done: usize,
}

impl Desk<'_, '_> {
    fn give(&mut self, job: Option<Job>) -> io::Result<()> {
        self.job = job;
        let Some(job) = job else {
            self.jobs = None;
            return Ok(());
        };
        let mut line = serde_json::to_vec(&job)?;
        line.push(b'\n');
        match &mut self.jobs {
            Some(jobs) => jobs.write_all(&line),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl Write for Desk<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            self.work.add(serde_json::from_slice(&line)?);
            self.done += 1;
            let next = self.work.next(self.boot);
            self.give(next)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lab's side.
pub(crate) fn run_inside(limit: u64) -> Result<ExitCode> {
    let list = Path::new("/lab/out").join(LIST);
    let bytes = fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let binaries: Vec<Binary> = serde_json::from_slice(&bytes)?;
    exec::adopt_orphans()?;
    let settings = Settings {
        temporary: PathBuf::from(env::var_os("TMPDIR").unwrap_or_else(|| "/tmp".into())),
        limit: Duration::from_secs(limit),
        cases: None,
    };
    for line in io::stdin().lock().lines() {
        let job: Job = serde_json::from_str(&line?)?;
        let binary = binaries.get(job.binary).context("no such program")?;
        let outcome = binary
            .run(job.class, Place::Lab, &settings)?
            .context("no such tests")?;
        let mut line = serde_json::to_vec(&outcome)?;
        line.push(b'\n');
        io::stdout().write_all(&line)?;
    }
    Ok(ExitCode::SUCCESS)
}
