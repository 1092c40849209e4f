//! Waiting for the container, and passing signals and a terminal on to it meanwhile.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use anyhow::{Context as _, Result};
use namespaces::{Child, Process};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions, waitid};
use signal_hook::consts::SIGWINCH;

use crate::signals::Signals;
use crate::terminal::Joined;

/// Waits until the process has ended. With a terminal, this program's streams are joined to it.
pub(crate) fn wait(
    child: &mut Child,
    signals: &mut Signals,
    terminal: Option<OwnedFd>,
) -> Result<ExitStatus> {
    let mut joined = terminal.map(Joined::new).transpose()?;
    loop {
        if let Some(status) = child.try_wait()? {
            if let Some(joined) = &mut joined {
                joined.drain();
            }
            return Ok(status);
        }
        {
            let mut fds = vec![
                PollFd::new(&*child, PollFlags::IN),
                PollFd::new(signals, PollFlags::IN),
            ];
            if let Some(joined) = &joined {
                fds.extend(joined.poll_fds());
            }
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for the container"),
            }
        }
        if let Some(joined) = &mut joined {
            joined.pump();
        }
        for signal in signals.take() {
            match &joined {
                Some(joined) if signal == SIGWINCH => joined.resize(),
                _ => match child.signal(signal) {
                    // It has just ended.
                    Err(_) if child.try_wait()?.is_some() => {}
                    sent => sent?,
                },
            }
        }
    }
}

/// Waits until a child of this process has ended that somebody else has started for it. Its exit
/// status as a shell counts it.
pub(crate) fn wait_for(process: &Process, signals: &mut Signals) -> Result<u8> {
    let cannot = "cannot wait for the container";
    loop {
        let child = WaitId::PidFd(process.as_fd());
        match waitid(child, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
            Ok(None) | Err(Errno::INTR) => {}
            Ok(Some(status)) => {
                let code = status
                    .exit_status()
                    .unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or_default());
                return Ok(u8::try_from(code).unwrap_or(u8::MAX));
            }
            Err(error) => return Err(error).context(cannot),
        }
        let mut fds = [
            PollFd::new(process, PollFlags::IN),
            PollFd::new(&*signals, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context(cannot),
        }
        for signal in signals.take() {
            // It may have just ended, which is told above.
            let _ = process.signal(signal);
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
