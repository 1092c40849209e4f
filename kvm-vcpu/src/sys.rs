//! Every unsafe operation of the crate: one thin function each.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE, kvm_clear_dirty_log,
    kvm_clear_dirty_log__bindgen_ty_1, kvm_coalesced_mmio, kvm_interrupt, kvm_ioeventfd,
    kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_deassign, kvm_ioeventfd_flag_nr_pio,
    kvm_irqfd, kvm_run, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{VcpuFd, VmFd};

use crate::memory::Mapping;
use crate::{IoAddress, IoEvent};

/// `_IO(KVMIO, 0x80)`
const KVM_RUN: libc::Ioctl = 0xAE80;
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
/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`
const KVM_INTERRUPT: libc::Ioctl = 0x4004_AE86;

/// Size of the union in `kvm_run` that says why the vCPU exited; fixed by the interface.
pub(crate) const EXIT_UNION: usize = 256;

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
    ) -> Result<(), kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot,
            flags,
            guest_phys_addr,
            memory_size: mapping.size() as u64,
            userspace_addr: mapping.as_ptr() as u64,
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the range is the whole of a mapping that `kept` holds from here on until the
        // machine is dropped. The kernel refuses a slot that moves, so a mapping that is already
        // kept is never replaced under the guest.
        unsafe { self.fd.set_user_memory_region(region) }?;
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

/// Sets the state of the extended registers. The kernel must keep no more of it than the structure
/// holds: `xsave_size` is what it says of itself.
pub(crate) fn set_xsave(
    vcpu: &VcpuFd,
    xsave: &kvm_xsave,
    xsave_size: usize,
) -> Result<(), kvm_ioctls::Error> {
    if xsave_size > size_of::<kvm_xsave>() {
        return Err(kvm_ioctls::Error::new(libc::E2BIG));
    }
    // SAFETY: the kernel reads `xsave_size` bytes, which the structure has (checked above).
    unsafe { vcpu.set_xsave(xsave) }
}

fn done(ret: libc::c_int) -> io::Result<()> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
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

/// A vCPU's descriptor and its run pages.
#[derive(Debug)]
pub(crate) struct VcpuFile {
    pub(crate) fd: VcpuFd,
    pub(crate) run: RunPage,
    // Last, so that the descriptor is closed while the guest's memory is still mapped.
    _machine: Arc<Machine>,
}

/// A mapping of a vCPU's `kvm_run` pages that is this crate's own.
///
/// `kvm-ioctls` maps the same pages and makes `&mut kvm_run` of its mapping. This one is another
/// range of addresses that no Rust reference to non-atomic data ever points into: everything goes
/// through raw pointers, and the one byte that other threads and the signal handler write
/// (`immediate_exit`) is only ever an `AtomicU8`.
#[derive(Debug)]
pub(crate) struct RunPage {
    base: NonNull<kvm_run>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread. What is shared through `&RunPage` is
// the atomic byte; every other access takes `&mut self`, apart from reads that the kernel alone
// could race with, and it writes only during `run(&mut self)`.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

impl RunPage {
    pub(crate) fn map(vcpu: &impl AsRawFd, len: usize) -> io::Result<Self> {
        if len < size_of::<kvm_run>() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { base, len })
    }

    /// The byte that makes the next `KVM_RUN` return at once.
    fn immediate_exit(&self) -> &AtomicU8 {
        let run = self.base.as_ptr();
        // SAFETY: `base` points to a live mapping of at least `kvm_run`'s size (checked in `map`).
        let byte = unsafe { &raw mut (*run).immediate_exit };
        // SAFETY: the byte lies in the mapping, which lives as long as `self`, and is accessed in
        // this mapping through atomics alone. The kernel only reads it.
        unsafe { AtomicU8::from_ptr(byte) }
    }

    /// Why the last run ended (`KVM_EXIT_…`).
    pub(crate) fn exit_reason(&self) -> u32 {
        let run = self.base.as_ptr();
        // SAFETY: `base` points to a live mapping of at least `kvm_run`'s size.
        let field = unsafe { &raw const (*run).exit_reason };
        // SAFETY: the field lies in the mapping, is aligned, and any bits make a u32. The kernel
        // writes it during `run` alone, which borrows the page mutably.
        unsafe { field.read() }
    }

    /// Whether the guest could take an interrupt when it last exited.
    pub(crate) fn can_take_interrupt(&self) -> bool {
        let mut byte = [0];
        self.read(
            std::mem::offset_of!(kvm_run, ready_for_interrupt_injection),
            &mut byte,
        );
        byte[0] != 0
    }

    /// Asks the kernel to exit as soon as the guest can take an interrupt.
    pub(crate) fn request_interrupt_window(&mut self, wanted: bool) {
        let at = std::mem::offset_of!(kvm_run, request_interrupt_window);
        self.write(at, &[wanted.into()]);
    }

    /// The bytes that carry the exit's payload.
    pub(crate) fn payload(&self) -> [u8; EXIT_UNION] {
        let run = self.base.as_ptr();
        // SAFETY: `base` points to a live mapping of at least `kvm_run`'s size.
        let field = unsafe { &raw const (*run).__bindgen_anon_1 };
        // SAFETY: the union lies in the mapping and is 256 bytes long by the interface (checked in
        // a test); bytes have no alignment and no invalid values.
        unsafe { field.cast::<[u8; EXIT_UNION]>().read() }
    }

    /// Puts an answer into the payload, for the kernel to read at the next run.
    pub(crate) fn write_payload(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if offset
            .checked_add(bytes.len())
            .is_none_or(|end| end > EXIT_UNION)
        {
            return false;
        }
        let start = std::mem::offset_of!(kvm_run, __bindgen_anon_1);
        self.write(start + offset, bytes)
    }

    /// Copies bytes out of the pages; `None` when they are not all there.
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        if offset
            .checked_add(out.len())
            .is_none_or(|end| end > self.len)
        {
            return false;
        }
        // SAFETY: `offset` is at most the mapping's length (checked above).
        let from = unsafe { self.base.as_ptr().cast::<u8>().add(offset) };
        // SAFETY: the source range lies in the mapping (checked above), and the destination is a
        // Rust slice elsewhere, because no slice is ever made of this mapping.
        unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        true
    }

    /// Copies bytes into the pages; `false` when they do not fit.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if offset
            .checked_add(bytes.len())
            .is_none_or(|end| end > self.len)
        {
            return false;
        }
        // SAFETY: `offset` is at most the mapping's length (checked above).
        let to = unsafe { self.base.as_ptr().cast::<u8>().add(offset) };
        // SAFETY: the destination range lies in the mapping (checked above), which no reference
        // covers but that of the atomic byte; no caller's bytes reach that one (they are its
        // neighbour, or at or past the union). The source is a Rust slice elsewhere.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// Runs the guest until it exits.
    ///
    /// From before `prepare` on, the kick signal on this thread makes the system call return at
    /// once. `prepare` says whether it should do so anyway.
    pub(crate) fn run(
        &mut self,
        vcpu: &impl AsRawFd,
        prepare: impl FnOnce() -> bool,
    ) -> io::Result<()> {
        let immediate_exit = self.immediate_exit();
        // A signal that came too late for the run before leaves its mark here.
        immediate_exit.store(0, Ordering::Relaxed);
        let _armed = Armed::new(immediate_exit);
        if prepare() {
            immediate_exit.store(1, Ordering::Relaxed);
        }
        // SAFETY: KVM_RUN takes no argument. The kernel writes to the run pages, which this call
        // borrows mutably, and to guest memory, which is accessed as volatile everywhere.
        done(unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_RUN, 0) })
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the range is the one that `map` made; `self` is going away, and with it the last
        // way to reach it (the handler's pointer is withdrawn before `run` returns).
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

thread_local! {
    /// The `immediate_exit` byte of the vCPU that this thread is running, for the signal handler.
    /// A constant without a destructor: reading it in a handler neither allocates nor locks.
    static RUNNING: Cell<*const AtomicU8> = const { Cell::new(ptr::null()) };
    static TID: Cell<i32> = const { Cell::new(0) };
}

/// While it lives, the kick signal on this thread sets the vCPU's `immediate_exit`.
struct Armed<'a>(PhantomData<(&'a AtomicU8, *const ())>);

impl<'a> Armed<'a> {
    fn new(immediate_exit: &'a AtomicU8) -> Self {
        RUNNING.set(ptr::from_ref(immediate_exit));
        Self(PhantomData)
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        RUNNING.set(ptr::null());
    }
}

/// What the kick signal does: nothing but making the next `KVM_RUN` of this thread return at once,
/// so that a signal that comes just before the system call is not lost.
extern "C" fn on_kick(_signal: libc::c_int) {
    let byte = RUNNING.get();
    // SAFETY: the pointer is null or that of a vCPU whose `Armed` guard is alive on this very
    // thread, and so the byte's mapping is.
    if let Some(byte) = unsafe { byte.as_ref() } {
        byte.store(1, Ordering::Relaxed);
    }
}

/// The range of real-time signals that the C library leaves to programs.
pub(crate) fn realtime_signals() -> std::ops::RangeInclusive<i32> {
    libc::SIGRTMIN()..=libc::SIGRTMAX()
}

/// Installs the kick handler; `Ok(false)` when the signal has another handler already.
pub(crate) fn install_kick_handler(signal: i32) -> io::Result<bool> {
    // SAFETY: all bits zero is a valid `sigaction`: default action, empty mask, no flags.
    let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action changes nothing; `old` is a valid place for the present one.
    if unsafe { libc::sigaction(signal, ptr::null(), &raw mut old) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let ours = on_kick as extern "C" fn(libc::c_int) as libc::sighandler_t;
    if old.sa_sigaction == ours {
        return Ok(true);
    }
    if old.sa_sigaction != libc::SIG_DFL {
        return Ok(false);
    }
    // SAFETY: as above.
    let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
    new.sa_sigaction = ours;
    // KVM_RUN returns EINTR with SA_RESTART too, and the program's other calls are undisturbed.
    new.sa_flags = libc::SA_RESTART;
    // SAFETY: `new` holds a handler of the right signature that does only async-signal-safe work
    // (a thread-local read and an atomic store).
    if unsafe { libc::sigaction(signal, &raw const new, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(true)
}

/// Lets this thread receive the signal, whatever its creator blocked.
pub(crate) fn unblock(signal: i32) -> io::Result<()> {
    // SAFETY: all bits zero is a valid (empty) signal set on Linux.
    let mut set: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is a valid set.
    unsafe { libc::sigaddset(&raw mut set, signal) };
    // SAFETY: `set` is a valid set, and a null old set is allowed.
    match unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// This thread's id as the kernel knows it.
pub(crate) fn gettid() -> i32 {
    let known = TID.get();
    if known != 0 {
        return known;
    }
    // SAFETY: the call takes nothing and cannot fail.
    let tid = unsafe { libc::gettid() };
    TID.set(tid);
    tid
}

/// Sends a signal to a thread of this process.
pub(crate) fn signal_thread(tid: i32, signal: i32) -> io::Result<()> {
    let pid = std::process::id();
    // SAFETY: the call takes numbers alone. A thread that is gone makes it fail with ESRCH, and
    // it can reach no other process.
    let ret = unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal) };
    if ret == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A timer that sends a signal to the thread that made it.
#[derive(Debug)]
pub(crate) struct ThreadTimer {
    id: libc::timer_t,
    tid: i32,
}

// SAFETY: the id is a number that the kernel gave out for the whole process, in a pointer's type.
unsafe impl Send for ThreadTimer {}
// SAFETY: as above.
unsafe impl Sync for ThreadTimer {}

impl ThreadTimer {
    pub(crate) fn new(signal: i32) -> io::Result<Self> {
        let tid = gettid();
        // SAFETY: all bits zero is a valid `sigevent`.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal;
        event.sigev_notify_thread_id = tid;
        let mut id: libc::timer_t = ptr::null_mut();
        // SAFETY: `event` is initialised and `id` is a place for the result.
        if unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut id) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { id, tid })
    }

    /// The thread that the signal goes to.
    pub(crate) fn tid(&self) -> i32 {
        self.tid
    }

    /// Fires once after this time; zero stops it.
    pub(crate) fn set(&self, after: std::time::Duration) -> io::Result<()> {
        let spec = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec {
                tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(after.subsec_nanos()),
            },
        };
        // SAFETY: the timer lives as long as `self`, and `spec` is initialised.
        if unsafe { libc::timer_settime(self.id, 0, &raw const spec, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // SAFETY: the timer was made by `new` and is deleted once.
        unsafe { libc::timer_delete(self.id) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_union_is_as_long_as_the_interface_says() {
        let run = std::mem::offset_of!(kvm_run, __bindgen_anon_1);
        let next = std::mem::offset_of!(kvm_run, kvm_valid_regs);
        assert_eq!((run, next), (32, 32 + EXIT_UNION));
    }
}
