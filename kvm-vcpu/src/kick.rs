use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::{Error, Result, sys};

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
        self.shared.paused.load(Ordering::SeqCst)
    }
}

/// The vCPU is not in `run`.
const OUT: u8 = 0;
/// A thread is in `run`, and nobody has signalled it.
const IN: u8 = 1;
/// A kicker is about to signal the thread, which cannot leave `run` until it has.
const KICKING: u8 = 2;
/// The thread has been signalled in this run, which is enough for all who kick meanwhile.
const SIGNALLED: u8 = 3;

/// What a vCPU and its handles share.
///
/// A kick is `pending` until a run returns it. The signal only wakes the thread; it carries nothing.
/// Whoever kicks sets `pending` and then looks at `state`; whoever enters `run` sets `state` and then
/// looks at `pending`: with sequentially consistent accesses at least one of them sees the other.
#[derive(Debug)]
pub(crate) struct Shared {
    pending: AtomicBool,
    state: AtomicU8,
    tid: AtomicI32,
    paused: AtomicBool,
    /// Where a thread waits while the vCPU is paused.
    waiting: Mutex<()>,
    changed: Condvar,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            pending: AtomicBool::new(false),
            state: AtomicU8::new(OUT),
            tid: AtomicI32::new(0),
            paused: AtomicBool::new(false),
            waiting: Mutex::new(()),
            changed: Condvar::new(),
        }
    }

    fn kick(&self) {
        self.pending.store(true, Ordering::SeqCst);
        self.signal_if_running();
        if self.paused.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        self.signal_if_running();
        // Whoever enters from here on sees `paused` and is out again before the guest's next
        // instruction.
        let mut tries = 0u32;
        while self.state.load(Ordering::SeqCst) != OUT {
            if tries < 100 {
                std::thread::yield_now();
            } else {
                std::thread::sleep(std::time::Duration::from_micros(50));
            }
            tries = tries.saturating_add(1);
        }
    }

    fn resume(&self) {
        self.paused.store(false, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        // With the lock held, so that nobody is between looking and waiting.
        let _waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.changed.notify_all();
    }

    /// Waits while the vCPU is paused, nobody kicks it, and the deadline has not passed; says whether it
    /// waited for any of them.
    pub(crate) fn wait_while_paused(&self, deadline: Option<Instant>) -> bool {
        let is_paused =
            || self.paused.load(Ordering::SeqCst) && !self.pending.load(Ordering::SeqCst);
        if !is_paused() || deadline.is_some_and(|d| Instant::now() >= d) {
            return false;
        }
        let mut guard = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        while is_paused() {
            guard = match deadline {
                None => self
                    .changed
                    .wait(guard)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    let waited = self.changed.wait_timeout(guard, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }

    /// Whether a run has to end before the guest's next instruction.
    fn is_wanted(&self) -> bool {
        self.pending.load(Ordering::SeqCst) || self.paused.load(Ordering::SeqCst)
    }

    fn signal_if_running(&self) {
        loop {
            match self.state.load(Ordering::SeqCst) {
                // Not in `run`: the next one sees `pending`.
                OUT | SIGNALLED => return,
                IN => {
                    if self
                        .state
                        .compare_exchange(IN, KICKING, Ordering::SeqCst, Ordering::SeqCst)
                        .is_err()
                    {
                        continue;
                    }
                    // The thread stays in this run until `state` changes, and a kick that is no
                    // longer pending was returned by the run before.
                    let after = if self.is_wanted() {
                        signal(self.tid.load(Ordering::SeqCst));
                        SIGNALLED
                    } else {
                        IN
                    };
                    self.state.store(after, Ordering::SeqCst);
                    return;
                }
                _ => std::hint::spin_loop(),
            }
        }
    }

    /// Marks this thread as running the vCPU; says whether it has to come back at once.
    pub(crate) fn enter(&self) -> bool {
        self.tid.store(sys::gettid(), Ordering::Relaxed);
        self.state.store(IN, Ordering::SeqCst);
        self.is_wanted()
    }

    /// Marks the vCPU as not running. No signal of a kick is sent to this thread from here on.
    pub(crate) fn leave(&self) {
        let mut seen = IN;
        while let Err(now) =
            self.state
                .compare_exchange(seen, OUT, Ordering::SeqCst, Ordering::SeqCst)
        {
            seen = if now == KICKING { IN } else { now };
            std::hint::spin_loop();
        }
    }

    /// Takes the pending kick, if there is one.
    pub(crate) fn take(&self) -> bool {
        self.pending.swap(false, Ordering::SeqCst)
    }
}

fn signal(tid: i32) {
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
