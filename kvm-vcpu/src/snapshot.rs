use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_state2,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::Cap;
use zerocopy::{FromBytes, IntoBytes};

use crate::error::{SnapshotProblem, ioctl};
use crate::pagemap::PageMap;
use crate::regs::bits;
use crate::{
    CpuidTable, Error, GuestMemory, IrqChip, Kvm, Mode, PAGE_SIZE, Region, Result, Vcpu, Vm,
};

/// The whole state of a stopped machine but its memory, which is saved beside it
/// ([`GuestMemory::save`]).
///
/// What connects the machine to its surroundings is no state and made anew after [`Snapshot::restore`]: eventfds
/// (irqfd and ioeventfd), interrupt routes other than a PC's, filters and exits for MSRs, collected
/// writes, and dirty rings.
///
/// ```no_run
/// # fn f(kvm: &kvm_vcpu::Kvm, vm: &kvm_vcpu::Vm, vcpu: &mut kvm_vcpu::Vcpu) -> Result<(), Box<dyn std::error::Error>> {
/// use kvm_vcpu::Snapshot;
/// use std::fs::{self, File};
///
/// while let Some(exit) = vcpu.settle()? { /* handle it */ }
/// vm.memory().save(&File::create("memory")?)?;
/// fs::write("state", Snapshot::take(kvm, vm, &[vcpu])?.to_bytes())?;
///
/// let snapshot = Snapshot::from_bytes(&fs::read("state")?)?;
/// let (vm, vcpus) = snapshot.restore(kvm, &File::open("memory")?)?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// What the host's CPU could do where it was taken.
    pub(crate) host: CpuidTable,
    /// The regions' start, length, whether they are read-only, and whether they are logged.
    pub(crate) regions: Vec<(u64, u64, bool, bool)>,
    pub(crate) irqchip: Option<IrqChip>,
    /// The kernel's two PICs and its IOAPIC.
    pub(crate) chips: Vec<kvm_irqchip_bytes>,
    pub(crate) pit: Option<kvm_pit_state2>,
    pub(crate) clock: Option<kvm_clock_data>,
    pub(crate) vcpus: Vec<VcpuState>,
}

/// A controller's state; a union, and so kept as bytes.
#[allow(non_camel_case_types)]
type kvm_irqchip_bytes = Vec<u8>;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct VcpuState {
    pub(crate) id: u32,
    pub(crate) cpuid: CpuidTable,
    pub(crate) regs: kvm_regs,
    pub(crate) sregs: kvm_sregs,
    pub(crate) xsave: Vec<u8>,
    pub(crate) xcrs: kvm_xcrs,
    pub(crate) debug: kvm_debugregs,
    pub(crate) msrs: Vec<(u32, u64)>,
    pub(crate) events: kvm_vcpu_events,
    pub(crate) mp_state: kvm_mp_state,
    /// Of the local APIC in the kernel.
    pub(crate) lapic: Option<Vec<u8>>,
}

impl GuestMemory {
    /// Saves all regions, one after another, to a file, which is as long as the guest's memory. Pages
    /// that are all zeros become holes. Those that were never touched are not even read where `/proc`
    /// is mounted.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryFile`] when the file cannot be written.
    pub fn save(&self, file: &File) -> Result<()> {
        const CHUNK: usize = 256 << 10;
        const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
        let write = |source| Error::MemoryFile {
            operation: "write the guest's memory to a file",
            source,
        };
        // Holes need a file that begins empty.
        file.set_len(0).map_err(write)?;
        file.set_len(self.size()).map_err(write)?;
        let mut buffer = vec![0; CHUNK];
        let page_map = PageMap::open();
        let mut offset = 0;
        for (region, mapping) in self.mappings() {
            for done in (0..region.len()).step_by(CHUNK) {
                let len = (region.len() - done).min(CHUNK as u64) as usize;
                let host = mapping.as_ptr().addr() + done as usize;
                if region.is_anonymous() && !page_map.is_touched(host, len) {
                    continue;
                }
                self.read(region.start() + done, &mut buffer[..len])?;
                for (page, at) in buffer[..len].chunks(PAGE_SIZE as usize).zip(0u64..) {
                    if *page != ZEROS {
                        file.write_all_at(page, offset + done + at * PAGE_SIZE)
                            .map_err(write)?;
                    }
                }
            }
            offset += region.len();
        }
        Ok(())
    }
}

