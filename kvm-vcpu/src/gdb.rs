use std::collections::BTreeMap;
use std::io;
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use gdbstub::common::Signal;
use gdbstub::conn::ConnectionExt;
use gdbstub::stub::run_blocking::{BlockingEventLoop, Event, WaitForStopReasonError};
use gdbstub::stub::{DisconnectReason, GdbStub, SingleThreadStopReason};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::singlethread::{
    SingleThreadBase, SingleThreadResume, SingleThreadResumeOps, SingleThreadSingleStep,
    SingleThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints as ext;
use gdbstub::target::ext::breakpoints::WatchKind;
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

use crate::{Breakpoints, Debugging, Error, Exit, InternalError, Result, Vcpu, Watch};

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
/// Bit 14 of `dr6`: a single step.
const STEP: u64 = 1 << 14;

impl Vcpu {
    /// Lets gdb debug the guest over a connection (`TcpStream` or `UnixStream`), which it makes with
    /// `target remote`: registers, memory by virtual address, steps, breakpoints in software and
    /// hardware, watchpoints. Other exits go to `handle_exit`. A guest that shuts down stops with
    /// `SIGSEGV` first.
    ///
    /// The session is with this vCPU alone; pause the machine's others as the case may be. Breakpoints
    /// are gone when it ends.
    ///
    /// # Errors
    ///
    /// [`Error::Gdb`] when the connection fails, and those of [`Vcpu::run_until`].
    pub fn serve_gdb<T, C: ConnectionExt<Error = io::Error> + 'static>(
        &mut self,
        connection: C,
        mut handle_exit: impl FnMut(&mut Vcpu, Exit) -> ControlFlow<T>,
    ) -> Result<GdbEnd<T>> {
        let mut ended = None;
        let mut handle = |vcpu: &mut Vcpu, exit: Exit| match handle_exit(vcpu, exit) {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(value) => {
                ended = Some(value);
                ControlFlow::Break(())
            }
        };
        let mut guest = Guest {
            vcpu: self,
            handle_exit: &mut handle,
            software: BTreeMap::new(),
            breakpoints: Breakpoints::default(),
            hardware: Vec::new(),
            step: false,
            shut_down: false,
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

/// The vCPU as gdb sees it.
struct Guest<'a> {
    vcpu: &'a mut Vcpu,
    handle_exit: HandleExit<'a>,
    /// By virtual address, where it led when the breakpoint was set.
    software: BTreeMap<u64, u64>,
    breakpoints: Breakpoints,
    /// In the order of the CPU's debug registers.
    hardware: Vec<(u64, u64, Option<WatchKind>)>,
    step: bool,
    shut_down: bool,
}

impl Guest<'_> {
    /// Makes the vCPU stop where gdb wants.
    fn apply(&self) -> Result<()> {
        let mut debugging = Debugging::default()
            .single_step(self.step)
            .software_breakpoints(!self.software.is_empty());
        for (address, len, kind) in &self.hardware {
            debugging = match kind {
                None => debugging.breakpoint(*address),
                Some(kind) => {
                    let accesses = match kind {
                        WatchKind::Write => Watch::Write,
                        WatchKind::Read | WatchKind::ReadWrite => Watch::Access,
                    };
                    debugging.watch(*address, u8::try_from(*len).unwrap_or(0), accesses)
                }
            };
        }
        self.vcpu.set_debugging(&debugging)
    }

    /// Adds one if the CPU can have it.
    fn add_hardware(&mut self, address: u64, len: u64, kind: Option<WatchKind>) -> Result<bool> {
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

    fn remove_hardware(&mut self, address: u64, len: u64, watches: bool) -> Result<bool> {
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
        for physical in std::mem::take(&mut self.software).into_values() {
            self.breakpoints.remove(self.vcpu.memory(), physical)?;
        }
        self.hardware.clear();
        self.step = false;
        self.apply()
    }

    /// Runs the guest for a while; says why it stopped if it did for gdb's sake.
    fn run(&mut self) -> Result<Option<SingleThreadStopReason<u64>>> {
        let exit = if std::mem::take(&mut self.shut_down) {
            // It was shown to gdb, and now ends.
            return Ok(self.hand_over(Exit::Shutdown));
        } else {
            self.vcpu.run_until(Instant::now() + SLICE)?
        };
        Ok(match exit {
            Exit::TimedOut | Exit::Interrupted => None,
            Exit::Debug { exception: 3, .. } => Some(SingleThreadStopReason::SwBreak(())),
            Exit::Debug { dr6, .. } => Some(self.hardware_stop(dr6)),
            Exit::Shutdown => {
                self.shut_down = true;
                Some(SingleThreadStopReason::Signal(Signal::SIGSEGV))
            }
            // A host that emulates the guest does not know `int3`.
            Exit::InternalError(InternalError::Emulation(failure))
                if failure.instruction().first() == Some(&0xcc)
                    && self.software.contains_key(&self.vcpu.registers()?.rip) =>
            {
                Some(SingleThreadStopReason::SwBreak(()))
            }
            other => self.hand_over(other),
        })
    }

    fn hand_over(&mut self, exit: Exit) -> Option<SingleThreadStopReason<u64>> {
        match (self.handle_exit)(self.vcpu, exit) {
            ControlFlow::Continue(()) => None,
            ControlFlow::Break(()) => Some(SingleThreadStopReason::Exited(0)),
        }
    }

    fn hardware_stop(&self, dr6: u64) -> SingleThreadStopReason<u64> {
        let hit = self.hardware.iter().enumerate();
        let hit = hit
            .filter(|(i, _)| dr6 >> i & 1 != 0)
            .map(|(_, h)| h)
            .next();
        match hit {
            Some((_, _, None)) => SingleThreadStopReason::HwBreak(()),
            Some((addr, _, Some(kind))) => SingleThreadStopReason::Watch {
                tid: (),
                kind: *kind,
                addr: *addr,
            },
            None if dr6 & STEP != 0 => SingleThreadStopReason::DoneStep,
            None => SingleThreadStopReason::Signal(Signal::SIGTRAP),
        }
    }

    /// Where the bytes at a virtual address are, up to the end of the page.
    fn piece(&self, virt: u64, len: usize) -> Result<Option<(u64, usize)>> {
        let in_page = (crate::PAGE_SIZE - virt % crate::PAGE_SIZE) as usize;
        let physical = self.vcpu.translate(virt)?;
        Ok(physical.map(|physical| (physical, in_page.min(len))))
    }
}

struct Loop<'a, C>(PhantomData<(&'a (), C)>);

