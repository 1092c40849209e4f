//! The tests that run in the lab: one boot for all of them, and one with systemd for those that
//! need it.
//!
//! The host writes the list of programs into the lab's `/lab/out`; this program, run inside, runs
//! them and prints one line of JSON for each outcome.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use super::binary::{Binary, Settings};
use super::plan::{Class, Plan};
use super::summary::{Outcome, Place, Summary};
use crate::exec::Interrupted;
use crate::lab::{self, End, Lab};

/// The list's name in `/lab/out`.
const LIST: &str = "tests.json";
/// A lab that has not run all tests by then hangs as a whole.
const LIMIT: Duration = Duration::from_hours(1);

/// How the lab is booted for some of the tests.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Boot {
    Plain,
    Systemd,
}

impl Boot {
    const ALL: [Boot; 2] = [Boot::Plain, Boot::Systemd];

    fn name(self) -> &'static str {
        match self {
            Boot::Plain => "plain",
            Boot::Systemd => "systemd",
        }
    }

    /// The classes that run in it, in this order.
    fn classes(self) -> &'static [Class] {
        match self {
            Boot::Plain => &[Class::Lab, Class::Root, Class::Kvm],
            Boot::Systemd => &[Class::Systemd],
        }
    }
}

pub(crate) fn run(plan: &Plan, limit: Duration, summary: &mut Summary) -> Result<()> {
    for boot in Boot::ALL {
        if boot.classes().iter().any(|class| plan.count(*class) > 0) {
            run_in(boot, plan, limit, summary)?;
        }
    }
    Ok(())
}

fn run_in(boot: Boot, plan: &Plan, limit: Duration, summary: &mut Summary) -> Result<()> {
    let parent = lab::directory();
    fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let shared = tempfile::Builder::new()
        .prefix("test-")
        .tempdir_in(&parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
    let list = shared.path().join(LIST);
    fs::write(&list, serde_json::to_vec(&plan.binaries)?)
        .with_context(|| format!("cannot write {}", list.display()))?;
    let lab = Lab {
        systemd: boot == Boot::Systemd,
        memory: 6144,
        cpus: lab::CPUS,
        timeout: Some(LIMIT),
        kernel: None,
        out: shared.path().to_path_buf(),
        env: Vec::new(),
        terminal: false,
        input: false,
        command: vec![
            "/run/lab/agent".into(),
            "lab-tests".into(),
            limit.as_secs().to_string().into(),
            boot.name().into(),
        ],
    };
    eprintln!("starting the lab ({})", boot.name());
    let mut outcomes = Outcomes {
        summary,
        seen: BTreeSet::new(),
        line: Vec::new(),
        wrong: None,
    };
    let end = lab.run(&mut outcomes, &mut io::stderr());
    let (wrong, seen) = (outcomes.wrong, outcomes.seen);
    let why = match end {
        Ok(End::Status(0)) if wrong.is_none() => "the lab did not run it".to_owned(),
        Ok(End::Status(0)) => "the lab's words on it could not be read".to_owned(),
        Ok(End::Status(status)) => format!("the lab's run of tests ended with status {status}"),
        Ok(End::TimedOut(limit)) => format!("the lab hung for {} s", limit.as_secs()),
        Ok(End::Signal(_)) => return Err(Interrupted.into()),
        Err(error) => format!("{error:#}"),
    };
    // What the lab did not come to has failed, and the rest of the summary stands.
    for &class in boot.classes() {
        for binary in &plan.binaries {
            let names = binary.names(class);
            if names.is_empty() || seen.contains(&(class, binary.name())) {
                continue;
            }
            let mut outcome = Outcome::new(class, Place::Lab, &binary.name());
            outcome.failed = names.into_iter().map(str::to_owned).collect();
            outcome.output.clone_from(&why);
            outcome.say();
            summary.add(outcome);
        }
    }
    Ok(())
}

/// Takes the lab's output apart into outcomes.
struct Outcomes<'a> {
    summary: &'a mut Summary,
    seen: BTreeSet<(Class, String)>,
    line: Vec<u8>,
    wrong: Option<serde_json::Error>,
}

impl Write for Outcomes<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|&b| b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            match serde_json::from_slice::<Outcome>(&line) {
                Ok(outcome) => {
                    outcome.say();
                    self.seen.insert((outcome.class, outcome.program.clone()));
                    self.summary.add(outcome);
                }
                Err(error) => self.wrong = Some(error),
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lab's side.
pub(crate) fn run_inside(limit: u64, boot: Boot) -> Result<ExitCode> {
    let list = Path::new("/lab/out").join(LIST);
    let bytes = fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?;
    let binaries: Vec<Binary> = serde_json::from_slice(&bytes)?;
    crate::exec::adopt_orphans()?;
    let settings = Settings {
        temporary: PathBuf::from(env::var_os("TMPDIR").unwrap_or_else(|| "/tmp".into())),
        limit: Duration::from_secs(limit),
        cases: None,
    };
    for &class in boot.classes() {
        for binary in &binaries {
            if let Some(outcome) = binary.run(class, Place::Lab, &settings)? {
                let mut line = serde_json::to_vec(&outcome)?;
                line.push(b'\n');
                io::stdout().write_all(&line)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
