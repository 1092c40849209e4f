use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_MAX_VCPU_ID, KVM_CAP_MAX_VCPUS, KVM_CAP_XSAVE2,
};
use kvm_ioctls::{Cap, VmFd};

use crate::dirty_ring::DirtyRings;
use crate::error::{RegionProblem, ioctl};
use crate::sys::Machine;
use crate::{
    CpuidTable, Error, Feature, GuestMemory, IrqChip, Kvm, Mode, Pod, Region, Result, Vcpu, sys,
};

/// Which flags `guest_memfd` takes; newer than `kvm-bindings`.
const KVM_CAP_GUEST_MEMFD_FLAGS: u64 = 244;
/// `GUEST_MEMFD_FLAG_MMAP` and `GUEST_MEMFD_FLAG_INIT_SHARED`.
const MAPPED_AND_SHARED: i32 = 3;

/// A virtual machine: guest memory, and the vCPUs that are made from it.
///
/// The memory lives until the machine and the last of its vCPUs are dropped, in whatever order that
/// happens. Cloning makes another handle on the same machine.
#[doc(alias = "KVM_CREATE_VM")]
#[derive(Debug, Clone)]
pub struct Vm {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) machine: Arc<Machine>,
    pub(crate) memory: GuestMemory,
    supported_cpuid: CpuidTable,
    irqchip: OnceLock<IrqChip>,
    /// Whether what is in the log of dirty pages stays until it is cleared.
    manual_log: AtomicBool,
    dirty_rings: OnceLock<DirtyRings>,
    vcpus: Mutex<BTreeSet<u32>>,
}

impl Vm {
    /// Makes a virtual machine with these regions of memory and no vCPU yet.
    ///
    /// # Errors
    ///
    /// [`Error::Region`] when a region is empty, unaligned, too high, or overlaps another;
    /// [`Error::MapMemory`] when the host has no memory for it; [`Error::Ioctl`] when the kernel
    /// refuses the machine.
    pub fn new(kvm: &Kvm, regions: &[Region]) -> Result<Self> {
        if !regions.iter().any(Region::wants_guest_memfd) {
            // Before there is a machine, so that bad regions cost nothing.
            return Self::with_memory(kvm, GuestMemory::new(regions)?);
        }
        let machine = Machine::create(kvm)?;
        let regions = regions
            .iter()
            .map(|region| {
                if region.wants_guest_memfd() {
                    region.check()?;
                    let file = machine.create_guest_memfd(region.len())?;
                    Ok(region.clone().with_guest_memfd(file))
                } else {
                    Ok(region.clone())
                }
            })
            .collect::<Result<Vec<_>>>()?;
        Self::assemble(kvm, machine, GuestMemory::new(&regions)?)
    }

    /// Makes a virtual machine with memory that exists already, and may be that of other machines.
    ///
    /// # Errors
    ///
    /// [`Error::Region`] when the host allows no more regions; [`Error::Ioctl`] when the kernel
    /// refuses the machine.
    pub fn with_memory(kvm: &Kvm, memory: GuestMemory) -> Result<Self> {
        Self::assemble(kvm, Machine::create(kvm)?, memory)
    }

    fn assemble(kvm: &Kvm, machine: Arc<Machine>, memory: GuestMemory) -> Result<Self> {
        for (slot, (region, mapping)) in (0..).zip(memory.mappings()) {
            if region.is_read_only() && !kvm.fd.check_extension(Cap::ReadonlyMem) {
                return Err(Error::Unsupported {
                    capability: "KVM_CAP_READONLY_MEM",
                    advice: "leave the region writable",
                });
            }
            machine
                .map(
                    slot,
                    region.start(),
                    mapping,
                    region.flags(),
                    region.is_guest_memfd(),
                )
                // Asked after the fact: a machine with few regions need not know how many it could have.
                .map_err(|e| match e.errno() {
                    libc::EINVAL if slot as usize >= kvm.max_regions() => {
                        region.refuse(RegionProblem::TooMany)
                    }
                    _ => ioctl("KVM_SET_USER_MEMORY_REGION (giving the machine memory)")(e),
                })?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                machine,
                memory,
                supported_cpuid: kvm.supported_cpuid()?,
                irqchip: OnceLock::new(),
                manual_log: AtomicBool::new(false),
                dirty_rings: OnceLock::new(),
                vcpus: Mutex::new(BTreeSet::new()),
            }),
        })
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.inner.memory
    }

    /// Copies bytes into the guest: [`GuestMemory::write`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses; nothing is written then.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.inner.memory.write(address, bytes)
    }

    /// Reads a value out of the guest: [`GuestMemory::read_value`].
    ///
    /// # Errors
    ///
    /// [`Error::OutOfBounds`] when the guest lacks any of these addresses.
    pub fn read_value<T: Pod + Default>(&self, address: u64) -> Result<T> {
        self.inner.memory.read_value(address)
    }

    /// Makes a virtual CPU that is about to run its first instruction in this mode.
    ///
    /// `id` is its number, unique in the machine, and its local APIC's id. It sees the CPUID that
    /// the host supports.
    ///
    /// # Errors
    ///
    /// [`Error::VcpuLimit`] and [`Error::VcpuExists`] for a number that cannot be;
    /// [`Error::TooManyVcpus`] when there are as many as there can be; the errors of [`Vcpu::set_mode`].
    #[doc(alias = "KVM_CREATE_VCPU")]
    pub fn create_vcpu(&self, id: u32, mode: &Mode) -> Result<Vcpu> {
        if !self.vcpus().insert(id) {
            return Err(Error::VcpuExists { id });
        }
        let fd = self
            .inner
            .machine
            .create_vcpu(id)
            .map_err(|e| self.no_vcpu(id, e))?;
        if let Some(rings) = self.inner.dirty_rings() {
            rings.add(&fd.fd)?;
        }
        Vcpu::new(self.inner.clone(), fd, id, mode)
    }

    /// Gives the number back and says why there is no vCPU of it. The limits are asked for after the fact:
    /// within them a machine need not know them.
    fn no_vcpu(&self, id: u32, error: kvm_ioctls::Error) -> Error {
        let mut vcpus = self.vcpus();
        vcpus.remove(&id);
        let limit = |capability, reached: u32| {
            Some(self.extent_of(capability)).filter(|max| *max > 0 && reached >= *max)
        };
        if let Some(max) = limit(KVM_CAP_MAX_VCPU_ID, id) {
            Error::VcpuLimit { id, max }
        } else if let Some(max) = limit(KVM_CAP_MAX_VCPUS, vcpus.len() as u32) {
            Error::TooManyVcpus { id, max }
        } else {
            ioctl("KVM_CREATE_VCPU (making a virtual CPU)")(error)
        }
    }

    /// The numbers of the vCPUs that were made.
    fn vcpus(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        let vcpus = &self.inner.vcpus;
        vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the CPUID of the vCPU with this number is if nothing else is set: what the host supports,
    /// with the vCPU's number as its local APIC's, and a hypervisor announced. A machine of several
    /// vCPUs gives each [`CpuidTable::with_topology`] of it.
    pub fn cpuid_for(&self, id: u32) -> CpuidTable {
        self.inner.cpuid_for(id)
    }

    pub(crate) fn fd(&self) -> &VmFd {
        self.inner.machine.fd()
    }

    /// How far this machine's kernel can do something: 0 for not at all.
    pub(crate) fn extent_of(&self, capability: u32) -> u32 {
        self.inner.extent_of(capability)
    }

    /// Refuses what the kernel allows only while there are no vCPUs.
    pub(crate) fn before_vcpus(&self, operation: &'static str) -> Result<()> {
        if self.vcpus().is_empty() {
            Ok(())
        } else {
            Err(Error::Order { operation })
        }
    }

    pub(crate) fn note_irqchip(&self, chip: IrqChip) {
        // A second one is refused by the kernel before it comes here.
        let _first = self.inner.irqchip.set(chip);
    }
}

