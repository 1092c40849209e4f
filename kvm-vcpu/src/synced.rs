use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS};

use crate::sys::RunPage;
use crate::{Registers, SystemRegisters};

bitflags::bitflags! {
    /// Registers that come with each exit: [`Vcpu::sync_registers`](crate::Vcpu::sync_registers).
    #[doc(alias = "kvm_valid_regs")]
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Synced: u64 {
        /// The general registers.
        const GENERAL = KVM_SYNC_X86_REGS as u64;
        /// The segment, control and table registers.
        const SYSTEM = KVM_SYNC_X86_SREGS as u64;
    }
}

/// What the run pages hold of a vCPU's registers.
#[derive(Debug)]
pub(crate) struct SyncState {
    wanted: Synced,
    /// Those in the run pages that are the vCPU's: since the last exit nobody has set them otherwise.
    fresh: AtomicU64,
    /// To be set by the next run.
    next: Option<Registers>,
}

impl SyncState {
    pub(crate) const fn new() -> Self {
        Self {
            wanted: Synced::empty(),
            fresh: AtomicU64::new(0),
            next: None,
        }
    }

    pub(crate) fn want(&mut self, wanted: Synced, page: &mut RunPage) {
        self.wanted = wanted;
        page.set_valid_registers(wanted.bits());
    }

    /// What is in the run pages of these is not what the vCPU has any longer.
    pub(crate) fn forget(&self, which: Synced) {
        self.fresh.fetch_and(!which.bits(), Ordering::Relaxed);
    }

    fn is_fresh(&self, which: Synced) -> bool {
        self.fresh.load(Ordering::Relaxed) & which.bits() != 0
    }

    pub(crate) fn general(&self, page: &RunPage) -> Option<Registers> {
        if self.is_fresh(Synced::GENERAL) {
            self.next
                .or_else(|| Some(page.synced_registers().regs.into()))
        } else {
            None
        }
    }

    pub(crate) fn system(&self, page: &RunPage) -> Option<SystemRegisters> {
        self.is_fresh(Synced::SYSTEM)
            .then(|| page.synced_registers().sregs.into())
    }

    /// Has the next run set these.
    pub(crate) fn set_next(&mut self, registers: Registers) {
        self.next = Some(registers);
        self.fresh
            .fetch_or(Synced::GENERAL.bits(), Ordering::Relaxed);
    }

    /// Before a run.
    pub(crate) fn enter(&mut self, page: &mut RunPage) {
        match self.next {
            Some(registers) if self.is_fresh(Synced::GENERAL) => {
                page.set_next_registers(Some(&registers.into()));
            }
            // Others have taken their place.
            Some(_) => {
                self.next = None;
                page.set_next_registers(None);
            }
            None => {}
        }
    }

    /// After a run: what was to be set is, unless the vCPU waits to be started by another.
    pub(crate) fn leave(&mut self, page: &mut RunPage) {
        if self.next.is_some() && !page.has_next_registers() {
            self.next = None;
        }
        let kept = self.next.map_or(0, |_| Synced::GENERAL.bits());
        *self.fresh.get_mut() = self.wanted.bits() | kept;
    }
}
