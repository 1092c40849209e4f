use std::fs::File;
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_pit_state2,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::Cap;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::{SnapshotProblem, ioctl};
use crate::regs::bits;
use crate::{
    CpuidLeaf, CpuidTable, Error, GuestMemory, IrqChip, Kvm, Mode, PAGE_SIZE, Region, Result, Vcpu,
    Vm,
};

/// The whole state of a stopped machine but its memory, which is saved beside it
/// ([`GuestMemory::save`]).
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
    host: CpuidTable,
    /// The regions' start, length, whether they are read-only, and whether they are logged.
    regions: Vec<(u64, u64, bool, bool)>,
    irqchip: Option<IrqChip>,
    /// The kernel's two PICs and its IOAPIC.
    chips: Vec<kvm_irqchip_bytes>,
    pit: Option<kvm_pit_state2>,
    clock: Option<kvm_clock_data>,
    vcpus: Vec<VcpuState>,
}

/// A controller's state; a union, and so kept as bytes.
#[allow(non_camel_case_types)]
type kvm_irqchip_bytes = Vec<u8>;

#[derive(Debug, Clone, PartialEq)]
struct VcpuState {
    id: u32,
    cpuid: CpuidTable,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u8>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    msrs: Vec<(u32, u64)>,
    events: kvm_vcpu_events,
    mp_state: kvm_mp_state,
    /// Of the local APIC in the kernel.
    lapic: Option<Vec<u8>>,
}

impl GuestMemory {
    /// Saves all regions, one after another, to a file, which is as long as the guest's memory. Pages
    /// that are all zeros become holes.
    ///
    /// # Errors
    ///
    /// [`Error::MemoryFile`] when the file cannot be written.
    pub fn save(&self, file: &File) -> Result<()> {
        const CHUNK: usize = 256 << 10;
        let write = |source| Error::MemoryFile {
            operation: "write the guest's memory to a file",
            source,
        };
        // Holes need a file that begins empty.
        file.set_len(0).map_err(write)?;
        file.set_len(self.size()).map_err(write)?;
        let mut buffer = vec![0; CHUNK];
        let mut offset = 0;
        for region in self.regions() {
            let mut done = 0;
            while done < region.len() {
                let len = (region.len() - done).min(CHUNK as u64) as usize;
                self.read(region.start() + done, &mut buffer[..len])?;
                for (page, at) in buffer[..len].chunks(PAGE_SIZE as usize).zip(0u64..) {
                    if page.iter().any(|b| *b != 0) {
                        file.write_all_at(page, offset + at * PAGE_SIZE)
                            .map_err(write)?;
                    }
                }
                done += len as u64;
                offset += len as u64;
            }
        }
        Ok(())
    }
}

impl Snapshot {
    /// Takes the state of a machine and of all its vCPUs, none of which may be running.
    ///
    /// # Errors
    ///
    /// [`Error::Unsettled`] for a vCPU in the middle of an exit ([`Vcpu::settle`]);
    /// [`Error::CannotSave`] for state that has no place in a snapshot; [`Error::Ioctl`] when the
    /// kernel does not tell.
    pub fn take(kvm: &Kvm, vm: &Vm, vcpus: &[&mut Vcpu]) -> Result<Self> {
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
    /// short; [`Error::Msr`] for a register that this host does not have; and those of making a machine.
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
            offset += len;
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

    /// The snapshot as bytes: a versioned format with a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer(Vec::new());
        w.0.extend_from_slice(MAGIC);
        w.value(&VERSION);
        w.cpuid(&self.host);
        w.list(&self.regions, |w, (start, len, read_only, logged)| {
            w.value(start);
            w.value(len);
            w.value(&u8::from(*read_only));
            w.value(&u8::from(*logged));
        });
        let (kind, pins) = match self.irqchip {
            None => (0u8, 0),
            Some(IrqChip::InKernel) => (1, 0),
            Some(IrqChip::Split { pins }) => (2, pins),
        };
        w.value(&kind);
        w.value(&pins);
        w.list(&self.chips, |w, chip| w.bytes(chip));
        w.option(self.pit.as_ref());
        w.option(self.clock.as_ref());
        w.list(&self.vcpus, |w, v| {
            w.value(&v.id);
            w.cpuid(&v.cpuid);
            w.value(&v.regs);
            w.value(&v.sregs);
            w.value(&(v.xsave.len() as u32));
            w.bytes(&v.xsave);
            w.value(&v.xcrs);
            w.value(&v.debug);
            w.list(&v.msrs, |w, (index, value)| {
                w.value(index);
                w.value(value);
            });
            w.value(&v.events);
            w.value(&v.mp_state);
            w.value(&u8::from(v.lapic.is_some()));
            if let Some(lapic) = &v.lapic {
                w.bytes(lapic);
            }
        });
        let checksum = crc32fast::hash(&w.0);
        w.value(&checksum);
        w.0
    }

