use std::io::Write;

use gdbstub::common::{Signal, Tid};
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints as ext;
use gdbstub::target::ext::breakpoints::WatchKind;
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;

use crate::gdb::{Action, Guest};
use crate::{Error, Result, Vcpu};

impl Guest<'_> {
    /// The vCPU that gdb means; none when it is none of ours.
    fn index(&self, tid: Tid) -> Option<usize> {
        self.cpus.iter().position(|cpu| cpu.tid() == tid)
    }

    fn vcpu(&self, tid: Tid) -> TargetResult<&Vcpu, Self> {
        let index = self.index(tid).ok_or(TargetError::NonFatal)?;
        Ok(self.cpus[index].vcpu)
    }

    fn set_action(&mut self, tid: Tid, action: Action) {
        if let Some(index) = self.index(tid) {
            self.cpus[index].action = action;
        }
    }
}

/// Where the bytes at a virtual address are, up to the end of the page.
fn piece(vcpu: &Vcpu, virt: u64, len: usize) -> Result<Option<(u64, usize)>> {
    let in_page = (crate::PAGE_SIZE - virt % crate::PAGE_SIZE) as usize;
    let physical = vcpu.translate(virt)?;
    Ok(physical.map(|physical| (physical, in_page.min(len))))
}

impl Target for Guest<'_> {
    type Arch = X86_64_SSE;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<ext::BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest<'_> {
    fn read_registers(&mut self, out: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid)?;
        let r = vcpu.registers().map_err(TargetError::Fatal)?;
        let s = vcpu.system_registers().map_err(TargetError::Fatal)?;
        let f = vcpu.fpu_registers().map_err(TargetError::Fatal)?;
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

    fn write_registers(&mut self, from: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid)?;
        let mut r = vcpu.registers().map_err(TargetError::Fatal)?;
        [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.rsp, r.r8, r.r9, r.r10, r.r11,
            r.r12, r.r13, r.r14, r.r15,
        ] = from.regs;
        r.rflags = from.eflags.into();
        r.rip = from.rip;
        let mut f = vcpu.fpu_registers().map_err(TargetError::Fatal)?;
        for (to, from) in f.st.iter_mut().zip(from.st) {
            to[..10].copy_from_slice(&from);
        }
        f.xmm = from.xmm;
        f.mxcsr = from.mxcsr;
        // Segments are left: their hidden parts are not gdb's to know.
        let refused = |_: Error| TargetError::NonFatal;
        vcpu.set_registers(&r).map_err(refused)?;
        vcpu.set_fpu_registers(&f).map_err(refused)
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let bytes = self
            .vcpu(tid)?
            .read_virtual(start, data.len())
            .map_err(TargetError::Fatal)?;
        if bytes.is_empty() && !data.is_empty() {
            return Err(TargetError::NonFatal);
        }
        data[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let vcpu = self.vcpu(tid)?;
        let mut done = 0;
        while done < data.len() {
            let rest = &data[done..];
            let at = start.wrapping_add(done as u64);
            let piece = piece(vcpu, at, rest.len()).map_err(TargetError::Fatal)?;
            let (physical, len) = piece.ok_or(TargetError::NonFatal)?;
            vcpu.memory()
                .write(physical, &rest[..len])
                .map_err(|_| TargetError::NonFatal)?;
            done += len;
        }
        Ok(())
    }

    fn list_active_threads(&mut self, each: &mut dyn FnMut(Tid)) -> Result<()> {
        self.cpus.iter().for_each(|cpu| each(cpu.tid()));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl ThreadExtraInfo for Guest<'_> {
    fn thread_extra_info(&self, tid: Tid, buf: &mut [u8]) -> Result<usize> {
        let len = buf.len();
        let mut rest = buf;
        if let Some(index) = self.index(tid) {
            let vcpu = &self.cpus[index].vcpu;
            // What does not fit is left out.
            let _ = write!(rest, "vCPU {}, {}", vcpu.id(), vcpu.mode()?);
        }
        Ok(len - rest.len())
    }
}

impl MultiThreadResume for Guest<'_> {
    fn resume(&mut self) -> Result<()> {
        self.apply()
    }

    fn clear_resume_actions(&mut self) -> Result<()> {
        for cpu in &mut self.cpus {
            cpu.action = Action::Unsaid;
        }
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<()> {
        self.set_action(tid, Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest<'_> {
    fn set_resume_action_step(&mut self, tid: Tid, _signal: Option<Signal>) -> Result<()> {
        self.set_action(tid, Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest<'_> {
    /// Comes after the actions.
    fn set_resume_action_scheduler_lock(&mut self) -> Result<()> {
        for cpu in &mut self.cpus {
            if cpu.action == Action::Unsaid {
                cpu.action = Action::Stay;
            }
        }
        Ok(())
    }
}

impl ext::Breakpoints for Guest<'_> {
    // Refused one by one where they have no effect: without it, gdb would write them itself.
    fn support_sw_breakpoint(&mut self) -> Option<ext::SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<ext::HwBreakpointOps<'_, Self>> {
        self.effective.breakpoints.then_some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<ext::HwWatchpointOps<'_, Self>> {
        self.effective.watchpoints.then_some(self)
    }
}

impl ext::SwBreakpoint for Guest<'_> {
    fn add_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        if !self.effective.software_breakpoints {
            return Ok(false);
        }
        // Where the vCPU that gdb was shown last has memory, or else any other has.
        let count = self.cpus.len();
        for index in (self.turn..self.turn + count).map(|index| index % count) {
            let vcpu = &self.cpus[index].vcpu;
            let there = vcpu.translate(address).map_err(TargetError::Fatal)?;
            let Some(physical) = there else { continue };
            if self.breakpoints.insert(vcpu.memory(), physical).is_ok() {
                self.software.insert(address, physical);
                self.apply().map_err(TargetError::Fatal)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _kind: usize) -> TargetResult<bool, Self> {
        let Some(physical) = self.software.remove(&address) else {
            return Ok(false);
        };
        self.breakpoints
            .remove(self.cpus[0].vcpu.memory(), physical)
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
