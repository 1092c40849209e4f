//! Every unsafe operation of the crate: one thin function each.

mod ring;
mod run;
mod signals;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, KVM_MEM_GUEST_MEMFD, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_coalesced_mmio, kvm_create_guest_memfd, kvm_interrupt,
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign,
    kvm_ioeventfd_flag_nr_pio, kvm_irqfd, kvm_userspace_memory_region,
    kvm_userspace_memory_region2, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

pub(crate) use ring::{DirtyRing, ENTRY as RING_ENTRY, reset_dirty_rings};
pub(crate) use run::{EXIT_UNION, RunPage};
pub(crate) use signals::{
    ThreadTimer, gettid, install_kick_handler, realtime_signals, signal_thread, unblock,
};

use crate::memory::Mapping;
use crate::{IoAddress, IoEvent};

/// `_IOW(KVMIO, 0x76, struct kvm_irqfd)`
const KVM_IRQFD: libc::Ioctl = 0x4020_AE76;
/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`
const KVM_IOEVENTFD: libc::Ioctl = 0x4040_AE79;
/// `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)`
// The type is signed in some C libraries, which look at the same 32 bits.
#[allow(clippy::cast_lossless, clippy::cast_possible_wrap)]
const KVM_CLEAR_DIRTY_LOG: libc::Ioctl = 0xC018_AEC0u32 as libc::Ioctl;
/// `_IO(KVMIO, 0xce)`
const KVM_GET_STATS_FD: libc::Ioctl = 0xAECE;
/// `_IOR(KVMIO, 0xa4, struct kvm_xsave)`
// As above.
#[allow(clippy::cast_lossless, clippy::cast_possible_wrap)]
const KVM_GET_XSAVE: libc::Ioctl = 0x9000_AEA4u32 as libc::Ioctl;
/// `_IOR(KVMIO, 0xcf, struct kvm_xsave)`
#[allow(clippy::cast_lossless, clippy::cast_possible_wrap)]
const KVM_GET_XSAVE2: libc::Ioctl = 0x9000_AECFu32 as libc::Ioctl;
/// `_IOW(KVMIO, 0xa5, struct kvm_xsave)`
const KVM_SET_XSAVE: libc::Ioctl = 0x5000_AEA5;
/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`
const KVM_INTERRUPT: libc::Ioctl = 0x4004_AE86;

/// Hands an open device to `kvm-ioctls`.
pub(crate) fn kvm_from_file(file: File) -> kvm_ioctls::Kvm {
    // SAFETY: the descriptor comes out of a `File` that gave up its ownership in the same
    // expression, so it is open and nobody else closes it. Whether it is a KVM device does not
    // matter for memory safety: an ioctl on another file fails.
    unsafe { kvm_ioctls::Kvm::from_raw_fd(file.into_raw_fd()) }
}

/// Lends the descriptor of an object that `kvm-ioctls` owns.
pub(crate) fn borrow_fd<T>(_owner: &T, fd: RawFd) -> BorrowedFd<'_> {
    // SAFETY: every caller passes the raw descriptor that `_owner` holds and closes when dropped;
    // the lifetime ties the borrow to it. No owner is ever -1.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// A machine's descriptor together with the mappings that its memory slots point to.
///
/// That the two are one object is what makes adding a slot safe: a mapping is let go only after the
/// kernel forgot its slot, or after the machine and all its vCPUs are gone, because each vCPU holds
/// its machine too.
#[derive(Debug)]
pub(crate) struct Machine {
    // Declared, and so dropped, before the mappings.
    fd: VmFd,
    kept: Mutex<BTreeMap<u32, Arc<Mapping>>>,
}

impl Machine {
    pub(crate) fn new(fd: VmFd) -> Self {
        Self {
            fd,
            kept: Mutex::new(BTreeMap::new()),
        }
    }

