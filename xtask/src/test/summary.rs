//! What came out: one line for each program as it ends, and a table at the end.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Needs;
use super::plan::Class;

/// Where tests ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Place {
    Here,
    Lab,
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Place::Here => "this machine",
            Place::Lab => "the lab",
        }
    }
}

/// How the tests of one class in one program came out.
#[derive(Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) class: Class,
    pub(crate) place: Place,
    pub(crate) program: String,
    pub(crate) passed: Vec<String>,
    pub(crate) failed: Vec<String>,
    /// All that the program said, if something failed.
    pub(crate) output: String,
    pub(crate) time: Duration,
}

impl Outcome {
    pub(crate) fn new(class: Class, place: Place, program: &str) -> Self {
        Outcome {
            class,
            place,
            program: program.to_owned(),
            passed: Vec::new(),
            failed: Vec::new(),
            output: String::new(),
            time: Duration::ZERO,
        }
    }

    pub(crate) fn say(&self) {
        let place = match self.place {
            Place::Here => "",
            Place::Lab => " in the lab",
        };
        let failed = match self.failed.len() {
            0 => String::new(),
            n => format!(", {n} FAILED: {}", self.failed.join(", ")),
        };
        eprintln!(
            "{:>8}  {}{place}: {} passed{failed} ({:.1} s)",
            self.class.name(),
            self.program,
            self.passed.len(),
            self.time.as_secs_f64()
        );
    }

    /// Says it, where this is not the lab, whose host says it.
    pub(crate) fn said(self) -> Self {
        if self.place == Place::Here {
            self.say();
        }
        self
    }
}

/// All outcomes of a run.
#[derive(Default)]
pub(crate) struct Summary {
    outcomes: Vec<Outcome>,
    remarks: Vec<String>,
}

/// How many tests passed and failed in all.
pub(crate) struct Totals {
    passed: usize,
    failed: usize,
}

impl Totals {
    pub(crate) fn is_good(&self) -> bool {
        self.failed == 0
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        if self.is_good() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }

    /// The closing line, in words that other programs read.
    pub(crate) fn print(&self) {
        println!("\n{} passed, {} failed", self.passed, self.failed);
    }
}

#[derive(Default)]
struct Row {
    passed: usize,
    failed: usize,
    time: Duration,
}

impl Summary {
    pub(crate) fn add(&mut self, outcome: Outcome) {
        self.outcomes.push(outcome);
    }

    /// What is no test's failure, but must be told.
    pub(crate) fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
    }

    /// How long a program's tests of one class took on this machine, if they have run.
    pub(crate) fn time_here(&self, class: Class, program: &str) -> Option<Duration> {
        let here =
            |o: &&Outcome| o.class == class && o.place == Place::Here && o.program == program;
        Some(self.outcomes.iter().find(here)?.time)
    }

    /// Prints failures in full, what was left behind, and the table.
    pub(crate) fn print(&self, without: &[Needs], quick: bool, left: &[String]) -> Totals {
        for outcome in self.outcomes.iter().filter(|o| !o.failed.is_empty()) {
            println!(
                "\n==== {} on {}, class {}: {} failed\n{}",
                outcome.program,
                outcome.place.name(),
                outcome.class.name(),
                outcome.failed.len(),
                outcome.output.trim_end()
            );
        }
        for remark in &self.remarks {
            println!("\n{remark}");
        }
        if !left.is_empty() {
            println!("\nThe tests left something behind on this machine:");
            for thing in left {
                println!("  {thing}");
            }
        }
        let mut rows: BTreeMap<(Class, Place), Row> = BTreeMap::new();
        for class in Class::ALL {
            for place in [Place::Here, Place::Lab] {
                if Self::may_run(class, place, without, quick) {
                    rows.entry((class, place)).or_default();
                }
            }
        }
        for outcome in &self.outcomes {
            let row = rows.entry((outcome.class, outcome.place)).or_default();
            row.passed += outcome.passed.len();
            row.failed += outcome.failed.len();
            row.time += outcome.time;
        }
        println!(
            "\n{:<9} {:<12} {:>7} {:>7} {:>8}",
            "class", "where", "passed", "failed", "time"
        );
        for ((class, place), row) in &rows {
            println!(
                "{:<9} {:<12} {:>7} {:>7} {:>6.1} s",
                class.name(),
                place.name(),
                row.passed,
                row.failed,
                row.time.as_secs_f64()
            );
        }
        if quick {
            println!("quick: left out are all tests that need root, kvm or the lab");
        } else if !without.is_empty() {
            let names: Vec<&str> = without.iter().map(|n| n.name()).collect();
            println!("left out by --without: {}", names.join(", "));
        }
        let failed: usize = rows.values().map(|r| r.failed).sum();
        Totals {
            passed: rows.values().map(|r| r.passed).sum(),
            // To leave something behind is a failure that belongs to no test.
            failed: failed + usize::from(!left.is_empty()),
        }
    }

    fn may_run(class: Class, place: Place, without: &[Needs], quick: bool) -> bool {
        let out = |needs| quick || without.contains(&needs);
        match (class, place) {
            (Class::Unit | Class::Doc | Class::Property, Place::Here) => true,
            (Class::Root, Place::Here) => !out(Needs::Root),
            (Class::Kvm, Place::Here) => !out(Needs::Kvm),
            (Class::Root | Class::Kvm | Class::Lab | Class::Systemd, Place::Lab) => {
                !out(Needs::Lab)
            }
            (Class::Lab | Class::Systemd, Place::Here)
            | (Class::Unit | Class::Doc | Class::Property, Place::Lab) => false,
        }
    }
}