impl Machine {
    fn create(kvm: &Kvm) -> Result<Arc<Self>> {
        let fd = kvm
            .fd
            .create_vm()
            .map_err(ioctl("KVM_CREATE_VM (making a virtual machine)"))?;
        Ok(Arc::new(Self::new(fd)))
    }

    /// Makes memory that belongs to this machine and can be mapped.
    fn create_guest_memfd(&self, len: u64) -> Result<File> {
        let flags = self.fd().check_extension_raw(KVM_CAP_GUEST_MEMFD_FLAGS);
        if flags & MAPPED_AND_SHARED != MAPPED_AND_SHARED {
            return Err(Error::Unsupported {
                capability: "KVM_CAP_GUEST_MEMFD_FLAGS",
                advice: "use a kernel of 6.18 or newer, or Region::memfd",
            });
        }
        sys::guest_memfd(self.fd(), len, MAPPED_AND_SHARED.unsigned_abs().into())
            .map_err(|source| Error::MapMemory { len, source })
    }
}

impl Inner {
    /// Where its interrupt controllers are, if it has any.
    pub(crate) fn irqchip(&self) -> Option<IrqChip> {
        self.irqchip.get().copied()
    }

    pub(crate) fn extent_of(&self, capability: u32) -> u32 {
        let answer = self.machine.fd().check_extension_raw(capability.into());
        u32::try_from(answer).unwrap_or(0)
    }

    /// How many bytes of extended registers the kernel keeps for a vCPU, if it says so (Linux 5.17).
    pub(crate) fn xsave2_size(&self) -> Option<usize> {
        static SIZE: OnceLock<usize> = OnceLock::new();
        let size = *SIZE.get_or_init(|| self.extent_of(KVM_CAP_XSAVE2) as usize);
        (size > 0).then_some(size)
    }

    /// Refuses a kernel on which a vCPU cannot be stopped without a race; asked once.
    pub(crate) fn require_immediate_exit(&self) -> Result<()> {
        static PRESENT: OnceLock<bool> = OnceLock::new();
        if *PRESENT.get_or_init(|| self.extent_of(KVM_CAP_IMMEDIATE_EXIT) > 0) {
            Ok(())
        } else {
            Err(Error::Unsupported {
                capability: "KVM_CAP_IMMEDIATE_EXIT",
                advice: "use a kernel of 4.13 or newer",
            })
        }
    }

    pub(crate) fn dirty_rings(&self) -> Option<&DirtyRings> {
        self.dirty_rings.get()
    }

    pub(crate) fn note_dirty_rings(&self, rings: DirtyRings) {
        // A second time is refused by the kernel before it comes here.
        let _first = self.dirty_rings.set(rings);
    }

    pub(crate) fn note_manual_log(&self) {
        self.manual_log.store(true, Ordering::Relaxed);
    }

    pub(crate) fn clears_dirty_itself(&self) -> bool {
        self.manual_log.load(Ordering::Relaxed)
    }

    /// What the CPUID of the vCPU with this number is before anything else is set.
    pub(crate) fn cpuid_for(&self, id: u32) -> CpuidTable {
        let mut table = self.supported_cpuid.clone().with_id(id);
        // The kernel leaves it to user space to say that there is a hypervisor.
        table.set(Feature::HYPERVISOR, true);
        table
    }
}

impl AsFd for Vm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow_fd(self, self.inner.machine.fd().as_raw_fd())
    }
}