    /// The machine's descriptor, for every ioctl but the making of vCPUs and memory slots.
    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Gives the guest a mapping at an address, and keeps the mapping.
    pub(crate) fn map(
        &self,
        slot: u32,
        guest_phys_addr: u64,
        mapping: Arc<Mapping>,
        flags: u32,
        is_guest_memfd: bool,
    ) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr,
            memory_size: mapping.size() as u64,
            userspace_addr: mapping.as_ptr() as u64,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        match mapping.file_offset().filter(|_| is_guest_memfd) {
            None => {
                // SAFETY: the range is the whole of a mapping that `kept` holds from here on until
                // the machine is dropped. The kernel refuses a slot that moves, so a mapping that is
                // already kept is never replaced under the guest.
                unsafe { self.fd.set_user_memory_region(region) }?;
            }
            Some(file) => {
                let region = kvm_userspace_memory_region2 {
                    slot,
                    flags: flags | KVM_MEM_GUEST_MEMFD,
                    guest_phys_addr,
                    memory_size: region.memory_size,
                    userspace_addr: region.userspace_addr,
                    guest_memfd_offset: file.start(),
                    guest_memfd: file.file().as_raw_fd().cast_unsigned(),
                    ..Default::default()
                };
                // SAFETY: as above; of the file the kernel keeps a reference of its own.
                unsafe { self.fd.set_user_memory_region2(region) }?;
            }
        }
        kept.insert(slot, mapping);
        Ok(())
    }

    /// Makes a vCPU, which keeps the machine, and so its memory, alive.
    pub(crate) fn create_vcpu(self: &Arc<Self>, id: u32) -> Result<VcpuFile, kvm_ioctls::Error> {
        let fd = self.fd.create_vcpu(u64::from(id))?;
        let run = RunPage::map(&fd, self.fd.run_size())
            .map_err(|e| kvm_ioctls::Error::new(e.raw_os_error().unwrap_or(libc::EIO)))?;
        Ok(VcpuFile {
            fd,
            run,
            _machine: self.clone(),
        })
    }
}

/// Makes a file of memory that belongs to this machine.
pub(crate) fn guest_memfd(vm: &VmFd, size: u64, flags: u64) -> io::Result<File> {
    let request = kvm_create_guest_memfd {
        size,
        flags,
        ..Default::default()
    };
    let fd = vm
        .create_guest_memfd(request)
        .map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// What is done with an eventfd and an interrupt line.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Irqfd<'a> {
    Edge,
    /// The kernel signals this one when the guest acknowledges the interrupt.
    Level(BorrowedFd<'a>),
    Disconnect,
}

/// Connects an eventfd to an interrupt line, or disconnects it.
pub(crate) fn irqfd(
    vm: &VmFd,
    eventfd: BorrowedFd<'_>,
    gsi: u32,
    what: Irqfd<'_>,
) -> io::Result<()> {
    let (flags, resamplefd) = match what {
        Irqfd::Edge => (0, 0),
        Irqfd::Level(acknowledged) => {
            let fd = acknowledged.as_raw_fd().cast_unsigned();
            (KVM_IRQFD_FLAG_RESAMPLE, fd)
        }
        Irqfd::Disconnect => (KVM_IRQFD_FLAG_DEASSIGN, 0),
    };
    let request = kvm_irqfd {
        fd: eventfd.as_raw_fd().cast_unsigned(),
        gsi,
        flags,
        resamplefd,
        ..Default::default()
    };
    // SAFETY: KVM_IRQFD reads the structure that its number names, and `request` is one. The kernel
    // takes references of its own to the eventfds.
    let ret = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_IRQFD, &raw const request) };
    done(ret)
}

/// Connects an eventfd to a place that the guest writes, or disconnects it.
pub(crate) fn ioeventfd(
    vm: &VmFd,
    eventfd: BorrowedFd<'_>,
    event: IoEvent,
    connect: bool,
) -> io::Result<()> {
    let (addr, port) = match event.at {
        IoAddress::Port(port) => (port.into(), 1 << kvm_ioeventfd_flag_nr_pio),
        IoAddress::Memory(address) => (address, 0),
    };
    let value = event
        .value
        .map_or(0, |_| 1 << kvm_ioeventfd_flag_nr_datamatch);
    let end = if connect {
        0
    } else {
        1 << kvm_ioeventfd_flag_nr_deassign
    };
    let request = kvm_ioeventfd {
        datamatch: event.value.unwrap_or(0),
        addr,
        len: event.len.into(),
        fd: eventfd.as_raw_fd(),
        flags: port | value | end,
        ..Default::default()
    };
    // SAFETY: KVM_IOEVENTFD reads the structure that its number names, and `request` is one. The
    // kernel takes a reference of its own to the eventfd.
    let ret = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_IOEVENTFD, &raw const request) };
    done(ret)
}

