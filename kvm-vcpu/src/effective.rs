use std::sync::OnceLock;

use crate::{Debugging, Exit, Kvm, Mode, PageTables, Region, Result, Watch};

/// Which ways of stopping a guest a host's KVM really has: [`Kvm::effective_debugging`].
///
/// The kernel accepts them all, whatever comes of it:
///
/// - On hardware virtualization (VMX or SVM of a real CPU) all have an effect.
/// - A KVM that emulates the guest's instructions has breakpoints and no watchpoints: the kernel's
///   emulator compares the debug registers with where an instruction is, and not with what it accesses.
/// - KVM nested in QEMU's software CPU (TCG) has breakpoints and watchpoints from QEMU 9.1 on. Before,
///   `vmrun` loads `dr7` without arming what it says. An `int3` is not intercepted by any version: only
///   the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
// Each is a fact of its own.
#[allow(clippy::struct_excessive_bools)]
pub struct EffectiveDebugging {
    /// [`Debugging::single_step`].
    pub single_step: bool,
    /// [`Debugging::software_breakpoints`].
    pub software_breakpoints: bool,
    /// [`Debugging::breakpoint`].
    pub breakpoints: bool,
    /// [`Debugging::watch`].
    pub watchpoints: bool,
}

const CODE: u64 = 0x1000;
const DATA: u64 = 0x2000;
const TABLES: u64 = 0x3000;

/// mov [0x2000], eax; int3; hlt
const GUEST: [u8; 9] = [0x89, 0x04, 0x25, 0, 0x20, 0, 0, 0xcc, 0xf4];

impl Kvm {
    /// Which ways of stopping a guest have an effect here, found out by a guest in long mode that is to
    /// be stopped; once per process.
    ///
    /// # Errors
    ///
    /// Those of making and running a small machine.
    pub fn effective_debugging(&self) -> Result<EffectiveDebugging> {
        if let Some(known) = known() {
            return Ok(known);
        }
        let vm = self.create_vm(&[Region::anonymous(0, 0x1_0000)])?;
        vm.write(CODE, &GUEST)?;
        let mut tables = PageTables::new(TABLES, 0x8000);
        tables.identity(0x1_0000)?;
        let mode = Mode::long(CODE, tables.install(vm.memory())?);
        let mut vcpu = vm.create_vcpu(0, &mode)?;
        let mut stops = |debugging: Debugging| -> Result<bool> {
            vcpu.set_mode(&mode)?;
            vcpu.set_debugging(&debugging)?;
            loop {
                match vcpu.run()? {
                    Exit::Interrupted => {}
                    exit => return Ok(matches!(exit, Exit::Debug { .. })),
                }
            }
        };
        let debugging = Debugging::default;
        let found = EffectiveDebugging {
            single_step: stops(debugging().single_step(true))?,
            software_breakpoints: stops(debugging().software_breakpoints(true))?,
            breakpoints: stops(debugging().breakpoint(CODE))?,
            watchpoints: stops(debugging().watch(DATA, 4, Watch::Write))?,
        };
        Ok(*KNOWN.get_or_init(|| found))
    }
}

static KNOWN: OnceLock<EffectiveDebugging> = OnceLock::new();

/// What was found out, if it was.
fn known() -> Option<EffectiveDebugging> {
    KNOWN.get().copied()
}