impl<'a, C: ConnectionExt<Error = io::Error>> BlockingEventLoop for Loop<'a, C> {
    type Target = Guest<'a>;
    type Connection = C;
    type StopReason = SingleThreadStopReason<u64>;

    fn wait_for_stop_reason(
        guest: &mut Guest<'a>,
        connection: &mut C,
    ) -> Result<Event<Self::StopReason>, WaitForStopReasonError<Error, io::Error>> {
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

    fn on_interrupt(_: &mut Guest<'a>) -> Result<Option<Self::StopReason>> {
        Ok(Some(SingleThreadStopReason::Signal(Signal::SIGINT)))
    }
}

impl Target for Guest<'_> {
    type Arch = X86_64_SSE;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, Error> {
        BaseOps::SingleThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<ext::BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadBase for Guest<'_> {
    fn read_registers(&mut self, out: &mut X86_64CoreRegs) -> TargetResult<(), Self> {
        let fatal = TargetError::Fatal;
        let r = self.vcpu.registers().map_err(fatal)?;
        let s = self.vcpu.system_registers().map_err(TargetError::Fatal)?;
        let f = self.vcpu.fpu_registers().map_err(TargetError::Fatal)?;
        out.regs = [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ];
        out.eflags = r.rflags as u32;
        out.rip = r.rip;
        let selectors = &mut out.segments;
        selectors.cs = s.cs.selector.into();
        selectors.ss = s.ss.selector.into();
        selectors.ds = s.ds.selector.into();
        selectors.es = s.es.selector.into();
        selectors.fs = s.fs.selector.into();
        selectors.gs = s.gs.selector.into();
        for (to, from) in out.st.iter_mut().zip(f.st) {
            to.copy_from_slice(&from[..10]);
        }
        out.fpu.fctrl = f.control.into();
        out.fpu.fstat = f.status.into();
        out.fpu.ftag = f.tag.into();
        out.fpu.fop = f.opcode.into();
        out.xmm = f.xmm;
        out.mxcsr = f.mxcsr;
        Ok(())
    }

    fn write_registers(&mut self, from: &X86_64CoreRegs) -> TargetResult<(), Self> {
        let mut r = self.vcpu.registers().map_err(TargetError::Fatal)?;
        [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ] = from.regs;
        r.rflags = from.eflags.into();
        r.rip = from.rip;
        let mut f = self.vcpu.fpu_registers().map_err(TargetError::Fatal)?;
        for (to, from) in f.st.iter_mut().zip(from.st) {
            to[..10].copy_from_slice(&from);
        }
        f.xmm = from.xmm;
        f.mxcsr = from.mxcsr;
        // Segments are left: their hidden parts are not gdb's to know.
        let refused = |_: Error| TargetError::NonFatal;
        self.vcpu.set_registers(&r).map_err(refused)?;
        self.vcpu
            .set_fpu_registers(&f)
            .map_err(|_| TargetError::NonFatal)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8]) -> TargetResult<usize, Self> {
        let bytes = self
            .vcpu
            .read_virtual(start, data.len())
            .map_err(TargetError::Fatal)?;
        if bytes.is_empty() && !data.is_empty() {
            return Err(TargetError::NonFatal);
        }
        data[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_addrs(&mut self, start: u64, data: &[u8]) -> TargetResult<(), Self> {
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            let at = start.wrapping_add(done as u64);
            let piece = self.piece(at, rest.len()).map_err(TargetError::Fatal)?;
            let (physical, len) = piece.ok_or(TargetError::NonFatal)?;
            self.vcpu
                .memory()
                .write(physical, &rest[..len])
                .map_err(|_| TargetError::NonFatal)?;
            done += len;
        }
        Ok(())
    }

    fn support_resume(&mut self) -> Option<SingleThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadResume for Guest<'_> {
    fn resume(&mut self, _signal: Option<Signal>) -> Result<()> {
        self.step = false;
        self.apply()
    }

    fn support_single_step(&mut self) -> Option<SingleThreadSingleStepOps<'_, Self>> {
        Some(self)
    }
}

