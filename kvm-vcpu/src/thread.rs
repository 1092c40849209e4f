use std::convert::Infallible;
use std::ops::ControlFlow;
use std::panic;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::{Error, Exit, Result, Vcpu, VcpuHandle};

/// A thread that runs a vCPU and hands its exits to a function.
///
/// ```no_run
/// # fn f(vcpu: kvm_vcpu::Vcpu) -> kvm_vcpu::Result<()> {
/// use std::ops::ControlFlow;
/// use kvm_vcpu::{Exit, VcpuThreadBuilder};
///
/// let thread = VcpuThreadBuilder::new().name("vcpu0").affinity([0]).spawn(vcpu, |_vcpu, exit| {
///     match exit {
///         Exit::Halt | Exit::Shutdown => ControlFlow::Break(exit),
///         _ => ControlFlow::Continue(()),
///     }
/// })?;
/// thread.handle().pause();
/// thread.handle().resume();
/// let (vcpu, ended) = thread.stop()?;
/// # Ok(()) }
/// ```
///
/// Dropping it stops the vCPU and waits for its thread.
#[derive(Debug)]
pub struct VcpuThread<T> {
    stopper: Stopper,
    thread: JoinHandle<Result<(Vcpu, Option<T>)>>,
}

/// Stops the vCPU and waits for its thread when it is dropped.
#[derive(Debug)]
struct Stopper {
    handle: VcpuHandle,
    stop: Arc<AtomicBool>,
    /// The thread holds the other end as long as it runs.
    running: mpsc::Receiver<Infallible>,
}

/// How a vCPU's thread is made.
#[derive(Debug, Clone, Default)]
pub struct VcpuThreadBuilder {
    name: Option<String>,
    affinity: Vec<usize>,
}

impl VcpuThreadBuilder {
    /// A thread as any other.
    pub fn new() -> Self {
        Self::default()
    }

    /// The thread's name, of which the kernel shows 15 bytes; `vcpu` and the number if not set.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The host's CPUs that it runs on; any if not set.
    #[doc(alias = "sched_setaffinity")]
    pub fn affinity(mut self, cpus: impl IntoIterator<Item = usize>) -> Self {
        self.affinity = cpus.into_iter().collect();
        self
    }

    /// Starts the thread. It runs the vCPU until `handle_exit` breaks, [`VcpuThread::stop`] is called, or
    /// an error ends it. [`Exit::Interrupted`] is passed over.
    ///
    /// # Errors
    ///
    /// [`Error::Thread`] when there is no thread to be had, [`Error::Affinity`] when it cannot run on
    /// these CPUs, and [`Error::SignalInUse`].
    pub fn spawn<T: Send + 'static>(
        self,
        mut vcpu: Vcpu,
        mut handle_exit: impl FnMut(&mut Vcpu, Exit) -> ControlFlow<T> + Send + 'static,
    ) -> Result<VcpuThread<T>> {
        let id = vcpu.id();
        let handle = vcpu.handle()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let cpus = self.affinity;
        let (started, has_started) = mpsc::sync_channel(1);
        let (alive, running) = mpsc::channel();
        let thread = thread::Builder::new()
            .name(self.name.unwrap_or_else(|| format!("vcpu{id}")))
            .spawn(move || {
                let _alive = alive;
                let bound = bind(id, &cpus);
                let is_bound = bound.is_ok();
                // Nobody waits for it any longer only if the process is ending.
                let _sent = started.send(bound);
                if is_bound {
                    drive(&mut vcpu, &stopped, &mut handle_exit).map(|ended| (vcpu, ended))
                } else {
                    Ok((vcpu, None))
                }
            })
            .map_err(|source| Error::Thread { id, source })?;
        let thread = VcpuThread {
            stopper: Stopper {
                handle,
                stop,
                running,
            },
            thread,
        };
        // A thread that ended before it said so tells why when it is joined.
        has_started.recv().unwrap_or(Ok(())).map(|()| thread)
    }
}

impl<T> VcpuThread<T> {
    /// What stops and pauses the vCPU. A kick reaches the thread's function as [`Exit::Kicked`].
    pub fn handle(&self) -> &VcpuHandle {
        &self.stopper.handle
    }

    /// Whether it has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Stops the vCPU, also when it is paused, and gives it back between two instructions, ready for
    /// [`Snapshot::take`](crate::Snapshot::take) or another thread; with what the function broke with, if
    /// it did. The function may still see exits of the instruction that the vCPU was at. Kicks up to here are
    /// done with; a pause is not.
    ///
    /// # Errors
    ///
    /// The error that ended the thread.
    ///
    /// # Panics
    ///
    /// If the function panicked.
    pub fn stop(self) -> Result<(Vcpu, Option<T>)> {
        self.stopper.ask();
        let (vcpu, ended) = self.join()?;
        // It may have ended for another reason, and the kick must not end the next run.
        vcpu.forget_kick();
        Ok((vcpu, ended))
    }

    /// Waits until the function breaks, and gives the vCPU back.
    ///
    /// # Errors
    ///
    /// The error that ended the thread.
    ///
    /// # Panics
    ///
    /// If the function panicked.
    pub fn join(self) -> Result<(Vcpu, Option<T>)> {
        let joined = self.thread.join();
        joined.unwrap_or_else(|payload| panic::resume_unwind(payload))
    }
}

impl Stopper {
    fn ask(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.handle.kick();
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        if self.running.try_recv() == Err(mpsc::TryRecvError::Disconnected) {
            return;
        }
        self.ask();
        // Nothing is ever sent: it returns when the thread lets its end go.
        let _ended = self.running.recv();
    }
}

/// Runs the vCPU until the function breaks or it is told to stop.
fn drive<T>(
    vcpu: &mut Vcpu,
    stop: &AtomicBool,
    handle_exit: &mut impl FnMut(&mut Vcpu, Exit) -> ControlFlow<T>,
) -> Result<Option<T>> {
    loop {
        let exit = vcpu.run()?;
        if stop.load(Ordering::SeqCst) && exit == Exit::Kicked {
            return settle(vcpu, handle_exit);
        }
        if exit == Exit::Interrupted {
            continue;
        }
        if let ControlFlow::Break(value) = handle_exit(vcpu, exit) {
            return Ok(Some(value));
        }
    }
}

/// Completes the instruction that the vCPU is at.
fn settle<T>(
    vcpu: &mut Vcpu,
    handle_exit: &mut impl FnMut(&mut Vcpu, Exit) -> ControlFlow<T>,
) -> Result<Option<T>> {
    let mut ended = None;
    while let Some(exit) = vcpu.settle()? {
        if let ControlFlow::Break(value) = handle_exit(vcpu, exit) {
            ended = Some(value);
        }
    }
    Ok(ended)
}

/// Binds this thread to CPUs of the host; to none is to all.
fn bind(id: u32, cpus: &[usize]) -> Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    let refuse = |source| Error::Affinity {
        id,
        cpus: cpus.to_vec(),
        source,
    };
    let mut set = CpuSet::new();
    for cpu in cpus {
        if *cpu >= CpuSet::MAX_CPU {
            return Err(refuse(std::io::Error::from_raw_os_error(libc::EINVAL)));
        }
        set.set(*cpu);
    }
    sched_setaffinity(None, &set).map_err(|e| refuse(e.into()))
}
