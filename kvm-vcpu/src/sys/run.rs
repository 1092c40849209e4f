//! The pages that a vCPU shares with the kernel, and running it.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{KVM_SYNC_X86_REGS, kvm_regs, kvm_run, kvm_sync_regs};
use zerocopy::IntoBytes;

use super::done;

/// `_IO(KVMIO, 0x80)`
const KVM_RUN: libc::Ioctl = 0xAE80;

/// Size of the union in `kvm_run` that says why the vCPU exited; fixed by the interface.
pub(crate) const EXIT_UNION: usize = 256;

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
        Self::map_fd(vcpu.as_raw_fd(), len, libc::MAP_SHARED)
    }

    /// Pages of zeros, for tests of what is read out of them.
    #[cfg(test)]
    pub(crate) fn without_vcpu() -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::map_fd(-1, size_of::<kvm_run>(), flags)
    }

    fn map_fd(fd: libc::c_int, len: usize, flags: libc::c_int) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice replaces nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd, 0) };
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

    /// Copies bytes out of the exit's payload; `false` when they are not all there.
    #[inline]
    pub(crate) fn read_payload(&self, offset: usize, out: &mut [u8]) -> bool {
        let fits = offset
            .checked_add(out.len())
            .is_some_and(|end| end <= EXIT_UNION);
        fits && self.read(
            std::mem::offset_of!(kvm_run, __bindgen_anon_1) + offset,
            out,
        )
    }

    /// Which registers the kernel puts into the pages at each exit (`kvm_valid_regs`).
    pub(crate) fn set_valid_registers(&mut self, bits: u64) {
        let at = std::mem::offset_of!(kvm_run, kvm_valid_regs);
        self.write(at, &bits.to_ne_bytes());
    }

    /// The registers in the pages.
    pub(crate) fn synced_registers(&self) -> kvm_sync_regs {
        let run = self.base.as_ptr();
        // SAFETY: `base` points to a live mapping of at least `kvm_run`'s size.
        let field = unsafe { &raw const (*run).s };
        // SAFETY: the field lies in the mapping and is at least as long and as aligned as the
        // structure, whose integers have no invalid values. The kernel writes it during `run` alone,
        // which borrows the page mutably.
        unsafe { field.cast::<kvm_sync_regs>().read() }
    }

    /// Has the next run set the general registers, or not.
    pub(crate) fn set_next_registers(&mut self, registers: Option<&kvm_regs>) {
        let mut bits = 0;
        if let Some(registers) = registers {
            let at = std::mem::offset_of!(kvm_run, s) + std::mem::offset_of!(kvm_sync_regs, regs);
            self.write(at, registers.as_bytes());
            bits = u64::from(KVM_SYNC_X86_REGS);
        }
        let at = std::mem::offset_of!(kvm_run, kvm_dirty_regs);
        self.write(at, &bits.to_ne_bytes());
    }

    /// Whether no run has set them yet.
    pub(crate) fn has_next_registers(&self) -> bool {
        let mut bits = [0; 8];
        self.read(std::mem::offset_of!(kvm_run, kvm_dirty_regs), &mut bits);
        u64::from_ne_bytes(bits) & u64::from(KVM_SYNC_X86_REGS) != 0
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

    /// Copies bytes out of the pages; `false` when they are not all there.
    #[inline]
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
pub(super) extern "C" fn on_kick(_signal: libc::c_int) {
    let byte = RUNNING.get();
    // SAFETY: the pointer is null or that of a vCPU whose `Armed` guard is alive on this very
    // thread, and so the byte's mapping is.
    if let Some(byte) = unsafe { byte.as_ref() } {
        byte.store(1, Ordering::Relaxed);
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