impl SingleThreadSingleStep for Guest<'_> {
    fn step(&mut self, _signal: Option<Signal>) -> Result<()> {
        self.step = true;
        self.apply()
    }
}

impl ext::Breakpoints for Guest<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<ext::SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<ext::HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<ext::HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl ext::SwBreakpoint for Guest<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let there = self.vcpu.translate(address).map_err(TargetError::Fatal)?;
        let Some(physical) = there else {
            return Ok(false);
        };
        if self
            .breakpoints
            .insert(self.vcpu.memory(), physical)
            .is_err()
        {
            return Ok(false);
        }
        self.software.insert(address, physical);
        self.apply().map_err(TargetError::Fatal)?;
        Ok(true)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let Some(physical) = self.software.remove(&address) else {
            return Ok(false);
        };
        self.breakpoints
            .remove(self.vcpu.memory(), physical)
            .map_err(TargetError::Fatal)?;
        self.apply().map_err(TargetError::Fatal)?;
        Ok(true)
    }
}

impl ext::HwBreakpoint for Guest<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.add_hardware(address, 1, None)
            .map_err(TargetError::Fatal)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        self.remove_hardware(address, 1, false)
            .map_err(TargetError::Fatal)
    }
}

impl ext::HwWatchpoint for Guest<'_> {
    fn add_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.add_hardware(address, len, Some(kind))
            .map_err(TargetError::Fatal)
    }

    fn remove_hw_watchpoint(
        &mut self,
        address: u64,
        len: u64,
        _kind: WatchKind,
    ) -> TargetResult<bool, Self> {
        self.remove_hardware(address, len, true)
            .map_err(TargetError::Fatal)
    }
}
