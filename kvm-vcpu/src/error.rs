use std::io;
use std::path::PathBuf;

/// What went wrong, and what to do about it.
///
/// Each variant's message is one line that a person who has only that line can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device node of KVM does not exist.
    #[error(
        "{path} does not exist: load the module for this CPU (`modprobe kvm_intel` or `modprobe kvm_amd`), \
         switch virtualization on in the firmware, or, inside a virtual machine or container, \
         have its host pass the device in", path = path.display()
    )]
    NoDevice {
        /// The device that was to be opened.
        path: PathBuf,
    },
    /// The device node exists, and this user may not open it.
    #[error(
        "no permission to open {path}: add this user to the group that owns it \
         (`sudo usermod -aG kvm $USER`, then log in again) or run as root", path = path.display()
    )]
    PermissionDenied {
        /// The device that was to be opened.
        path: PathBuf,
    },
    /// Opening the device failed in another way.
    #[error("cannot open {path}: {source}; is it the KVM device of a kernel with KVM enabled?", path = path.display())]
    Open {
        /// The device that was to be opened.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file answers, but not as KVM.
    #[error("{path} is not a KVM device: {source}; use /dev/kvm", path = path.display())]
    NotKvm {
        /// The file that was opened.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel speaks another version of the interface.
    #[error(
        "KVM speaks API version {found}, and this library version 12: use a kernel of 2.6.22 or newer"
    )]
    ApiVersion {
        /// The version that the kernel reported.
        found: i32,
    },
    /// The kernel or the CPU lacks something that was asked for.
    #[error("this host's KVM has no {capability}: {advice}")]
    Unsupported {
        /// The kernel's name of the capability.
        capability: &'static str,
        /// What brings it, or what to use in its place.
        advice: &'static str,
    },
    /// An ioctl failed for a reason that has no variant of its own.
    #[error("{operation} failed: {source}")]
    Ioctl {
        /// The ioctl, and what it was to do.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A vCPU's number is too high.
    #[error("vCPU {id} is out of range: this host allows the numbers 0 to {}", max.saturating_sub(1))]
    VcpuLimit {
        /// The number that was asked for.
        id: u32,
        /// The first number that is too high.
        max: u32,
    },
    /// A virtual machine has as many vCPUs as it can.
    #[error(
        "vCPU {id} is one too many: this host allows {max} in a machine, those that are gone included"
    )]
    TooManyVcpus {
        /// The number that was asked for.
        id: u32,
        /// How many there can be.
        max: u32,
    },
    /// The virtual machine already has a vCPU with this number.
    #[error("vCPU {id} exists already: give each vCPU of a machine its own number")]
    VcpuExists {
        /// The number that was asked for.
        id: u32,
    },
    /// A vCPU that is not of the machine that it was given with.
    #[error("vCPU {id} belongs to another machine: give vCPUs of one machine together")]
    OtherMachine {
        /// The vCPU.
        id: u32,
    },
    /// A region of memory that the kernel cannot map.
    #[error("guest memory at {start:#x} of {len:#x} bytes: {problem}")]
    Region {
        /// The guest-physical address of its first byte.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// Why it cannot be.
        problem: RegionProblem,
    },
    /// The host has no memory for the guest.
    #[error(
        "cannot map {len} bytes of guest memory: {source}; give the guest less memory or free some"
    )]
    MapMemory {
        /// How many bytes were asked for.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// The host has no huge pages for the guest.
    #[error("cannot map {len} bytes in huge pages: {source}; set some aside (`sysctl vm.nr_hugepages={}`) or use memory in ordinary pages", len.div_ceil(2 << 20))]
    MapHugePages {
        /// How many bytes were asked for.
        len: u64,
        /// What the kernel said.
        source: io::Error,
    },
    /// An access outside the guest's memory.
    #[error("guest memory has no {len} bytes at {address:#x}: the machine's regions are {regions}")]
    OutOfBounds {
        /// The guest-physical address of the access.
        address: u64,
        /// How many bytes were to be read or written.
        len: usize,
        /// The regions that there are.
        regions: RegionList,
    },
    /// An atomic access that is not aligned.
    #[error(
        "cannot access {size} bytes at {address:#x} at once: use an address that is a multiple of {size}"
    )]
    Misaligned {
        /// The guest-physical address.
        address: u64,
        /// How many bytes.
        size: usize,
    },
    /// A region keeps no log of the pages that the guest writes.
    #[error(
        "no region that logs dirty pages starts at {start:#x}: make it with Region::log_dirty, or ask by a region's first address"
    )]
    NotLogged {
        /// The address that was asked for.
        start: u64,
    },
    /// A ring of dirty pages that the kernel cannot make.
    #[error(
        "vCPUs cannot have rings of {entries} dirty pages: call log_dirty_in_rings once, with a power of two from 1024 to {max}"
    )]
    DirtyRingSize {
        /// How many entries were asked for.
        entries: u32,
        /// How many there can be.
        max: u32,
    },
    /// The kernel let a ring of dirty pages overflow, as one that emulates the guest may: it looks at
    /// the ring between batches of instructions only.
    #[error(
        "a ring of {entries} dirty pages overflowed, and pages are lost: take all as written, and make rings with more entries or none"
    )]
    DirtyRingOverflow {
        /// How many entries the rings have.
        entries: u32,
    },
    /// Dirty pages are logged in bitmaps.
    #[error(
        "this machine logs dirty pages without rings: call Vm::log_dirty_in_rings before the first vCPU"
    )]
    NoDirtyRings,
    /// The log of dirty pages forgets pages as soon as they are asked for.
    #[error(
        "this machine's log of dirty pages forgets what it tells: call Vm::log_dirty_until_cleared first, or use Vm::take_dirty"
    )]
    NeedsManualLog,
    /// A kernel or program to load is not what its loader can load.
    #[error("not a program that can be loaded: {0}")]
    Image(#[from] ImageProblem),
    /// A page table cannot express what was asked for.
    #[error("cannot map virtual address {virt:#x}: {problem}")]
    PageTable {
        /// The virtual address.
        virt: u64,
        /// Why it cannot be mapped.
        problem: PageTableProblem,
    },
    /// Code uses a label that it does not place, or that its operand cannot reach.
    #[error(
        "the code uses at byte {used_at} a label that is not placed or too far away: place it with Asm::place"
    )]
    Label {
        /// Where in the code the label is used.
        used_at: usize,
    },
    /// Something that has to be done before the first vCPU is made.
    #[error("{operation} must come before the machine's first vCPU: call it right after create_vm")]
    Order {
        /// The operation.
        operation: &'static str,
    },
    /// Something that the kernel's interrupt controllers are needed for.
    #[error(
        "{operation} needs the kernel's interrupt controllers: call create_irqchip(IrqChip::InKernel) first"
    )]
    NeedsIrqChip {
        /// The operation.
        operation: &'static str,
    },
    /// A watchpoint that the CPU cannot have.
    #[error(
        "cannot watch {len} bytes at {address:#x}: watch 1, 2, 4 or 8 bytes at an address that is a multiple of that"
    )]
    Watchpoint {
        /// The linear address.
        address: u64,
        /// How many bytes were to be watched.
        len: u8,
    },
    /// A session with gdb failed.
    #[cfg(feature = "gdb")]
    #[error("the session with gdb failed: {source}; connect again with `target remote`")]
    Gdb {
        /// What went wrong.
        source: io::Error,
    },
    /// A CPUID table with more leaves than the kernel takes.
    #[error("a CPUID table of {leaves} leaves is too long: the kernel takes {max}")]
    CpuidTooLong {
        /// How many leaves there are.
        leaves: usize,
        /// How many the kernel takes.
        max: usize,
    },
    /// A CPUID table that lacks features of a level.
    #[error("this CPU is below {level}: it lacks {}; use a lower level", features.join(", "))]
    BelowLevel {
        /// The level that was asked for.
        level: crate::CpuidLevel,
        /// What is missing.
        features: Vec<&'static str>,
    },
    /// A small guest that was to find something out did not get to its end.
    #[error(
        "the guest that was to probe the CPU stopped with {exit:?}: this host's KVM cannot run it"
    )]
    Probe {
        /// How it stopped.
        exit: Box<crate::Exit>,
    },
    /// A model-specific register that the vCPU does not have, or a value that it does not take.
    #[error(
        "cannot {operation} MSR {index:#x}: this vCPU does not have it, or not with this value; `Kvm::msr_list` says which there are"
    )]
    Msr {
        /// `read` or `write`.
        operation: &'static str,
        /// The register.
        index: u32,
    },
    /// More of something than the kernel takes.
    #[error("{given} {what} are too many: the kernel takes {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were given.
        given: usize,
        /// How many the kernel takes.
        max: usize,
    },
    /// A vCPU's last exit is not yet done with in the kernel.
    #[error(
        "vCPU {id} is in the middle of an exit: reply to it, then call Vcpu::settle until it returns None"
    )]
    Unsettled {
        /// The vCPU.
        id: u32,
    },
    /// State that cannot be saved.
    #[error("cannot save {what}: {advice}")]
    CannotSave {
        /// What it is.
        what: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// A file that is no snapshot that this version can restore.
    #[error("cannot restore this snapshot: {0}")]
    Snapshot(#[from] SnapshotProblem),
    /// A snapshot of a CPU that this host cannot stand in for.
    #[error("the snapshot is of a CPU with {}, which this host lacks: restore it on a CPU at least as new, of the same vendor", features.join(", "))]
    OtherCpu {
        /// The vendor, or the features that are missing.
        features: Vec<String>,
    },
    /// Reading or writing a guest's memory from or to a file failed.
    #[error("cannot {operation}: {source}; is there space left, and is the file whole?")]
    MemoryFile {
        /// What was to be done.
        operation: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// An answer came for an exit that is over.
    #[error(
        "the reply answers an exit that is over: reply before the next run, and only once, to the vCPU that exited"
    )]
    StaleReply,
    /// An answer has another length than the guest asked for.
    #[error(
        "the guest reads {expected} bytes and the reply has {given}: reply with as many as the exit says"
    )]
    ReplyLength {
        /// How many bytes the guest reads.
        expected: usize,
        /// How many the reply has.
        given: usize,
    },
    /// A thread cannot be made for a vCPU.
    #[error(
        "cannot start a thread for vCPU {id}: {source}; is a limit on processes or memory reached?"
    )]
    Thread {
        /// The vCPU.
        id: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A vCPU's thread cannot be bound to these processors.
    #[error(
        "cannot bind the thread of vCPU {id} to the CPUs {cpus:?}: {source}; name CPUs that are online and in this process's cpuset"
    )]
    Affinity {
        /// The vCPU.
        id: u32,
        /// The host's CPUs.
        cpus: Vec<usize>,
        /// What the kernel said.
        source: io::Error,
    },
    /// The signal that stops running vCPUs is in use by another part of the program.
    #[error(
        "signal {signal} already has a handler in this program: \
         choose another real-time signal with kvm_vcpu::set_kick_signal before the first handle is made"
    )]
    SignalInUse {
        /// The signal's number.
        signal: i32,
    },
    /// The signal cannot be used to stop vCPUs.
    #[error(
        "signal {signal} cannot stop vCPUs: use a real-time signal, SIGRTMIN to SIGRTMAX, and choose it before the first handle is made"
    )]
    BadSignal {
        /// The signal's number.
        signal: i32,
    },
}

