use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use kvm_bindings::{KVM_CAP_SYNC_REGS, KVM_EXIT_MEMORY_FAULT};
use kvm_ioctls::VcpuFd;

use crate::error::ioctl;
use crate::exit_parse;
use crate::kick::{self, Shared};
use crate::reply::{self, Place};
use crate::synced::SyncState;
use crate::sys::{self, RunPage, ThreadTimer, VcpuFile};
use crate::vm::Inner;
use crate::{
    CpuMode, Error, Exit, GuestMemory, InternalError, Mode, Registers, Reply, Result, Synced,
    SystemRegisters, VcpuHandle,
};

/// A virtual CPU.
///
/// It can move between threads, and is run by one at a time. Other threads reach a running one
/// through its [`VcpuHandle`]. It keeps the machine's memory alive.
#[derive(Debug)]
pub struct Vcpu {
    file: VcpuFile,
    machine: Arc<Inner>,
    id: u32,
    shared: Arc<Shared>,
    /// The number of the last exit, which replies to it carry. Each vCPU counts in a range of its
    /// own, so that a reply meant for another is noticed.
    exits: u64,
    answered: bool,
    /// Whether the kernel has nothing left to complete of the last exit.
    settled: bool,
    timer: Option<Timer>,
    synced: SyncState,
    /// Whether each `int3` of the guest is to stop it.
    software_breakpoints: AtomicBool,
}

/// The timer behind deadlines, and what it is set to.
#[derive(Debug)]
struct Timer {
    timer: ThreadTimer,
    deadline: Option<Instant>,
}