impl Snapshot {
    /// Takes the state of a machine and of all its vCPUs, none of which may be running.
    ///
    /// # Errors
    ///
    /// [`Error::OtherMachine`] for a vCPU that is not of this machine; [`Error::Unsettled`] for one in
    /// the middle of an exit ([`Vcpu::settle`]);
    /// [`Error::CannotSave`] for state that has no place in a snapshot; [`Error::Ioctl`] when the
    /// kernel does not tell.
    pub fn take(kvm: &Kvm, vm: &Vm, vcpus: &[&mut Vcpu]) -> Result<Self> {
        let foreign = |vcpu: &&&mut Vcpu| !Arc::ptr_eq(vcpu.machine(), &vm.inner);
        if let Some(vcpu) = vcpus.iter().find(foreign) {
            return Err(Error::OtherMachine { id: vcpu.id() });
        }
        let irqchip = vm.inner.irqchip();
        let msrs = kvm.msr_list()?;
        let mut chips = Vec::new();
        let mut pit = None;
        if irqchip == Some(IrqChip::InKernel) {
            for chip_id in 0..3 {
                let mut chip = kvm_irqchip {
                    chip_id,
                    ..Default::default()
                };
                vm.fd()
                    .get_irqchip(&mut chip)
                    .map_err(ioctl("KVM_GET_IRQCHIP (saving an interrupt controller)"))?;
                chips.push(chip.as_bytes().to_vec());
            }
            // Without a PIT the kernel says ENXIO.
            pit = match vm.fd().get_pit2() {
                Ok(state) => Some(state),
                Err(e) if e.errno() == libc::ENXIO => None,
                Err(e) => return Err(ioctl("KVM_GET_PIT2 (saving the timer)")(e)),
            };
        }
        let clock = kvm
            .fd
            .check_extension(Cap::AdjustClock)
            .then(|| vm.fd().get_clock())
            .transpose()
            .map_err(ioctl("KVM_GET_CLOCK (saving the clock)"))?;
        Ok(Self {
            host: kvm.supported_cpuid()?,
            regions: vm
                .memory()
                .regions()
                .iter()
                .map(|r| (r.start(), r.len(), r.is_read_only(), r.is_logged()))
                .collect(),
            irqchip,
            chips,
            pit,
            clock,
            vcpus: vcpus
                .iter()
                .map(|vcpu| VcpuState::take(vcpu, &msrs, irqchip.is_some()))
                .collect::<Result<_>>()?,
        })
    }

    /// Makes a machine and vCPUs in this state, with the memory that [`GuestMemory::save`] put into a
    /// file. vCPUs come in the order in which they were taken.
    ///
    /// The file is mapped, not read: restoring takes the same time whatever its size, pages come as the
    /// guest touches them, and the file is not changed. Any number of machines can be restored from it.
    /// It must stay as long as it is while they live.
    ///
    /// # Errors
    ///
    /// [`Error::OtherCpu`] on a host whose CPU lacks something; [`Error::Region`] for a file that is too
    /// short; [`Error::Snapshot`] for contents that make no sense; [`Error::Msr`] for a register that this
    /// host does not have; and those of making a machine.
    pub fn restore(&self, kvm: &Kvm, memory: &File) -> Result<(Vm, Vec<Vcpu>)> {
        self.check_host(&kvm.supported_cpuid()?)?;
        let mut regions = Vec::new();
        let mut offset = 0;
        for (start, len, read_only, logged) in &self.regions {
            let file = memory.try_clone().map_err(|source| Error::MemoryFile {
                operation: "duplicate the file descriptor of a memory file",
                source,
            })?;
            let region = Region::file_private(*start, *len, file, offset);
            let region = if *logged { region.log_dirty() } else { region };
            regions.push(if *read_only {
                region.read_only()
            } else {
                region
            });
            offset = offset
                .checked_add(*len)
                .ok_or(SnapshotProblem::Invalid("list of regions"))?;
        }
        let vm = kvm.create_vm(&regions)?;
        if let Some(chip) = self.irqchip {
            vm.create_irqchip(chip)?;
        }
        if self.pit.is_some() {
            vm.create_pit()?;
        }
        let vcpus = self
            .vcpus
            .iter()
            .map(|state| {
                let vcpu = vm.create_vcpu(state.id, &Mode::Reset)?;
                state.restore(&vcpu)?;
                Ok(vcpu)
            })
            .collect::<Result<Vec<_>>>()?;
        for bytes in &self.chips {
            let chip = kvm_irqchip::read_from_bytes(bytes)
                .map_err(|_| SnapshotProblem::Invalid("interrupt controller"))?;
            vm.fd()
                .set_irqchip(&chip)
                .map_err(ioctl("KVM_SET_IRQCHIP (restoring an interrupt controller)"))?;
        }
        if let Some(pit) = &self.pit {
            vm.fd()
                .set_pit2(pit)
                .map_err(ioctl("KVM_SET_PIT2 (restoring the timer)"))?;
        }
        if let Some(clock) = self.clock {
            // What the host reports beside the time is not for setting.
            let clock = kvm_clock_data {
                clock: clock.clock,
                ..Default::default()
            };
            vm.fd()
                .set_clock(&clock)
                .map_err(ioctl("KVM_SET_CLOCK (restoring the clock)"))?;
        }
        Ok((vm, vcpus))
    }