/// Why a region of guest memory cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionProblem {
    /// The address or length is not a multiple of 4 KiB.
    #[error("start and length must be multiples of 4096 bytes")]
    Unaligned,
    /// A region of no bytes.
    #[error("it is empty: give it at least one page of 4096 bytes")]
    Empty,
    /// It covers addresses that another region has.
    #[error("it overlaps another region: give each its own addresses")]
    Overlap,
    /// It reaches past the last address.
    #[error("it ends past the last address that a guest can have")]
    TooHigh,
    /// The file behind it ends before it does.
    #[error(
        "the file behind it is shorter than offset and length: extend the file or map less of it"
    )]
    FileTooShort,
    /// Memory that belongs to a machine, without one.
    #[error("a guest_memfd belongs to one machine: give the region to Kvm::create_vm")]
    NeedsMachine,
    /// A `guest_memfd` that is to be read-only or logged.
    #[error("a guest_memfd can be neither read-only nor logged: use Region::memfd")]
    GuestMemfdFlags,
    /// The machine has as many regions as the host allows.
    #[error("the machine already has as many regions as this host allows")]
    TooMany,
}

/// Why a file cannot be loaded as a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageProblem {
    /// It has no bytes.
    #[error("it is empty: give a flat binary or an ELF64 executable")]
    Empty,
    /// It does not begin as an ELF file does.
    #[error("it is no ELF file: load it as a flat binary, or build it as an ELF64 executable")]
    NotElf,
    /// An ELF file of another class, byte order or machine.
    #[error(
        "it is an ELF file, but not for 64-bit x86: build it for x86_64-unknown-none or similar"
    )]
    WrongMachine,
    /// An ELF file that is no executable (an object file or core).
    #[error("it is an ELF file of type {0}, no executable: link it with a fixed address (ET_EXEC)")]
    NotExecutable(u16),
    /// Its headers point outside the file.
    #[error("it is cut short or damaged: a header points past its end; build or copy it again")]
    Truncated,
    /// It has no multiboot header.
    #[error("it has no multiboot header in its first 8192 bytes: build it as a multiboot kernel")]
    NotMultiboot,
    /// Its multiboot header asks for what this loader does not give.
    #[error("its multiboot header asks for features {0:#x}, which this loader does not have")]
    MultibootFeature(u32),
    /// It has nothing to load.
    #[error("it has no loadable segment: link it as an executable")]
    NoSegments,
    /// It does not fit.
    #[error(
        "it needs guest memory at {start:#x} to {end:#x} and the machine has none there: give it more memory or link it lower"
    )]
    TooBig {
        /// The first guest-physical address that it needs.
        start: u64,
        /// The address after the last.
        end: u64,
    },
    /// Its entry point is in none of its segments.
    #[error("its entry point {0:#x} is in none of its segments: set the linker's entry symbol")]
    EntryOutside(u64),
}

