use std::collections::BTreeSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_ioctls::{Cap, VmFd};

use crate::error::{RegionProblem, ioctl};
use crate::sys::Machine;
use crate::{
    CpuidTable, Error, Feature, GuestMemory, IrqChip, Kvm, Mode, Pod, Region, Result, Vcpu, sys,
};

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
    max_vcpu_id: u32,
    /// How many bytes of extended registers the kernel keeps for a vCPU.
    pub(crate) xsave_size: usize,
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
        Self::with_memory(kvm, GuestMemory::new(regions)?)
    }

    /// Makes a virtual machine with memory that exists already, and may be that of other machines.
    ///
    /// # Errors
    ///
    /// [`Error::Region`] when the host allows no more regions; [`Error::Ioctl`] when the kernel
    /// refuses the machine.
    pub fn with_memory(kvm: &Kvm, memory: GuestMemory) -> Result<Self> {
        let fd = kvm
            .fd
            .create_vm()
            .map_err(ioctl("KVM_CREATE_VM (making a virtual machine)"))?;
        let machine = Arc::new(Machine::new(fd));
        for (slot, (region, mapping)) in memory.mappings().enumerate() {
            let too_many = || Error::Region {
                start: region.start(),
                len: region.len(),
                problem: RegionProblem::TooMany,
            };
            if region.is_read_only() && !kvm.fd.check_extension(Cap::ReadonlyMem) {
                return Err(Error::Unsupported {
                    capability: "KVM_CAP_READONLY_MEM",
                    advice: "leave the region writable",
                });
            }
            let slot = u32::try_from(slot).map_err(|_| too_many())?;
            if slot as usize >= kvm.max_regions() {
                return Err(too_many());
            }
            machine
                .map(slot, region.start(), mapping, region.flags())
                .map_err(ioctl(
                    "KVM_SET_USER_MEMORY_REGION (giving the machine memory)",
                ))?;
        }
        let max_vcpu_id = u32::try_from(kvm.fd.get_max_vcpu_id()).unwrap_or(u32::MAX);
        Ok(Self {
            inner: Arc::new(Inner {
                machine,
                memory,
                supported_cpuid: kvm.supported_cpuid()?,
                irqchip: OnceLock::new(),
                manual_log: AtomicBool::new(false),
                max_vcpu_id,
                // A kernel without the capability keeps one page.
                xsave_size: usize::try_from(kvm.fd.check_extension_int(Cap::Xsave2))
                    .unwrap_or(0)
                    .max(size_of::<kvm_bindings::kvm_xsave>()),
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
    /// [`Error::VcpuLimit`] and [`Error::VcpuExists`] for a number that cannot be; the errors of
    /// [`Vcpu::set_mode`].
    #[doc(alias = "KVM_CREATE_VCPU")]
    pub fn create_vcpu(&self, id: u32, mode: &Mode) -> Result<Vcpu> {
        let max = self.inner.max_vcpu_id;
        if id >= max {
            return Err(Error::VcpuLimit { id, max });
        }
        {
            let mut vcpus = self
                .inner
                .vcpus
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !vcpus.insert(id) {
                return Err(Error::VcpuExists { id });
            }
        }
        let fd = self.inner.machine.create_vcpu(id).map_err(|e| {
            self.inner
                .vcpus
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&id);
            ioctl("KVM_CREATE_VCPU (making a virtual CPU)")(e)
        })?;
        Vcpu::new(self.inner.clone(), fd, id, mode)
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

    /// Refuses what the kernel allows only while there are no vCPUs.
    pub(crate) fn before_vcpus(&self, operation: &'static str) -> Result<()> {
        let vcpus = &self.inner.vcpus;
        if vcpus
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
        {
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

impl Inner {
    /// Where its interrupt controllers are, if it has any.
    pub(crate) fn irqchip(&self) -> Option<IrqChip> {
        self.irqchip.get().copied()
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
