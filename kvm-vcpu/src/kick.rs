use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{Error, Result, protocol, sys};

/// The protocol, with this program's signal.
pub(crate) type Shared = protocol::Shared<fn(i32)>;

/// Stops or pauses a running vCPU, from any thread.
///
/// A handle keeps working, without effect, when its vCPU is gone. Clones act on the same vCPU.
#[derive(Debug, Clone)]
pub struct VcpuHandle {
    shared: Arc<Shared>,
}

impl VcpuHandle {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Makes the vCPU's present run, or else its next one, return
    /// [`Exit::Kicked`](crate::Exit::Kicked).
    ///
    /// Kicks are not counted: any number of them before that exit make one exit. An exit that the
    /// guest made at the same moment is returned first, and the kick by the run after it; neither
    /// is lost. Do not call it in a signal handler.
    pub fn kick(&self) {
        self.shared.kick();
    }

    /// Takes the vCPU out of the guest and keeps it out: when this returns, no instruction of the guest
    /// is executed until [`VcpuHandle::resume`]. Pausing twice is as pausing once.
    ///
    /// A thread that is in `run`, or calls it meanwhile, waits there; what the kernel had begun is
    /// complete then. A kick and a deadline end its wait as they end a run. An exit that the guest made
    /// at the same moment is still returned and can be handled.
    pub fn pause(&self) {
        self.shared.pause();
    }

    /// Lets a paused vCPU go on.
    pub fn resume(&self) {
        self.shared.resume();
    }

    /// Whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.shared.is_paused()
    }
}

/// Signals a thread.
pub(crate) fn signal(tid: i32) {
    let number = SIGNAL.load(Ordering::Relaxed);
    // EAGAIN: the queue of real-time signals is full, which passes. Any other error means that the
    // thread is gone, and it cannot be while it is in `run`.
    while let Err(e) = sys::signal_thread(tid, number) {
        if e.raw_os_error() != Some(libc::EAGAIN) {
            break;
        }
        std::thread::yield_now();
    }
}

/// The signal's number; 0 until it is chosen.
static SIGNAL: AtomicI32 = AtomicI32::new(0);
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// Chooses the real-time signal that stops running vCPUs in this process.
///
/// It has to be one that the program does not use otherwise; the default is `SIGRTMIN + 4`. A
/// program that never makes a [`VcpuHandle`] and never calls
/// [`Vcpu::run_until`](crate::Vcpu::run_until) has no handler installed at all.
///
/// # Errors
///
/// [`Error::BadSignal`] when it is not a real-time signal or vCPUs use another already.
pub fn set_kick_signal(signal: i32) -> Result<()> {
    let installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let taken = *installed && SIGNAL.load(Ordering::Relaxed) != signal;
    if taken || !sys::realtime_signals().contains(&signal) {
        return Err(Error::BadSignal { signal });
    }
    SIGNAL.store(signal, Ordering::Relaxed);
    Ok(())
}

/// Installs the handler, once; returns the signal.
pub(crate) fn install() -> Result<i32> {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut signal = SIGNAL.load(Ordering::Relaxed);
    if *installed {
        return Ok(signal);
    }
    if signal == 0 {
        signal = sys::realtime_signals().start() + 4;
    }
    match sys::install_kick_handler(signal) {
        Ok(true) => {
            SIGNAL.store(signal, Ordering::Relaxed);
            *installed = true;
            Ok(signal)
        }
        Ok(false) => Err(Error::SignalInUse { signal }),
        Err(source) => Err(Error::Ioctl {
            operation: "sigaction (installing the handler that stops vCPUs)",
            source,
        }),
    }
}

/// Makes sure that this thread can be signalled, once for each thread.
pub(crate) fn unblock() -> Result<()> {
    thread_local!(static DONE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if DONE.get() {
        return Ok(());
    }
    let signal = SIGNAL.load(Ordering::Relaxed);
    if signal != 0 {
        sys::unblock(signal).map_err(|source| Error::Ioctl {
            operation: "pthread_sigmask (letting this thread be stopped)",
            source,
        })?;
        DONE.set(true);
    }
    Ok(())
}
