//! One test program: running some of its tests and reading what libtest says of them.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::plan::Class;
use super::summary::{Outcome, Place};
use crate::exec;

/// A test program and its tests.
#[derive(Serialize, Deserialize)]
pub(crate) struct Binary {
    pub(crate) package: String,
    pub(crate) version: String,
    pub(crate) target: String,
    pub(crate) executable: PathBuf,
    /// The package's directory, which tests are run in.
    pub(crate) directory: PathBuf,
    pub(crate) tests: BTreeMap<String, Class>,
}

/// What holds for every test program of a run.
pub(crate) struct Settings {
    pub(crate) temporary: PathBuf,
    pub(crate) limit: Duration,
    /// How many cases of each property, if not the default.
    pub(crate) cases: Option<&'static str>,
}

/// What libtest says of a test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TestResult {
    Passed,
    Failed,
    /// And why, in the words of its attribute.
    Ignored(String),
}

impl Binary {
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.package, self.target)
    }

    pub(crate) fn names(&self, class: Class) -> Vec<&str> {
        let tests = self.tests.iter().filter(|(_, c)| **c == class);
        tests.map(|(name, _)| name.as_str()).collect()
    }

    /// The program, with the surroundings that cargo gives it.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .current_dir(&self.directory)
            .env("CARGO_MANIFEST_DIR", &self.directory)
            .env("CARGO_PKG_NAME", &self.package)
            .env("CARGO_PKG_VERSION", &self.version)
            // A test that signals its process group must not signal us.
            .process_group(0);
        command
    }

    /// Runs the tests of one class; `None` if there are none.
    pub(crate) fn run(
        &self,
        class: Class,
        place: Place,
        settings: &Settings,
    ) -> Result<Option<Outcome>> {
        let names = self.names(class);
        if names.is_empty() {
            return Ok(None);
        }
        let mut command = self.command();
        command.args(["--format", "pretty", "--color", "never", "--exact"]);
        // With a single thread libtest prints a test's name before the test and its result after:
        // what a program that the test starts prints would come between.
        let threads = std::thread::available_parallelism().map_or(2, |cpus| cpus.get().max(2));
        command.args(["--test-threads", &threads.to_string()]);
        if class.is_ignored() {
            command.arg("--ignored");
        }
        command.args(&names).env("TMPDIR", &settings.temporary);
        if let Some(cases) = settings.cases {
            command.env("PROPTEST_CASES", cases);
        }
        let ran = exec::run(command, settings.limit, exec::quiet)?;
        let mut outcome = Outcome::new(class, place, &self.name());
        outcome.time = ran.time;
        let results: BTreeMap<String, TestResult> = results(&ran.output).into_iter().collect();
        // What a test's child says may come amid a line; then the count at the end tells.
        let all = ran.success() && all_passed(&ran.output) == Some(names.len());
        for name in names {
            match results.get(name) {
                _ if all => outcome.passed.push(name.to_owned()),
                Some(TestResult::Passed) => outcome.passed.push(name.to_owned()),
                Some(TestResult::Failed) => outcome.failed.push(name.to_owned()),
                // The program ended, hung or said something else before this one was through.
                Some(TestResult::Ignored(_)) | None => {
                    outcome
                        .failed
                        .push(format!("{name} (no result: {})", ran.end()));
                }
            }
        }
        if !ran.success() && outcome.failed.is_empty() {
            outcome.failed.push(format!("(the program: {})", ran.end()));
        }
        if !outcome.failed.is_empty() {
            outcome.output = ran.output;
        }
        Ok(Some(outcome.said()))
    }
}

/// How many tests passed by libtest's closing line, if that says that none failed and none was left
/// out.
fn all_passed(output: &str) -> Option<usize> {
    let (_, closing) = output.rsplit_once("test result: ok. ")?;
    let (passed, rest) = closing.split_once(" passed; ")?;
    let none = rest.starts_with("0 failed; 0 ignored; 0 measured; ");
    passed.parse().ok().filter(|_| none)
}

/// The results in libtest's output: lines `test NAME ... ok`, perhaps after something that a child
/// process wrote without ending its line.
pub(crate) fn results(output: &str) -> Vec<(String, TestResult)> {
    let mut found = Vec::new();
    for line in output.lines() {
        let Some((before, after)) = line.rsplit_once(" ... ") else {
            continue;
        };
        let result = match after.trim_end() {
            "ok" => TestResult::Passed,
            "FAILED" => TestResult::Failed,
            "ignored" => TestResult::Ignored(String::new()),
            other => match other.strip_prefix("ignored, ") {
                Some(reason) => TestResult::Ignored(reason.to_owned()),
                None => continue,
            },
        };
        let Some(at) = before.rfind("test ") else {
            continue;
        };
        // Doc tests have spaces in their names, and "test " may be one of their words.
        let at = if before.starts_with("test ") { 0 } else { at };
        let name = &before[at + "test ".len()..];
        let name = name.strip_suffix(" - should panic").unwrap_or(name);
        found.push((name.to_owned(), result));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_read_from_what_libtest_prints() {
        let output = "\nrunning 4 tests\n\
            test a::b ... ok\n\
            noise of a childtest c ... FAILED\n\
            test d - should panic ... ok\n\
            test e ... ignored, needs root\n\
            test f ... ignored\n\
            test src/lib.rs - x (line 3) - compile ... ok\n\
            test result: FAILED. 1 passed; 1 failed\n";
        let ignored = |s: &str| TestResult::Ignored(s.to_owned());
        let expected = [
            ("a::b", TestResult::Passed),
            ("c", TestResult::Failed),
            ("d", TestResult::Passed),
            ("e", ignored("needs root")),
            ("f", ignored("")),
            ("src/lib.rs - x (line 3) - compile", TestResult::Passed),
        ];
        let expected = expected.map(|(name, result)| (name.to_owned(), result));
        assert_eq!(results(output), expected);
    }

    #[test]
    fn the_closing_line_tells_whether_all_passed() {
        let garbled = "\nrunning 2 tests\ntest a ... noise\nok\ntest b ... ok\n\n\
            test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s\n";
        assert_eq!(all_passed(garbled), Some(2));
        for other in [
            "test a ... ok\n",
            "test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out",
            "test result: ok. 1 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
        ] {
            assert_eq!(all_passed(other), None, "{other}");
        }
    }
}
