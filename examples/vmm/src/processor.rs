//! The threads that run vCPUs, and how all of them are stopped for a moment or for good.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use kvm_vcpu::{Exit, InternalError, Vcpu, VcpuHandle};

use crate::board::{Board, End};
use crate::error::{Crash, Error, Place};

const INTERRUPTS_ON: u64 = 1 << 9;

/// Whether vCPUs may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Stopped,
}

/// All vCPUs of a machine. Each is locked by its thread while it runs.
pub(crate) struct Processors {
    pub(crate) vcpus: Vec<Mutex<Vcpu>>,
    handles: Vec<VcpuHandle>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Processors {
    pub(crate) fn new(vcpus: Vec<Vcpu>) -> Result<Self, Error> {
        let handles = vcpus.iter().map(Vcpu::handle).collect::<Result<_, _>>()?;
        Ok(Self {
            vcpus: vcpus.into_iter().map(Mutex::new).collect(),
            handles,
            state: Mutex::new(State::Running),
            changed: Condvar::new(),
        })
    }

    fn set(&self, state: State) {
        let mut now = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != State::Stopped {
            *now = state;
        }
        drop(now);
        self.changed.notify_all();
        for handle in &self.handles {
            handle.kick();
        }
    }

    /// Stops all vCPUs between two instructions, and gives them out: they run again when they have been
    /// given back and [`Processors::resume`] is called.
    pub(crate) fn pause(&self) -> Vec<MutexGuard<'_, Vcpu>> {
        self.set(State::Paused);
        self.vcpus
            .iter()
            .map(|v| v.lock().unwrap_or_else(PoisonError::into_inner))
            .collect()
    }

    pub(crate) fn resume(&self) {
        self.set(State::Running);
    }

    /// Ends the threads.
    pub(crate) fn stop(&self) {
        self.set(State::Stopped);
    }

    /// Waits until vCPUs may run; false when they never will again.
    fn wait(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self
            .changed
            .wait_while(state, |s| *s == State::Paused)
            .unwrap_or_else(PoisonError::into_inner);
        *state == State::Running
    }

    /// Runs a vCPU until the machine ends; `None` when another ended it.
    pub(crate) fn run(&self, index: usize, board: &Board) -> Result<Option<End>, Error> {
        while self.wait() {
            let mut vcpu = self.vcpus[index]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            loop {
                let exit = vcpu.run()?;
                board.stats.exit(&exit);
                if matches!(exit, Exit::Kicked) {
                    break;
                }
                if let Some(end) = handle(&mut vcpu, exit, board)? {
                    return Ok(Some(end));
                }
            }
            if let Some(end) = settle(&mut vcpu, board)? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    /// Gives all vCPUs to gdb until its session ends, and runs the first one on. Says when it has them: no
    /// other thread may run one before.
    #[cfg(feature = "gdb")]
    pub(crate) fn run_under_gdb(
        &self,
        gdb: crate::gdb::Gdb,
        board: &Board,
        has_them: &std::sync::mpsc::Sender<()>,
    ) -> Result<Option<End>, Error> {
        let is_running = || {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            *state == State::Running
        };
        let mut end = None;
        {
            let mut vcpus: Vec<_> = self
                .vcpus
                .iter()
                .map(|v| v.lock().unwrap_or_else(PoisonError::into_inner))
                .collect();
            // The machine may have ended already, and then nobody waits.
            let _ = has_them.send(());
            let mut all = vcpus.iter_mut().map(|vcpu| &mut **vcpu);
            if let Some(first) = all.next() {
                let mut others: Vec<_> = all.collect();
                end = gdb.serve(first, &mut others, board, is_running)?;
            }
            for vcpu in &mut vcpus {
                if end.is_none() {
                    end = settle(vcpu, board)?;
                }
            }
        }
        match end {
            None => self.run(0, board),
            end => Ok(end),
        }
    }
}

/// Leaves a vCPU between two instructions: whoever stopped it may want to save it.
fn settle(vcpu: &mut Vcpu, board: &Board) -> Result<Option<End>, Error> {
    while let Some(exit) = vcpu.settle()? {
        board.stats.exit(&exit);
        if let Some(end) = handle(vcpu, exit, board)? {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

/// Does what the guest wants of the machine.
pub(crate) fn handle(vcpu: &mut Vcpu, exit: Exit, board: &Board) -> Result<Option<End>, Error> {
    match exit {
        Exit::PortOut(out) => return board.port_out(out.port, out.data()),
        Exit::PortIn(read) => {
            if let Some(bytes) = board.port_in(read.port, read.len()) {
                vcpu.reply(read.reply_bytes(&bytes))?;
            }
        }
        Exit::MmioWrite(write) => board.memory_write(write.address, write.data()),
        Exit::MmioRead(read) => {
            if let Some(value) = board.memory_read(read.address, read.size.into()) {
                vcpu.reply(read.reply(value))?;
            }
        }
        Exit::Interrupted | Exit::Kicked => {}
        Exit::Halt if vcpu.registers()?.rflags & INTERRUPTS_ON == 0 => return Ok(Some(End::Off)),
        Exit::Halt => {
            return Err(Error::HaltedForever {
                place: place(vcpu)?,
            });
        }
        Exit::Shutdown => return Err(crashed(vcpu, Crash::TripleFault)?),
        Exit::InternalError(InternalError::Emulation(failure)) => {
            return Err(crashed(vcpu, Crash::Emulation(failure))?);
        }
        other => return Err(crashed(vcpu, Crash::Exit(Box::new(other)))?),
    }
    Ok(None)
}

fn crashed(vcpu: &Vcpu, what: Crash) -> Result<Error, Error> {
    Ok(Error::Crashed {
        what,
        place: place(vcpu)?,
    })
}

/// Where the guest is.
pub(crate) fn place(vcpu: &Vcpu) -> Result<Place, Error> {
    let cs = vcpu.system_registers()?.cs;
    Ok(Place {
        mode: vcpu.mode()?,
        cs: cs.selector,
        cs_base: cs.base,
        rip: vcpu.registers()?.rip,
    })
}
