//! A command that is measured, and how it is run once.

use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::exec;

/// The words of a command for the run with a number.
pub(crate) type Words = Box<dyn Fn(u32) -> Vec<OsString>>;

/// One of those that are compared.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// What is in the time that it takes, in one line.
    pub(crate) includes: &'static str,
    /// The command's words for a run with this number.
    pub(crate) words: Words,
    /// A file in which the command says how long its own preparation took, which is left out.
    pub(crate) report: Option<PathBuf>,
    pub(crate) times: Vec<Duration>,
}

/// How a contender came out.
#[derive(Serialize)]
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) includes: &'static str,
    pub(crate) median_ms: f64,
    /// A tenth of the runs were faster, a tenth slower.
    pub(crate) p10_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) times_the_floor: f64,
    pub(crate) runs: usize,
}

/// How one run went.
pub(crate) enum Once {
    Took(Duration),
    /// It failed; its last words.
    Failed(String),
}

impl Contender {
    /// Runs the command once.
    ///
    /// # Errors
    /// If it cannot be started, or if we are told to end.
    pub(crate) fn once(&self, number: u32) -> Result<Once> {
        let words = (self.words)(number);
        let (program, arguments) = words.split_first().context("a command has a word")?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let start = Instant::now();
        // Not `exec::run`, which looks only now and then whether the program has ended.
        let ran = command
            .output()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut took = start.elapsed();
        exec::go_on()?;
        if !ran.status.success() {
            let said = String::from_utf8_lossy(&ran.stderr);
            return Ok(Once::Failed(last_words(&said, ran.status)));
        }
        if let Some(report) = &self.report {
            took = took.saturating_sub(preparation(report)?);
        }
        Ok(Once::Took(took))
    }

    pub(crate) fn line(&self, floor: f64) -> Line {
        let mut times: Vec<f64> = self
            .times
            .iter()
            .map(|t| t.as_secs_f64() * 1000.0)
            .collect();
        times.sort_by(f64::total_cmp);
        let median = quantile(&times, 50);
        Line {
            name: self.name,
            includes: self.includes,
            median_ms: median,
            p10_ms: quantile(&times, 10),
            p90_ms: quantile(&times, 90),
            times_the_floor: median / floor,
            runs: times.len(),
        }
    }
}

/// What a command that failed said last, and how it ended.
pub(crate) fn last_words(said: &str, end: impl Display) -> String {
    let last = said.trim().lines().last().unwrap_or("it said nothing");
    format!("{last} ({end})")
}

/// The engine's report says how long it verified and unpacked the image.
fn preparation(report: &PathBuf) -> Result<Duration> {
    let shown = report.display();
    let text = fs::read(report).with_context(|| format!("cannot read {shown}"))?;
    let report: Report =
        serde_json::from_slice(&text).with_context(|| format!("cannot understand {shown}"))?;
    Ok(report.timings.unpack)
}

#[derive(Deserialize)]
struct Report {
    timings: Timings,
}

#[derive(Deserialize)]
struct Timings {
    unpack: Duration,
}

/// The value below which `percent` of the sorted values lie; between two, their weighted mean.
pub(crate) fn quantile(sorted: &[f64], percent: u32) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = f64::from(percent) / 100.0 * f64::from(u32::try_from(last).unwrap_or(u32::MAX));
    let below = last * percent as usize / 100;
    let above = (below + 1).min(last);
    sorted[below] + (sorted[above] - sorted[below]) * (at - at.floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "these values are exact")]
    fn quantiles_lie_between_the_values() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 50), 2.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 8.0], 50), 3.0);
        assert_eq!(quantile(&[1.0, 2.0, 4.0, 8.0, 16.0], 75), 8.0);
        assert_eq!(quantile(&[5.0], 90), 5.0);
        assert!(quantile(&[], 50).is_nan());
    }
}
