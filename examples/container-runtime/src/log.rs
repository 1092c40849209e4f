//! Where warnings and errors go: standard error, or the file that an engine names and reads.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::cli::{Global, LogFormat};

struct Log {
    file: Option<PathBuf>,
    format: LogFormat,
    debug: bool,
}

static LOG: OnceLock<Log> = OnceLock::new();

/// How much it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Warning,
    Error,
}

impl Level {
    /// As logrus has them, whose lines engines expect.
    fn name(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Writes to where the command line says from here on.
pub(crate) fn open(global: &Global) {
    let _ = LOG.set(Log {
        file: global
            .log
            .clone()
            .filter(|file| !file.as_os_str().is_empty()),
        format: global.log_format,
        debug: global.debug,
    });
}

/// Tells of something.
pub(crate) fn write(level: Level, what: &str) {
    let log = LOG.get();
    if level == Level::Debug && !log.is_some_and(|log| log.debug) {
        return;
    }
    let Some((log, file)) = log.and_then(|log| Some((log, log.file.as_ref()?))) else {
        print(level, what);
        return;
    };
    let now = jiff::Timestamp::now();
    let line = match log.format {
        LogFormat::Json => {
            let line = serde_json::json!({
                "level": level.name(),
                "msg": what,
                "time": format!("{now:.0}"),
            });
            format!("{line}\n")
        }
        LogFormat::Text => format!("time=\"{now:.0}\" level={} msg={what:?}\n", level.name()),
    };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if written.is_err() {
        print(level, what);
    } else if level == Level::Error {
        // An engine that shows what the command printed shows this, too.
        print(level, what);
    }
}

fn print(level: Level, what: &str) {
    let level = match level {
        Level::Error => "",
        Level::Warning => "warning: ",
        Level::Debug => "debug: ",
    };
    let _ = writeln!(std::io::stderr(), "cofferdam-runtime: {level}{what}");
}