/// Why a page table cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageTableProblem {
    /// Bits 47 to 63 are not all the same.
    #[error("it is not canonical: bits 47 to 63 must be all zero or all one")]
    NotCanonical,
    /// An address or length does not fit the page size.
    #[error(
        "virtual address, physical address and length must be multiples of the page size, {0:#x}"
    )]
    Unaligned(u64),
    /// The address is mapped already.
    #[error("it is mapped already: map each address once")]
    Mapped,
    /// The physical address, or that of a table, has more bits than page tables can hold.
    #[error("its physical address, or that of its tables, needs more than 52 bits: use lower ones")]
    TooHigh,
    /// It is a guard page.
    #[error("it is a guard page: map around it, or do not set it aside")]
    Guarded,
    /// What has to be mapped is not.
    #[error("it is beyond the 4 GiB that the boot page tables map: load it lower")]
    Beyond,
    /// There is no room for one more table.
    #[error(
        "the tables need more than the {0} bytes set aside for them: give them more room or map larger pages"
    )]
    NoRoom(u64),
}

/// Why bytes are not a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotProblem {
    /// It does not begin as a snapshot does.
    #[error("it is not a snapshot file: give the file that Snapshot::to_bytes made")]
    NotASnapshot,
    /// It is of another version.
    #[error(
        "its format is version {found}, and this library reads version {expected}: restore it with the version that made it"
    )]
    Version {
        /// The version of the file.
        found: u32,
        /// The version that is read.
        expected: u32,
    },
    /// It has been changed or cut.
    #[error(
        "its checksum does not match: it was changed or cut short; take it again or copy it again"
    )]
    Damaged,
    /// Its contents make no sense, although its checksum matches.
    #[error("its {0} is not valid: take it again")]
    Invalid(&'static str),
}

/// The regions of a machine's memory, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionList(pub(crate) Vec<(u64, u64)>);

impl std::fmt::Display for RegionList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (i, (start, len)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{start:#x}..{:#x}", start.saturating_add(*len))?;
        }
        Ok(())
    }
}

/// A result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Turns the error of a `kvm-ioctls` call into ours.
pub(crate) fn ioctl(operation: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |e| Error::Ioctl {
        operation,
        source: io::Error::from_raw_os_error(e.errno()),
    }
}