    /// Reads a snapshot that [`Snapshot::to_bytes`] wrote.
    ///
    /// # Errors
    ///
    /// [`Error::Snapshot`], which says what is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let rest = bytes
            .strip_prefix(MAGIC)
            .ok_or(SnapshotProblem::NotASnapshot)?;
        let (body, checksum) = bytes
            .split_last_chunk::<4>()
            .map(|(body, sum)| (body, u32::from_le_bytes(*sum)))
            .ok_or(SnapshotProblem::Damaged)?;
        // The version first: another one may have its checksum elsewhere.
        let found = Reader(rest).value::<u32>("version")?;
        if found != VERSION {
            return Err(SnapshotProblem::Version {
                found,
                expected: VERSION,
            }
            .into());
        }
        if crc32fast::hash(body) != checksum {
            return Err(SnapshotProblem::Damaged.into());
        }
        let mut r = Reader(&body[MAGIC.len() + 4..]);
        let host = r.cpuid()?;
        let regions = r.list("list of regions", |r| {
            let (start, len) = (r.value("region")?, r.value("region")?);
            Ok((start, len, r.flag("region")?, r.flag("region")?))
        })?;
        let (kind, pins) = (
            r.value::<u8>("interrupt controller")?,
            r.value::<u16>("interrupt controller")?,
        );
        let irqchip = match kind {
            0 => None,
            1 => Some(IrqChip::InKernel),
            2 => Some(IrqChip::Split { pins }),
            _ => return Err(SnapshotProblem::Invalid("interrupt controller").into()),
        };
        let chips = r.list("interrupt controller", |r| {
            r.bytes("interrupt controller", size_of::<kvm_irqchip>())
        })?;
        let pit = r.option("timer")?;
        let clock = r.option("clock")?;
        let vcpus = r.list("list of vCPUs", |r| {
            Ok(VcpuState {
                id: r.value("vCPU number")?,
                cpuid: r.cpuid()?,
                regs: r.value("registers")?,
                sregs: r.value("system registers")?,
                xsave: r.xsave()?,
                xcrs: r.value("extended control registers")?,
                debug: r.value("debug registers")?,
                msrs: r.list("list of MSRs", |r| Ok((r.value("MSR")?, r.value("MSR")?)))?,
                events: r.value("pending events")?,
                mp_state: r.value("run state")?,
                lapic: if r.flag("local interrupt controller")? {
                    let len = size_of::<kvm_lapic_state>();
                    Some(r.bytes("local interrupt controller", len)?)
                } else {
                    None
                },
            })
        })?;
        if !r.0.is_empty() {
            return Err(SnapshotProblem::Invalid("length").into());
        }
        Ok(Self {
            host,
            regions,
            irqchip,
            chips,
            pit,
            clock,
            vcpus,
        })
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
            regs: fd
                .get_regs()
                .map_err(ioctl("KVM_GET_REGS (saving the registers)"))?,
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

const MAGIC: &[u8] = b"cofferdam-vcpu\n";
const VERSION: u32 = 2;

struct Writer(Vec<u8>);

impl Writer {
    fn value<T: IntoBytes + Immutable>(&mut self, value: &T) {
        self.0.extend_from_slice(value.as_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn list<T>(&mut self, list: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.value(&(list.len() as u32));
        for item in list {
            each(self, item);
        }
    }

    fn option<T: IntoBytes + Immutable>(&mut self, value: Option<&T>) {
        self.value(&u8::from(value.is_some()));
        if let Some(value) = value {
            self.value(value);
        }
    }

    fn cpuid(&mut self, table: &CpuidTable) {
        self.list(table.leaves(), |w, l| {
            let subleaf = (u32::from(l.subleaf.is_some()), l.subleaf.unwrap_or(0));
            for n in [l.leaf, subleaf.0, subleaf.1, l.eax, l.ebx, l.ecx, l.edx] {
                w.value(&n);
            }
        });
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn value<T: FromBytes>(&mut self, what: &'static str) -> Result<T> {
        let (value, rest) =
            T::read_from_prefix(self.0).map_err(|_| SnapshotProblem::Invalid(what))?;
        self.0 = rest;
        Ok(value)
    }

    fn bytes(&mut self, what: &'static str, len: usize) -> Result<Vec<u8>> {
        let (bytes, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(SnapshotProblem::Invalid(what))?;
        self.0 = rest;
        Ok(bytes.to_vec())
    }

    fn xsave(&mut self) -> Result<Vec<u8>> {
        let len = self.value::<u32>("extended registers")? as usize;
        if len < size_of::<kvm_xsave>() {
            return Err(SnapshotProblem::Invalid("extended registers").into());
        }
        self.bytes("extended registers", len)
    }

    fn flag(&mut self, what: &'static str) -> Result<bool> {
        match self.value::<u8>(what)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(SnapshotProblem::Invalid(what).into()),
        }
    }

    fn option<T: FromBytes>(&mut self, what: &'static str) -> Result<Option<T>> {
        if self.flag(what)? {
            self.value(what).map(Some)
        } else {
            Ok(None)
        }
    }

    /// Nothing is set aside for what a length promises: every item is at least a byte of the file.
    fn list<T>(
        &mut self,
        what: &'static str,
        mut each: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let len = self.value::<u32>(what)?;
        (0..len).map(|_| each(self)).collect()
    }

    fn cpuid(&mut self) -> Result<CpuidTable> {
        let leaves = self.list("CPUID", |r| {
            let n = r.value::<[u32; 7]>("CPUID")?;
            Ok(CpuidLeaf {
                leaf: n[0],
                subleaf: (n[1] != 0).then_some(n[2]),
                eax: n[3],
                ebx: n[4],
                ecx: n[5],
                edx: n[6],
            })
        })?;
        Ok(CpuidTable::new(leaves))
    }
}
