//! Waiting for a process, and passing signals on to it meanwhile.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use anyhow::{Context as _, Result};
use namespaces::Child;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::signals::Signals;

/// What to do with a signal that comes for the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnSignal {
    /// Pass it on.
    Forward,
    /// Pass it on to the first process of a pid namespace. The kernel keeps from it every signal
    /// that it has no handler for, so that Ctrl-C would do nothing; what the signal would do to any
    /// other process, ending it, is done by SIGKILL.
    ForwardToInit,
}

/// Waits until the process has ended.
pub(crate) fn wait(
    child: &mut Child,
    signals: &mut Signals,
    on_signal: OnSignal,
) -> Result<ExitStatus> {
    let mut killed_for = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(match killed_for {
                Some(signal) if status.signal() == Some(SIGKILL) => ExitStatus::from_raw(signal),
                _ => status,
            });
        }
        {
            let mut fds = [
                PollFd::new(&*child, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the container"),
            }
        }
        for signal in signals.take() {
            if on_signal == OnSignal::ForwardToInit && !has_handler(child.pid(), signal) {
                child.kill()?;
                killed_for.get_or_insert(signal);
            } else {
                child.signal(signal)?;
            }
        }
    }
}

/// The exit status as a shell counts it: the program's own, or 128+N if signal N ended it.
pub(crate) fn exit_code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}

const SIGKILL: i32 = 9;

/// Whether the process catches or ignores the signal, by `/proc/PID/status`. The process is not
/// reaped yet, so its number still is its own.
fn has_handler(pid: u32, signal: i32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return false;
    };
    let bit = 1_u64 << (signal - 1);
    ["SigCgt:", "SigIgn:"].iter().any(|key| {
        let mask = status.lines().find_map(|line| line.strip_prefix(key));
        mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
            .is_some_and(|mask| mask & bit != 0)
    })
}
