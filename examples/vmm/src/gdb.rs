//! `--gdb`: gdb has all vCPUs before their first instruction.
//!
//! gdb's `target remote PATH` connects to the Unix socket. A session ends when the guest does, when gdb
//! detaches, and when the machine is paused or saved: the guest then goes on without it.

use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;

use kvm_vcpu::{EffectiveDebugging, Exit, GdbEnd, Vcpu};

use crate::board::{Board, End};
use crate::error::Error;
use crate::processor::handle;

/// gdb, connected, and what it can have on this host.
pub(crate) struct Gdb {
    pub(crate) connection: UnixStream,
    pub(crate) effective: EffectiveDebugging,
}

impl Gdb {
    /// Lets gdb have the vCPUs until the session ends; `None` when the guest goes on without it.
    pub(crate) fn serve(
        self,
        first: &mut Vcpu,
        others: &mut [&mut Vcpu],
        board: &Board,
        may_run: impl Fn() -> bool,
    ) -> Result<Option<End>, Error> {
        let end = first.serve_gdb(others, self.effective, self.connection, |vcpu, exit| {
            board.stats.exit(&exit);
            if matches!(exit, Exit::Kicked) && !may_run() {
                return ControlFlow::Break(Ok(None));
            }
            match handle(vcpu, exit, board) {
                Ok(None) => ControlFlow::Continue(()),
                ended => ControlFlow::Break(ended),
            }
        })?;
        match end {
            GdbEnd::Detached => Ok(None),
            GdbEnd::Killed => Ok(Some(End::Stopped)),
            GdbEnd::Guest(ended) => ended,
        }
    }
}