/// Takes pages out of a slot's log of dirty pages: those whose bits are set, of `pages` pages from
/// `first_page` on.
pub(crate) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    pages: u64,
    bits: &[u64],
) -> io::Result<()> {
    let (Ok(num_pages), true) = (u32::try_from(pages), pages <= bits.len() as u64 * 64) else {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    };
    let request = kvm_clear_dirty_log {
        slot,
        num_pages,
        first_page,
        __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 {
            dirty_bitmap: bits.as_ptr().cast_mut().cast(),
        },
    };
    // SAFETY: KVM_CLEAR_DIRTY_LOG reads the structure that its number names, and `num_pages` bits of
    // the bitmap, which has as many (checked above).
    let ret = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG, &raw const request) };
    done(ret)
}

/// Whether a write that the kernel collected went to a port.
pub(crate) fn is_port(write: &kvm_coalesced_mmio) -> bool {
    // SAFETY: both fields of the union are a u32, for which all bits are valid.
    unsafe { write.__bindgen_anon_1.pio == 1 }
}

/// Opens the statistics of a machine or vCPU.
pub(crate) fn stats_file(of: BorrowedFd<'_>) -> io::Result<File> {
    // SAFETY: KVM_GET_STATS_FD takes no argument.
    let fd = unsafe { libc::ioctl(of.as_raw_fd(), KVM_GET_STATS_FD, 0) };
    done(fd)?;
    // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Injects an external interrupt.
pub(crate) fn interrupt(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let request = kvm_interrupt { irq: vector.into() };
    // SAFETY: KVM_INTERRUPT reads the structure that its number names, and `request` is one.
    let ret = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT, &raw const request) };
    done(ret)
}

/// The extended registers: as many bytes as `KVM_CAP_XSAVE2` says, or one page on a kernel that does
/// not have it.
pub(crate) fn xsave(vcpu: &VcpuFd, xsave2: Option<usize>) -> io::Result<Vec<u8>> {
    let mut area = vec![0u8; xsave2.unwrap_or(0).max(size_of::<kvm_xsave>())];
    let request = xsave2.map_or(KVM_GET_XSAVE, |_| KVM_GET_XSAVE2);
    // SAFETY: KVM_GET_XSAVE writes one page, and KVM_GET_XSAVE2 as much as KVM_CAP_XSAVE2 says at
    // most; `area` is as long as the greater of them.
    done(unsafe { libc::ioctl(vcpu.as_raw_fd(), request, area.as_mut_ptr()) })?;
    Ok(area)
}

/// Sets the extended registers; what `area` lacks of `size` is in its first state.
pub(crate) fn set_xsave(vcpu: &VcpuFd, area: &[u8], size: usize) -> io::Result<()> {
    if area.len() > size {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    }
    let mut whole = area.to_vec();
    whole.resize(size.max(size_of::<kvm_xsave>()), 0);
    // SAFETY: the kernel reads one page, or as much as KVM_CAP_XSAVE2 says at most; `whole` is as
    // long as the greater of them.
    done(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_XSAVE, whole.as_ptr()) })
}

fn done(ret: libc::c_int) -> io::Result<()> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Asks for the state of AMX's tiles in guests of this process.
pub(crate) fn permit_amx() -> io::Result<()> {
    const ARCH_REQ_XCOMP_GUEST_PERM: libc::c_long = 0x1025;
    const XTILE_DATA: libc::c_long = 18;
    // SAFETY: this operation takes a number and changes what guests may use alone.
    let ret = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_GUEST_PERM, XTILE_DATA) };
    done(ret as libc::c_int)
}