    fn check_host(&self, here: &CpuidTable) -> Result<()> {
        let vendor = |table: &CpuidTable| {
            let leaf = table.get(0, 0);
            let bytes = leaf.map_or([[0; 4]; 3], |l| [l.ebx, l.edx, l.ecx].map(u32::to_le_bytes));
            String::from_utf8_lossy(bytes.as_flattened()).into_owned()
        };
        if vendor(&self.host) != vendor(here) {
            let features = vec![format!("vendor {}", vendor(&self.host))];
            return Err(Error::OtherCpu { features });
        }
        let missing = self.host.features_missing_in(here);
        if missing.is_empty() {
            Ok(())
        } else {
            let features = missing.iter().map(|f| f.name.to_owned()).collect();
            Err(Error::OtherCpu { features })
        }
    }
}

impl VcpuState {
    fn take(vcpu: &Vcpu, msrs: &[u32], has_lapic: bool) -> Result<Self> {
        if !vcpu.is_settled() {
            return Err(Error::Unsettled { id: vcpu.id() });
        }
        let fd = vcpu.fd();
        let sregs = fd
            .get_sregs()
            .map_err(ioctl("KVM_GET_SREGS (saving the system registers)"))?;
        if sregs.efer & bits::EFER_SVME != 0 || sregs.cr4 & bits::CR4_VMXE != 0 {
            return Err(Error::CannotSave {
                what: "a guest that is a hypervisor itself",
                advice: "take the snapshot while it has no virtualization on (VMX or SVM)",
            });
        }
        Ok(Self {
            id: vcpu.id(),
            cpuid: vcpu.cpuid()?,
            // The multiprocessing state first: reading it delivers what is pending.
            mp_state: fd
                .get_mp_state()
                .map_err(ioctl("KVM_GET_MP_STATE (saving the run state)"))?,
            // With those that the next run is to set.
            regs: vcpu.registers()?.into(),
            sregs,
            xsave: vcpu.xsave()?.into_vec(),
            xcrs: fd.get_xcrs().map_err(ioctl(
                "KVM_GET_XCRS (saving the extended control registers)",
            ))?,
            debug: fd
                .get_debug_regs()
                .map_err(ioctl("KVM_GET_DEBUGREGS (saving the debug registers)"))?,
            msrs: readable_msrs(vcpu, msrs)?,
            lapic: has_lapic
                .then(|| fd.get_lapic())
                .transpose()
                .map_err(ioctl(
                    "KVM_GET_LAPIC (saving the local interrupt controller)",
                ))?
                .map(|lapic| lapic.as_bytes().to_vec()),
            events: fd
                .get_vcpu_events()
                .map_err(ioctl("KVM_GET_VCPU_EVENTS (saving pending events)"))?,
        })
    }

    /// The registers that are not in a new vCPU as they were. Some that hold nothing can be read and
    /// not written, such as those that announce interrupts where there is no local APIC.
    fn msrs_that_differ(&self, vcpu: &Vcpu) -> Result<Vec<(u32, u64)>> {
        let indexes: Vec<u32> = self.msrs.iter().map(|(index, _)| *index).collect();
        let now = readable_msrs(vcpu, &indexes)?;
        let differs = |msr: &&(u32, u64)| !now.contains(*msr);
        Ok(self.msrs.iter().filter(differs).copied().collect())
    }

