//! Waiting for the container, and passing signals on to it meanwhile.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use anyhow::{Context as _, Result};
use namespaces::Child;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::signals::Signals;

/// Waits until the process has ended.
pub(crate) fn wait(child: &mut Child, signals: &mut Signals) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
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
            child.signal(signal)?;
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