impl Vcpu {
    pub(crate) fn new(machine: Arc<Inner>, file: VcpuFile, id: u32, mode: &Mode) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        file.fd
            .set_cpuid2(&machine.cpuid_for(id).to_kvm()?)
            .map_err(ioctl("KVM_SET_CPUID2 (telling the vCPU what it can do)"))?;
        let vcpu = Self {
            file,
            machine,
            id,
            shared: Arc::new(Shared::new(kick::signal)),
            exits: NEXT.fetch_add(1 << 40, Ordering::Relaxed),
            answered: true,
            settled: true,
            timer: None,
            synced: SyncState::new(),
            software_breakpoints: AtomicBool::new(false),
        };
        if *mode != Mode::Reset {
            vcpu.set_mode(mode)?;
            if id != 0 && vcpu.machine.irqchip().is_some() {
                vcpu.make_runnable()?;
            }
        }
        Ok(vcpu)
    }

    pub(crate) fn fd(&self) -> &VcpuFd {
        &self.file.fd
    }

    pub(crate) fn fd_mut(&mut self) -> &mut VcpuFd {
        &mut self.file.fd
    }

    pub(crate) fn machine(&self) -> &Arc<Inner> {
        &self.machine
    }

    pub(crate) fn run_page(&self) -> &RunPage {
        &self.file.run
    }

    pub(crate) fn run_page_mut(&mut self) -> &mut RunPage {
        &mut self.file.run
    }

    /// Its number in the machine.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The machine's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.machine.memory
    }

    /// Puts it at the first instruction of a mode, with all general registers zero.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel refuses the registers.
    pub fn set_mode(&self, mode: &Mode) -> Result<()> {
        let mut sregs = self.system_registers()?;
        let regs = mode.apply(&mut sregs);
        self.set_system_registers(&sregs)?;
        self.set_registers(&regs)
    }

    /// The mode that it is in now.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not tell.
    pub fn mode(&self) -> Result<CpuMode> {
        Ok(CpuMode::of(
            &self.system_registers()?,
            self.registers()?.rflags,
        ))
    }

    /// Runs the guest until it exits.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel refuses to run the vCPU.
    #[doc(alias = "KVM_RUN")]
    pub fn run(&mut self) -> Result<Exit> {
        if let Some(timer) = &mut self.timer {
            timer.stop()?;
        }
        self.enter(None)
    }

    /// Runs the guest until it exits or the deadline passes, which is
    /// [`Exit::TimedOut`].
    ///
    /// A guest in the middle of an instruction is not torn: it can be run again.
    ///
    /// # Errors
    ///
    /// Those of [`Vcpu::run`]; [`Error::SignalInUse`] when the signal behind it is in use.
    pub fn run_until(&mut self, deadline: Instant) -> Result<Exit> {
        self.machine.require_immediate_exit()?;
        let signal = kick::install()?;
        let here = sys::gettid();
        if self.timer.as_ref().is_none_or(|t| t.timer.tid() != here) {
            self.timer = Some(Timer {
                timer: ThreadTimer::new(signal).map_err(timer_error)?,
                deadline: None,
            });
        }
        self.enter(Some(deadline))
    }

    /// A way to stop it from other threads.
    ///
    /// # Errors
    ///
    /// [`Error::SignalInUse`] when the signal behind it is in use.
    pub fn handle(&self) -> Result<VcpuHandle> {
        self.machine.require_immediate_exit()?;
        kick::install()?;
        Ok(VcpuHandle::new(self.shared.clone()))
    }

    /// Lets the kernel complete the last exit without running the guest any further, as is needed
    /// before its state is saved.
    ///
    /// What an instruction read takes effect only when the vCPU runs again; until then its registers
    /// are those of the middle of an instruction. Returns the next exit if the instruction makes one
    /// more; `None` when it is done.
    ///
    /// # Errors
    ///
    /// Those of [`Vcpu::run`].
    pub fn settle(&mut self) -> Result<Option<Exit>> {
        if self.settled {
            return Ok(None);
        }
        self.machine.require_immediate_exit()?;
        if let Some(timer) = &mut self.timer {
            timer.stop()?;
        }
        self.synced.enter(&mut self.file.run);
        let result = self.file.run.run(&self.file.fd, || true);
        self.synced.leave(&mut self.file.run);
        match result {
            Err(e) if e.raw_os_error() == Some(libc::EINTR) => {
                self.exits += 1;
                self.answered = true;
                self.settled = true;
                Ok(None)
            }
            result => self.exited(result, None).map(Some),
        }
    }

    /// Takes back a kick that no run has returned yet.
    pub(crate) fn forget_kick(&self) {
        self.shared.take();
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    fn enter(&mut self, deadline: Option<Instant>) -> Result<Exit> {
        kick::unblock()?;
        loop {
            let result = self.enter_once(deadline)?;
            let interrupted = matches!(&result, Err(e) if e.raw_os_error() == Some(libc::EINTR));
            if interrupted && self.shared.wait_while_paused(deadline) {
                // What the last exit began is complete. Whatever ended the wait, a run finds it.
                self.settled = true;
                continue;
            }
            return self.exited(result, deadline);
        }
    }

    fn enter_once(&mut self, deadline: Option<Instant>) -> Result<io::Result<()>> {
        let (shared, timer) = (&self.shared, &mut self.timer);
        self.synced.enter(&mut self.file.run);
        let mut timer_result = Ok(());
        let result = self.file.run.run(&self.file.fd, || {
            let late = match (deadline, timer) {
                (Some(deadline), Some(timer)) => timer.start(deadline).unwrap_or_else(|e| {
                    timer_result = Err(e);
                    true
                }),
                _ => false,
            };
            let kicked = shared.enter(sys::gettid());
            // Returning at once is no shortcut past the kernel: it first completes what the last
            // exit began.
            kicked || late
        });
        self.shared.leave();
        self.synced.leave(&mut self.file.run);
        timer_result?;
        Ok(result)
    }

    fn exited(&mut self, result: io::Result<()>, deadline: Option<Instant>) -> Result<Exit> {
        self.exits += 1;
        self.answered = true;
        self.settled = result.is_err();
        match result {
            Ok(()) => {
                let exit = exit_parse::parse(&self.file.run, self.exits);
                if let Some(reply) = reply::default_reply(&exit) {
                    self.put(&reply);
                    self.answered = false;
                } else if matches!(exit, Exit::Hypercall(_)) {
                    self.answered = false;
                }
                if self.software_breakpoints.load(Ordering::Relaxed) {
                    return self.as_breakpoint(exit);
                }
                Ok(exit)
            }
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR) if self.shared.take() => Ok(Exit::Kicked),
                Some(libc::EINTR) if deadline.is_some_and(|d| Instant::now() >= d) => {
                    Ok(Exit::TimedOut)
                }
                // A vCPU that waited to be started by another says EAGAIN when that has happened.
                Some(libc::EINTR | libc::EAGAIN) => Ok(Exit::Interrupted),
                // The one exit that comes with an error; for others the reason is a stale one.
                Some(libc::EFAULT | libc::EHWPOISON)
                    if self.file.run.exit_reason() == KVM_EXIT_MEMORY_FAULT =>
                {
                    Ok(exit_parse::parse(&self.file.run, self.exits))
                }
                _ => Err(Error::Ioctl {
                    operation: "KVM_RUN (running the guest)",
                    source: e,
                }),
            },
        }
    }

    /// Answers the last exit.
    ///
    /// # Errors
    ///
    /// [`Error::StaleReply`] when the reply is for another exit or vCPU run, or a second one;
    /// [`Error::ReplyLength`] when it has more or fewer bytes than the guest asked for.
    // By value: a reply is used once.
    #[allow(clippy::needless_pass_by_value)]
    pub fn reply(&mut self, reply: Reply) -> Result<()> {
        if reply.token != self.exits || self.answered {
            return Err(Error::StaleReply);
        }
        let given = reply.data().len();
        if given != reply.expected {
            return Err(Error::ReplyLength {
                expected: reply.expected,
                given,
            });
        }
        self.put(&reply);
        self.answered = true;
        Ok(())
    }

    /// The emulator of a KVM that emulates the guest has no `int3` outside real mode. To who debugs the
    /// guest it is the breakpoint that it is.
    fn as_breakpoint(&self, exit: Exit) -> Result<Exit> {
        const INT3: u8 = 0xcc;
        match &exit {
            Exit::InternalError(InternalError::Emulation(failure))
                if failure.instruction().first() == Some(&INT3) =>
            {
                let sregs = self.system_registers()?;
                let base = match CpuMode::of(&sregs, 0) {
                    CpuMode::Long => 0,
                    _ => sregs.cs.base,
                };
                Ok(Exit::Debug {
                    exception: 3,
                    pc: base.wrapping_add(self.registers()?.rip),
                    dr6: 0,
                    dr7: 0,
                })
            }
            _ => Ok(exit),
        }
    }

    /// Whether `int3` is to stop the guest.
    pub(crate) fn note_software_breakpoints(&self, on: bool) {
        self.software_breakpoints.store(on, Ordering::Relaxed);
    }

    /// System registers have been set in a way that the run pages do not show.
    pub(crate) fn forget_synced(&self) {
        self.synced.forget(Synced::SYSTEM);
    }

    /// Has these registers come with each exit from the next run on: [`Vcpu::registers`] and
    /// [`Vcpu::system_registers`] then take no call into the kernel until something else sets them.
    /// It is for guests whose every exit is looked at; others pay for the copies.
    ///
    /// What ioctls of your own set is not noticed.
    ///
    /// Minimum kernel: 4.17.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] on older kernels and for guests whose state is encrypted.
    #[doc(alias = "KVM_CAP_SYNC_REGS")]
    pub fn sync_registers(&mut self, which: Synced) -> Result<()> {
        let present = u64::from(self.machine.extent_of(KVM_CAP_SYNC_REGS));
        if present & which.bits() != which.bits() {
            return Err(Error::Unsupported {
                capability: "KVM_CAP_SYNC_REGS",
                advice: "use a kernel of 4.17 or newer, or read the registers when they are needed",
            });
        }
        self.synced.want(which, &mut self.file.run);
        Ok(())
    }

    /// Sets the general registers as part of the next run, without a call of its own; until then
    /// [`Vcpu::registers`] gives these. A later [`Vcpu::set_registers`] or [`Vcpu::set_mode`] takes their
    /// place.
    ///
    /// Minimum kernel: 4.17; on an older one the next run fails.
    #[doc(alias = "kvm_dirty_regs")]
    pub fn set_registers_at_next_run(&mut self, registers: &Registers) {
        self.synced.set_next(*registers);
    }

    fn put(&mut self, reply: &Reply) {
        // Offsets and lengths are the kernel's own; should it ever give one that does not fit,
        // nothing is written.
        let _fits = match reply.place {
            Place::Payload(offset) => self.file.run.write_payload(offset, reply.data()),
            Place::Page(offset) => self.file.run.write(offset, reply.data()),
        };
    }

    /// The general registers.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not tell.
    #[doc(alias = "KVM_GET_REGS")]
    pub fn registers(&self) -> Result<Registers> {
        if let Some(synced) = self.synced.general(&self.file.run) {
            return Ok(synced);
        }
        let regs = self
            .file
            .fd
            .get_regs()
            .map_err(ioctl("KVM_GET_REGS (reading the registers)"))?;
        Ok(regs.into())
    }

    /// Sets the general registers.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel refuses them.
    #[doc(alias = "KVM_SET_REGS")]
    pub fn set_registers(&self, registers: &Registers) -> Result<()> {
        self.synced.forget(Synced::GENERAL);
        self.file
            .fd
            .set_regs(&(*registers).into())
            .map_err(ioctl("KVM_SET_REGS (setting the registers)"))
    }

    /// The segment, control and table registers.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not tell.
    #[doc(alias = "KVM_GET_SREGS")]
    pub fn system_registers(&self) -> Result<SystemRegisters> {
        if let Some(synced) = self.synced.system(&self.file.run) {
            return Ok(synced);
        }
        let sregs = self
            .file
            .fd
            .get_sregs()
            .map_err(ioctl("KVM_GET_SREGS (reading the system registers)"))?;
        Ok(sregs.into())
    }

    /// Sets the segment, control and table registers.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel refuses them: they must make a valid mode.
    #[doc(alias = "KVM_SET_SREGS")]
    pub fn set_system_registers(&self, registers: &SystemRegisters) -> Result<()> {
        self.synced.forget(Synced::SYSTEM);
        self.file
            .fd
            .set_sregs(&(*registers).into())
            .map_err(ioctl("KVM_SET_SREGS (setting the system registers)"))
    }
}

impl AsFd for Vcpu {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow_fd(self, self.file.fd.as_raw_fd())
    }
}

impl Timer {
    /// Sets it, unless it is set to this deadline already; says whether that has passed.
    fn start(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(true);
        }
        if self.deadline != Some(deadline) {
            self.timer.set(left).map_err(timer_error)?;
            self.deadline = Some(deadline);
        }
        Ok(false)
    }

    fn stop(&mut self) -> Result<()> {
        if self.deadline.take().is_some() {
            self.timer
                .set(std::time::Duration::ZERO)
                .map_err(timer_error)?;
        }
        Ok(())
    }
}

fn timer_error(source: io::Error) -> Error {
    Error::Ioctl {
        operation: "timer_create or timer_settime (setting the deadline of a run)",
        source,
    }
}