    fn restore(&self, vcpu: &Vcpu) -> Result<()> {
        let fd = vcpu.fd();
        let invalid = |what| Error::from(SnapshotProblem::Invalid(what));
        vcpu.set_cpuid(&self.cpuid)?;
        fd.set_mp_state(self.mp_state)
            .map_err(ioctl("KVM_SET_MP_STATE (restoring the run state)"))?;
        fd.set_regs(&self.regs)
            .map_err(ioctl("KVM_SET_REGS (restoring the registers)"))?;
        fd.set_sregs(&self.sregs)
            .map_err(ioctl("KVM_SET_SREGS (restoring the system registers)"))?;
        vcpu.set_xsave(&self.xsave).map_err(|e| match e {
            Error::TooMany { given, max, .. } => Error::OtherCpu {
                features: vec![format!("{given} bytes of extended registers (here {max})")],
            },
            e => e,
        })?;
        fd.set_xcrs(&self.xcrs).map_err(ioctl(
            "KVM_SET_XCRS (restoring the extended control registers)",
        ))?;
        fd.set_debug_regs(&self.debug)
            .map_err(ioctl("KVM_SET_DEBUGREGS (restoring the debug registers)"))?;
        if let Some(bytes) = &self.lapic {
            let lapic = kvm_lapic_state::read_from_bytes(bytes)
                .map_err(|_| invalid("local interrupt controller"))?;
            fd.set_lapic(&lapic).map_err(ioctl(
                "KVM_SET_LAPIC (restoring the local interrupt controller)",
            ))?;
        }
        // After the local APIC, whose timer mode some depend on.
        vcpu.set_msrs(&self.msrs_that_differ(vcpu)?)?;
        // Last: it says what the above left pending.
        fd.set_vcpu_events(&self.events)
            .map_err(ioctl("KVM_SET_VCPU_EVENTS (restoring pending events)"))
    }
}

