//! Running other programs to their end, or to a limit, and leaving none of theirs behind.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// How often we look whether a program has ended.
const POLL: Duration = Duration::from_millis(10);
/// How long orphans may hold a program's output after its end.
const ORPHANS: Duration = Duration::from_millis(500);

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| {
    let flag = Arc::new(AtomicBool::new(false));
    // A signal that has a handler here is a default one for the programs that we run, also where we
    // were started with it ignored, as by nohup(1).
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        // Without a handler the signal ends us as it always did.
        let _ = signal_hook::flag::register(signal, Arc::clone(&flag));
    }
    flag
});

/// This program was told to end.
#[derive(Debug)]
pub(crate) struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// From now on a signal that ends us is noticed by [`go_on`], and by [`run`].
pub(crate) fn catch_signals() {
    LazyLock::force(&INTERRUPTED);
}

/// Whether to go on: an error if we were told to end.
pub(crate) fn go_on() -> Result<()> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// How a program ended, and what it said on both its outputs.
pub(crate) struct Ran {
    /// `None` where it was ended for running too long.
    pub(crate) status: Option<WaitStatus>,
    pub(crate) output: String,
    pub(crate) time: Duration,
}

impl Ran {
    pub(crate) fn success(&self) -> bool {
        self.status.is_some_and(|s| s.exit_status() == Some(0))
    }

    /// In words, for a message.
    pub(crate) fn end(&self) -> String {
        match self.status {
            None => format!("ended after {} s, it hung", self.time.as_secs()),
            Some(status) => match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => format!("exit status {code}"),
                (None, Some(signal)) => format!("killed by signal {signal}"),
                (None, None) => "stopped".to_owned(),
            },
        }
    }
}

/// Makes orphans of the programs we run our children, so that we see them and can end them.
pub(crate) fn adopt_orphans() -> Result<()> {
    // See prctl(2), PR_SET_CHILD_SUBREAPER. Any pid switches it on.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .context("cannot become the parent of orphans")
}

/// Runs a program without input to its end, passing what it says to `show` as well, which may
/// print it.
///
/// # Errors
/// If it cannot be started, or if we are told to end meanwhile; then nothing of it is left.
pub(crate) fn run(
    mut command: Command,
    limit: Duration,
    mut show: impl FnMut(&[u8]) + Send + 'static,
) -> Result<Ran> {
    catch_signals();
    let started = Instant::now();
    let name = command.get_program().display().to_string();
    let (mut reader, writer) = io::pipe().context("cannot make a pipe")?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    // It holds our copies of the pipe's end for writing.
    drop(command);
    let pid = Pid::from_child(&child);
    let output = Arc::new(Mutex::new(Vec::new()));
    let collected = Arc::clone(&output);
    let reading = thread::spawn(move || {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = reader.read(&mut buffer) {
            show(&buffer[..n]);
            let mut all = collected.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend_from_slice(&buffer[..n]);
        }
    });
    let mut status = None;
    while status.is_none() {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((ended, how))) if ended == pid => status = Some(how),
            // An orphan that we adopted.
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => thread::sleep(POLL),
        }
        if let Err(interrupted) = go_on() {
            end_all();
            return Err(interrupted);
        }
        if status.is_none() && started.elapsed() > limit {
            let waiting = waiting();
            let mut all = output.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend_from_slice(waiting.as_bytes());
            drop(all);
            end_all();
            break;
        }
    }
    let time = started.elapsed();
    let ended = Instant::now();
    while !reading.is_finished() && ended.elapsed() < ORPHANS {
        thread::sleep(POLL);
    }
    let output = output.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(Ran {
        status,
        output: String::from_utf8_lossy(&output).into_owned(),
        time,
    })
}

/// Something for `show` that says nothing.
pub(crate) fn quiet(_: &[u8]) {}

/// Something for `show` that passes everything on to standard error.
pub(crate) fn aloud(bytes: &[u8]) {
    // Where nobody listens, the collected output still has it.
    let _ = io::stderr().write_all(bytes);
}

/// Ends every process that descends from this one.
pub(crate) fn end_all() {
    for _ in 0..200 {
        let rest = descendants();
        if rest.is_empty() {
            return;
        }
        for process in &rest {
            if let Some(pid) = i32::try_from(process.pid).ok().and_then(Pid::from_raw) {
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        while let Ok(Some(_)) = rustix::process::wait(WaitOptions::NOHANG) {}
        thread::sleep(POLL);
    }
}

/// A process, with its command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) command: String,
}

/// Every live process that descends from this one.
pub(crate) fn descendants() -> Vec<Process> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        if let Some(parent) = parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut next = vec![std::process::id()];
    while let Some(pid) = next.pop() {
        for child in children.remove(&pid).unwrap_or_default() {
            next.push(child);
            let line = fs::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let words = String::from_utf8_lossy(&line).replace('\0', " ");
            found.push(Process {
                pid: child,
                command: words.trim().to_owned(),
            });
        }
    }
    found.sort();
    found
}

/// What every process that descends from this one is, and what each of its threads waits for: for
/// whoever wants to know why they hang.
fn waiting() -> String {
    let mut text = "\nstill there, with what their threads wait for:\n".to_owned();
    for Process { pid, command } in descendants() {
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        let waits = threads.into_iter().flatten().flatten().map(|thread| {
            let wait = fs::read_to_string(thread.path().join("wchan")).unwrap_or_default();
            // A thread that runs waits for nothing.
            if wait == "0" {
                "running".to_owned()
            } else {
                wait
            }
        });
        let waits: Vec<String> = waits.collect();
        let parent = parent_of(pid).unwrap_or_default();
        let _ = writeln!(text, "{pid} of {parent}: {command}: {}", waits.join(", "));
    }
    text
}

/// The parent of a process that is alive: the fourth field of proc_pid_stat(5), after a name that
/// may hold anything.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z" && state != "X").then_some(parent)
}
