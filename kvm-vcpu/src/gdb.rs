use std::collections::BTreeMap;
use std::io;
use std::iter;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gdbstub::common::{Signal, Tid};
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use gdbstub::target::ext::breakpoints::WatchKind;

use crate::{Breakpoints, Debugging, EffectiveDebugging, Error, Exit, Result, Vcpu, Watch};

/// How a session with gdb ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GdbEnd<T> {
    /// gdb let the guest go (`detach`, or it went away): run it on.
    Detached,
    /// gdb killed the guest (`kill`).
    Killed,
    /// The guest ended: what the function that handles its exits broke with.
    Guest(T),
}

/// How long the guest runs before gdb is listened to again.
const SLICE: Duration = Duration::from_millis(10);
/// How long a vCPU runs before it is another one's turn.
const TURN: Duration = Duration::from_millis(1);

impl Vcpu {
    /// Lets gdb debug the guest over a connection (`TcpStream` or `UnixStream`), which it makes with
    /// `target remote`: registers, memory by virtual address, steps, breakpoints in software and
    /// hardware, watchpoints. Each vCPU, this one and `others`, is a thread to gdb, whose number is the
    /// vCPU's and one. Exits that are none of gdb's go to `handle_exit`. A vCPU that shuts down stops
    /// with `SIGSEGV` first.
    ///
    /// The vCPUs take turns of a millisecond on the calling thread: each goes on, and no two run at the
    /// same moment. With `set scheduler-locking on`, gdb's present thread runs alone.
    ///
    /// Breakpoints and watchpoints that `effective` says have no effect here
    /// ([`Kvm::effective_debugging`](crate::Kvm::effective_debugging)) are refused: gdb says that it
    /// cannot insert them. It watches without the CPU's help, step by step, after
    /// `set can-use-hw-watchpoints 0`. As long as there are breakpoints in software, an `int3` of the
    /// guest's own stops it with `SIGTRAP`. All are gone when the session ends.
    ///
    /// ```no_run
    /// # fn f(kvm: &kvm_vcpu::Kvm, mut vcpus: [kvm_vcpu::Vcpu; 2]) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::net::TcpListener;
    /// use std::ops::ControlFlow;
    /// use kvm_vcpu::Exit;
    ///
    /// let (gdb, _) = TcpListener::bind("127.0.0.1:1234")?.accept()?;
    /// let [first, second] = &mut vcpus;
    /// first.serve_gdb(&mut [second], kvm.effective_debugging()?, gdb, |_vcpu, exit| match exit {
    ///     Exit::Halt => ControlFlow::Break(()),
    ///     _ => ControlFlow::Continue(()),
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::OtherMachine`] when `others` are not of the same machine; [`Error::Gdb`] when the
    /// connection fails; and those of [`Vcpu::run_until`].
    pub fn serve_gdb<T, C: ConnectionExt<Error = io::Error> + 'static>(
        &mut self,
        others: &mut [&mut Vcpu],
        effective: EffectiveDebugging,
        connection: C,
        mut handle_exit: impl FnMut(&mut Vcpu, Exit) -> ControlFlow<T>,
    ) -> Result<GdbEnd<T>> {
        let foreign = |other: &&&mut Vcpu| !Arc::ptr_eq(other.machine(), self.machine());
        if let Some(other) = others.iter().find(foreign) {
            return Err(Error::OtherMachine { id: other.id() });
        }
        let mut ended = None;
        let mut handle = |vcpu: &mut Vcpu, exit: Exit| match handle_exit(vcpu, exit) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(value) => {
                ended = Some(value);
                ControlFlow::Break(())
            }
        };
        let mut guest = Guest {
            cpus: iter::once(self)
                .chain(others.iter_mut().map(|vcpu| &mut **vcpu))
                .map(Cpu::new)
                .collect(),
            turn: 0,
            handle_exit: &mut handle,
            effective,
            software: BTreeMap::new(),
            breakpoints: Breakpoints::default(),
            hardware: Vec::new(),
        };
        let result = GdbStub::new(connection).run_blocking::<Loop<'_, C>>(&mut guest);
        guest.clear()?;
        match result {
            Ok(DisconnectReason::Kill) => Ok(GdbEnd::Killed),
            Ok(_) => Ok(ended.map_or(GdbEnd::Detached, GdbEnd::Guest)),
            Err(e) if e.is_target_error() => {
                Err(e.into_target_error().unwrap_or_else(|| Error::Gdb {
                    source: io::Error::from(io::ErrorKind::Other),
                }))
            }
            Err(e) => Err(Error::Gdb {
                source: io::Error::other(e.to_string()),
            }),
        }
    }
}

type HandleExit<'a> = &'a mut dyn FnMut(&mut Vcpu, Exit) -> ControlFlow<()>;

/// Why the guest stopped.
pub(crate) type Stop = MultiThreadStopReason<u64>;

/// What a vCPU does when the guest goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// gdb did not name it: it continues.
    Unsaid,
    Continue,
    Step,
    Stay,
}

/// A vCPU as gdb sees it.
pub(crate) struct Cpu<'a> {
    pub(crate) vcpu: &'a mut Vcpu,
    pub(crate) action: Action,
    /// It was shown to gdb where it shut down.
    shut_down: bool,
}

impl<'a> Cpu<'a> {
    fn new(vcpu: &'a mut Vcpu) -> Self {
        Self {
            vcpu,
            action: Action::Unsaid,
            shut_down: false,
        }
    }

    /// gdb's number of it, which cannot be zero.
    pub(crate) fn tid(&self) -> Tid {
        Tid::MIN.saturating_add(self.vcpu.id() as usize)
    }
}

/// The machine as gdb sees it.
pub(crate) struct Guest<'a> {
    /// At least one.
    pub(crate) cpus: Vec<Cpu<'a>>,
    /// Which of them ran last.
    pub(crate) turn: usize,
    handle_exit: HandleExit<'a>,
    pub(crate) effective: EffectiveDebugging,
    /// By virtual address, where it led when the breakpoint was set.
    pub(crate) software: BTreeMap<u64, u64>,
    pub(crate) breakpoints: Breakpoints,
    /// In the order of the CPUs' debug registers.
    hardware: Vec<(u64, u64, Option<WatchKind>)>,
}

impl Guest<'_> {
    /// Makes the vCPUs stop where gdb wants.
    pub(crate) fn apply(&self) -> Result<()> {
        let mut all = Debugging::default().software_breakpoints(!self.software.is_empty());
        for (address, len, kind) in &self.hardware {
            all = match kind {
                None => all.breakpoint(*address),
                Some(kind) => {
                    let accesses = match kind {
                        WatchKind::Write => Watch::Write,
                        WatchKind::Read | WatchKind::ReadWrite => Watch::Access,
                    };
                    all.watch(*address, u8::try_from(*len).unwrap_or(0), accesses)
                }
            };
        }
        self.cpus.iter().try_for_each(|cpu| {
            let step = cpu.action == Action::Step;
            cpu.vcpu.set_debugging(&all.clone().single_step(step))
        })
    }

    /// Adds one if the CPUs can have it.
    pub(crate) fn add_hardware(
        &mut self,
        address: u64,
        len: u64,
        kind: Option<WatchKind>,
    ) -> Result<bool> {
        self.hardware.push((address, len, kind));
        match self.apply() {
            Ok(()) => Ok(true),
            Err(Error::TooMany { .. } | Error::Watchpoint { .. }) => {
                self.hardware.pop();
                self.apply().map(|()| false)
            }
            Err(e) => Err(e),
        }
    }

    pub(crate) fn remove_hardware(
        &mut self,
        address: u64,
        len: u64,
        watches: bool,
    ) -> Result<bool> {
        let found = self
            .hardware
            .iter()
            .position(|(a, l, k)| (*a, *l, k.is_some()) == (address, len, watches));
        if let Some(found) = found {
            self.hardware.remove(found);
            self.apply()?;
        }
        Ok(found.is_some())
    }

    /// Takes all breakpoints out.
    fn clear(&mut self) -> Result<()> {
        let memory = self.cpus[0].vcpu.memory();
        for physical in std::mem::take(&mut self.software).into_values() {
            self.breakpoints.remove(memory, physical)?;
        }
        self.hardware.clear();
        for cpu in &mut self.cpus {
            cpu.action = Action::Unsaid;
        }
        self.apply()
    }

    /// Runs the vCPU whose turn it is for a while; says why it stopped if it did for gdb's sake.
    fn run(&mut self) -> Result<Option<Stop>> {
        let count = self.cpus.len();
        let mut running = (1..=count)
            .map(|after| (self.turn + after) % count)
            .filter(|index| self.cpus[*index].action != Action::Stay);
        let Some(index) = running.next() else {
            thread::sleep(SLICE);
            return Ok(None);
        };
        let slice = running.next().map_or(SLICE, |_| TURN);
        drop(running);
        self.turn = index;
        let cpu = &mut self.cpus[index];
        let tid = cpu.tid();
        let signal = |signal| Some(Stop::SignalWithThread { tid, signal });
        if std::mem::take(&mut cpu.shut_down) {
            // It was shown to gdb, and now ends.
            return Ok(self.hand_over(Exit::Shutdown));
        }
        Ok(match cpu.vcpu.run_until(Instant::now() + slice)? {
            Exit::TimedOut | Exit::Interrupted => None,
            // gdb takes one that it did not set for one that it has taken out, and goes on to it.
            Exit::Debug {
                exception: 3, pc, ..
            } if !self.software.contains_key(&pc) => signal(Signal::SIGTRAP),
            Exit::Debug { exception: 3, .. } => Some(Stop::SwBreak(tid)),
            Exit::Debug { dr6, .. } => Some(self.hardware_stop(tid, dr6)),
            Exit::Shutdown => {
                cpu.shut_down = true;
                signal(Signal::SIGSEGV)
            }
            other => self.hand_over(other),
        })
    }

    /// Gives an exit of the vCPU that ran last to the machine.
    fn hand_over(&mut self, exit: Exit) -> Option<Stop> {
        match (self.handle_exit)(self.cpus[self.turn].vcpu, exit) {
            ControlFlow::Continue(()) => None,
            ControlFlow::Break(()) => Some(Stop::Exited(0)),
        }
    }

    fn hardware_stop(&self, tid: Tid, dr6: u64) -> Stop {
        let hit = self.hardware.iter().enumerate();
        let hit = hit
            .filter(|(i, _)| dr6 >> i & 1 != 0)
            .map(|(_, h)| h)
            .next();
        match hit {
            Some((_, _, None)) => Stop::HwBreak(tid),
            Some((addr, _, Some(kind))) => Stop::Watch {
                tid,
                kind: *kind,
                addr: *addr,
            },
            None => Stop::SignalWithThread {
                tid,
                signal: Signal::SIGTRAP,
            },
        }
    }
}

struct Loop<'a, C>(PhantomData<(&'a (), C)>);

impl<'a, C: ConnectionExt<Error = io::Error>> BlockingEventLoop for Loop<'a, C> {
    type Target = Guest<'a>;
    type Connection = C;
    type StopReason = Stop;

    fn wait_for_stop_reason(
        guest: &mut Guest<'a>,
        connection: &mut C,
    ) -> Result<Event<Stop>, WaitForStopReasonError<Error, io::Error>> {
        loop {
            let waiting = connection
                .peek()
                .map_err(WaitForStopReasonError::Connection)?;
            if waiting.is_some() {
                let byte = ConnectionExt::read(connection);
                return byte
                    .map(Event::IncomingData)
                    .map_err(WaitForStopReasonError::Connection);
            }
            let stopped = guest.run().map_err(WaitForStopReasonError::Target)?;
            if let Some(reason) = stopped {
                return Ok(Event::TargetStopped(reason));
            }
        }
    }

    fn on_interrupt(guest: &mut Guest<'a>) -> Result<Option<Stop>> {
        Ok(Some(Stop::SignalWithThread {
            tid: guest.cpus[guest.turn].tid(),
            signal: Signal::SIGINT,
        }))
    }
}