/// The values of those registers in the list that this vCPU has. The list is the host's; a vCPU whose
/// CPUID leaves out a feature lacks its registers, and they hold nothing.
fn readable_msrs(vcpu: &Vcpu, list: &[u32]) -> Result<Vec<(u32, u64)>> {
    let mut values = Vec::with_capacity(list.len());
    let mut rest = list;
    while !rest.is_empty() {
        match vcpu.msrs(rest) {
            Ok(read) => {
                values.extend(rest.iter().copied().zip(read));
                break;
            }
            Err(Error::Msr { index, .. }) => {
                let at = rest.iter().position(|i| *i == index).unwrap_or(0);
                let read = vcpu.msrs(&rest[..at])?;
                values.extend(rest[..at].iter().copied().zip(read));
                rest = &rest[at + 1..];
            }
            Err(e) => return Err(e),
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Exit, msr};
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::time::Duration;

    /// Without what goes on while the guest does not: clocks and counters, and which CPU of the host was
    /// asked.
    fn without_time(snapshot: &Snapshot) -> Snapshot {
        const HV_VP_RUNTIME: u32 = 0x4000_0010;
        const HV_TIME_REF_COUNT: u32 = 0x4000_0020;
        let mut still = snapshot.clone();
        still.host = CpuidTable::default();
        still.clock = None;
        for channel in still.pit.iter_mut().flat_map(|pit| &mut pit.channels) {
            channel.count_load_time = 0;
        }
        for vcpu in &mut still.vcpus {
            let tsc = msr::IA32_TIME_STAMP_COUNTER;
            let ticks = [tsc, HV_VP_RUNTIME, HV_TIME_REF_COUNT];
            vcpu.msrs.retain(|(index, _)| !ticks.contains(index));
        }
        still
    }

    /// Part by part, so that a difference has a name.
    fn assert_same(again: &Snapshot, saved: &Snapshot) {
        macro_rules! same {
            ($a:ident $b:ident: $($part:ident)*) => {
                $(assert_eq!($a.$part, $b.$part, "{}", stringify!($part));)*
            };
        }
        for (a, b) in again.vcpus.iter().zip(&saved.vcpus) {
            same!(a b: id cpuid regs sregs xsave xcrs debug msrs lapic events mp_state);
        }
        same!(again saved: regions irqchip pit chips);
        assert_eq!(again, saved);
    }

    #[test]
    #[ignore = "needs kvm"]
    fn every_part_of_the_state_is_restored() {
        const CODE: u16 = 0x1000;
        let kvm = Kvm::open().unwrap();
        let vm = kvm.create_vm(&[Region::anonymous(0, 0x1_0000)]).unwrap();
        vm.create_irqchip(IrqChip::InKernel).unwrap();
        vm.create_pit().unwrap();
        // The first PIC's mask becomes 0x5a, and the timer's channel 2 a square wave with a divisor of
        // 0x1234: mov al, 0x5a; out 0x21, al; mov al, 0xb6; out 0x43, al; mov al, 0x34; out 0x42, al;
        // mov al, 0x12; out 0x42, al; out 0x80, al; hlt
        let code = [
            0xb0, 0x5a, 0xe6, 0x21, 0xb0, 0xb6, 0xe6, 0x43, 0xb0, 0x34, 0xe6, 0x42, 0xb0, 0x12,
            0xe6, 0x42, 0xe6, 0x80, 0xf4,
        ];
        vm.write(CODE.into(), &code).unwrap();
        let mut vcpu = vm.create_vcpu(0, &Mode::real(0, CODE)).unwrap();
        let mut other = vm.create_vcpu(1, &Mode::Reset).unwrap();
        assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
        assert_eq!(vcpu.settle().unwrap(), None);
        let mut fpu = vcpu.fpu_registers().unwrap();
        (fpu.xmm[3], fpu.control) = (0x1234_5678 << 64 | 9, 0x27f);
        vcpu.set_fpu_registers(&fpu).unwrap();
        vcpu.set_xcr0(3).unwrap();
        let mut debug = vcpu.debug_registers().unwrap();
        debug.addresses = [1, 2, 3, 4];
        vcpu.set_debug_registers(&debug).unwrap();
        vcpu.set_msrs(&[(msr::LSTAR, 0x7000), (msr::KERNEL_GS_BASE, 5)])
            .unwrap();
        let mut apic = vcpu.local_apic().unwrap();
        // The vector of its error interrupt.
        apic[0x370] = 0x77;
        vcpu.set_local_apic(&apic).unwrap();
        vcpu.nmi().unwrap();
        vm.set_clock(Duration::from_hours(1)).unwrap();

        let file = File::from(memfd_create("state", MemfdFlags::CLOEXEC).unwrap());
        vm.memory().save(&file).unwrap();
        let saved = Snapshot::take(&kvm, &vm, &[&mut vcpu, &mut other]).unwrap();
        let (vm, mut vcpus) = saved.restore(&kvm, &file).unwrap();
        let all: Vec<&mut Vcpu> = vcpus.iter_mut().collect();
        let again = Snapshot::take(&kvm, &vm, &all).unwrap();
        assert_same(&without_time(&again), &without_time(&saved));
        let elapsed = |s: &Snapshot| s.clock.map(|clock| clock.clock);
        assert!(elapsed(&again) >= elapsed(&saved));

        // And it is what was put in.
        let [first, second] = &again.vcpus[..] else {
            panic!("{} vCPUs", again.vcpus.len())
        };
        assert_ne!(second.mp_state, first.mp_state);
        assert_eq!(
            (first.regs.rip, first.sregs.cs.base),
            (u64::from(CODE) + 18, 0)
        );
        assert_eq!(
            (first.xcrs.xcrs[0].value, first.debug.db),
            (3, [1, 2, 3, 4])
        );
        assert_eq!(first.xsave[160 + 48], 9);
        assert!(first.msrs.contains(&(msr::LSTAR, 0x7000)));
        assert_eq!(first.lapic.as_ref().unwrap()[0x370], 0x77);
        assert_eq!(first.events.nmi.pending, 1);
        assert_eq!(again.pit.unwrap().channels[2].count, 0x1234);
        let pic = kvm_irqchip::read_from_bytes(&again.chips[0]).unwrap();
        assert!(pic.as_bytes().contains(&0x5a));
        assert!(elapsed(&again) >= Some(3600 * 1_000_000_000));
    }
}
