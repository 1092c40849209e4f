//! A counter that threads and the kernel signal and wait for (eventfd(2)).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{EventfdFlags, eventfd};

/// A cheap clone of a handle on one eventfd.
#[derive(Debug, Clone)]
pub(crate) struct Event(Arc<OwnedFd>);

impl Event {
    pub(crate) fn new() -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self(Arc::new(fd)))
    }

    /// Signals it. The only error, a full counter, means that it is signalled already.
    pub(crate) fn signal(&self) {
        let _full = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    /// Takes all signals; says whether there were any.
    pub(crate) fn take(&self) -> bool {
        rustix::io::read(&*self.0, &mut [0; 8]).is_ok()
    }

    pub(crate) fn fd(&self) -> Arc<OwnedFd> {
        self.0.clone()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