/// How many bytes of a mapping have pages behind them.
pub(crate) fn resident(mapping: &Mapping) -> io::Result<u64> {
    // One byte tells of one page; asking for 4 GiB at a time keeps the answer at 1 MiB.
    const CHUNK: usize = 4 << 30;
    let page = crate::PAGE_SIZE as usize;
    let mut pages = vec![0u8; mapping.size().min(CHUNK).div_ceil(page)];
    let mut count = 0;
    for start in (0..mapping.size()).step_by(CHUNK) {
        let len = (mapping.size() - start).min(CHUNK);
        let from = mapping.as_ptr().wrapping_add(start).cast();
        // SAFETY: the range lies in a live mapping, and `pages` has a byte for each of its pages.
        if unsafe { libc::mincore(from, len, pages.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        count += pages[..len.div_ceil(page)]
            .iter()
            .filter(|p| **p & 1 != 0)
            .count();
    }
    Ok((count * page) as u64)
}

/// Gives the host back the pages of a part of a mapping: `MADV_DONTNEED`, or `MADV_REMOVE` for one
/// that is shared with a file.
pub(crate) fn discard(
    mapping: &Mapping,
    offset: usize,
    len: usize,
    shared: bool,
) -> io::Result<()> {
    if offset
        .checked_add(len)
        .is_none_or(|end| end > mapping.size())
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let from = mapping.as_ptr().wrapping_add(offset).cast();
    let advice = if shared {
        libc::MADV_REMOVE
    } else {
        libc::MADV_DONTNEED
    };
    // SAFETY: the range lies in a live mapping of guest memory, as was just checked. Its content is
    // only ever accessed as volatile bytes, which may change at any time.
    if unsafe { libc::madvise(from, len, advice) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Says that a part of a mapping is better kept in huge pages: `MADV_HUGEPAGE`.
pub(crate) fn prefer_huge_pages(mapping: &Mapping, offset: usize, len: usize) -> io::Result<()> {
    if offset
        .checked_add(len)
        .is_none_or(|end| end > mapping.size())
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let from = mapping.as_ptr().wrapping_add(offset).cast();
    // SAFETY: the range lies in a live mapping, as was just checked, whose content stays the same.
    done(unsafe { libc::madvise(from, len, libc::MADV_HUGEPAGE) })
}

/// Reads from a file at an offset into guest memory: `preadv(2)`.
pub(crate) fn read_at<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    offset: i64,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    // SAFETY: these are so many buffers of guest memory, which lives as long as `slices`, and is only
    // ever accessed as volatile bytes, so that the kernel may write it.
    let done = vectored(slices, |buffers, count| unsafe {
        libc::preadv(file.as_raw_fd(), buffers, count, offset)
    })?;
    let mut left = done;
    for slice in slices {
        let here = left.min(slice.len());
        slice.bitmap().mark_dirty(0, here);
        left -= here;
    }
    Ok(done)
}

/// Writes guest memory to a file at an offset: `pwritev(2)`.
pub(crate) fn write_at<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    offset: i64,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<usize> {
    // SAFETY: as in `read_at`; the kernel only reads from the buffers.
    vectored(slices, |buffers, count| unsafe {
        libc::pwritev(file.as_raw_fd(), buffers, count, offset)
    })
}

/// Gives a system call as many of these slices as the kernel takes at once.
fn vectored<B: BitmapSlice>(
    slices: &[VolatileSlice<'_, B>],
    call: impl FnOnce(*const libc::iovec, libc::c_int) -> libc::ssize_t,
) -> io::Result<usize> {
    const IOV_MAX: libc::c_int = 1024;
    let slices = slices.iter().take(IOV_MAX as usize);
    let guards: Vec<_> = slices.map(VolatileSlice::ptr_guard_mut).collect();
    let buffers: Vec<_> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast(),
            iov_len: guard.len(),
        })
        .collect();
    let count = libc::c_int::try_from(buffers.len()).unwrap_or(IOV_MAX);
    let done = call(buffers.as_ptr(), count);
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// A vCPU's descriptor and its run pages.
#[derive(Debug)]
pub(crate) struct VcpuFile {
    pub(crate) fd: VcpuFd,
    pub(crate) run: RunPage,
    // Last, so that the descriptor is closed while the guest's memory is still mapped.
    _machine: Arc<Machine>,
}
