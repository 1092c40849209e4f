use std::io;
use std::path::PathBuf;
use std::time::Duration;

use kvm_vcpu::CpuMode;

/// Why a guest could not be run, or did not end well. One line each.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Kvm(#[from] kvm_vcpu::Error),
    #[error("cannot read {path}: {source}; give the guest's file with --kernel", path = path.display())]
    ReadKernel { path: PathBuf, source: io::Error },
    #[error("cannot load {path}: {source}", path = path.display())]
    Load {
        path: PathBuf,
        source: kvm_vcpu::Error,
    },
    #[error("{path} is {size} bytes and the guest has {memory} MiB of memory: give it more with --memory", path = path.display())]
    KernelTooBig {
        path: PathBuf,
        size: u64,
        memory: u64,
    },
    #[error("cannot boot {path}: {problem}; is it the kernel you meant?", path = path.display())]
    NotBootable {
        path: PathBuf,
        problem: &'static str,
    },
    #[error("cannot read the initial RAM disk {path}: {source}; give its file with --initrd", path = path.display())]
    ReadInitrd { path: PathBuf, source: io::Error },
    #[error("the initial RAM disk {path} has {len} bytes and there is room for {room}: give the guest more with --memory", path = path.display())]
    InitrdTooBig { path: PathBuf, len: u64, room: u64 },
    #[error(
        "the command line has {len} bytes, and this kernel takes at most {limit}, without zeros: shorten it"
    )]
    CommandLine { len: usize, limit: u64 },
    #[error("cannot read the machine file {path}: {source}; `cofferdam-vmm config` prints one to begin with", path = path.display())]
    ReadMachine { path: PathBuf, source: io::Error },
    #[error("the machine file {path} is wrong: {problem}; `cofferdam-vmm config --schema` prints what it may hold", path = path.display())]
    BadMachine { path: PathBuf, problem: String },
    #[error("there is no such machine: {what}")]
    Machine { what: String },
    #[error("cannot open the disk {path}: {source}; give a raw file or a block device that you may {access}", path = path.display(), access = if *read_only { "read" } else { "write, or add ,ro" })]
    OpenDisk {
        path: PathBuf,
        read_only: bool,
        source: io::Error,
    },
    #[error("the disk {path} is in use by another machine: stop that, or give both the disk with ,ro", path = path.display())]
    DiskInUse { path: PathBuf },
    #[error(
        "cannot use the tap interface {name}: {source}; make it with `ip tuntap add {name} mode tap user $USER`"
    )]
    OpenTap { name: String, source: io::Error },
    #[error("cannot listen on {path}: {source}; choose another place, or end what listens there", path = path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("cannot {what}: {source}")]
    Host {
        what: &'static str,
        source: io::Error,
    },
    #[error("cannot read the snapshot {path}: {source}; give the directory that a snapshot was saved to", path = path.display())]
    ReadSnapshot { path: PathBuf, source: io::Error },
    #[error("cannot {what} the snapshot {path}: {source}", path = path.display())]
    Snapshot {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the snapshot {path} is damaged or of another version: {problem}", path = path.display())]
    BadSnapshot { path: PathBuf, problem: String },
    #[error("cannot make an initial RAM disk: {what}")]
    Kit { what: String },
    #[error("cannot shut the machine in: {what}; --no-jail does without")]
    Jail { what: String },
    #[error("the jailed machine was killed by signal {signal}{why}", why = killed(*signal))]
    Killed { signal: i32 },
    #[error("{path} is an ELF executable, which cannot start in real mode: use --mode long, --mode protected, or a flat binary", path = path.display())]
    ElfInRealMode { path: PathBuf },
    #[error("{path} starts at {entry:#x}, which protected mode cannot reach: use --mode long or link it below 4 GiB", path = path.display())]
    EntryTooHigh { path: PathBuf, entry: u64 },
    #[error("cannot write {path}: {source}; choose a writable place", path = path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("an ELF file cannot start in real mode: use --format flat, or leave --format away")]
    NoRealElf,
    #[error("a Multiboot kernel has a format of its own: leave --format away")]
    NoFormat,
    #[error("cannot write the guest's output: {source}; is standard output closed or full?")]
    Output { source: io::Error },
    #[error("cannot measure this process: {path}: {source}; is /proc mounted?")]
    Measure {
        path: &'static str,
        source: io::Error,
    },
    #[error("the guest crashed: {what}, {place}; check what its code does there", place = place)]
    Crashed { what: Crash, place: Place },
    #[error("the guest halted with interrupts on, {place}, and this machine has nothing to interrupt it: end it with `cli; hlt`", place = place)]
    HaltedForever { place: Place },
    #[error("the guest was still running after {} s (--timeout), {place}: give it longer, or look for an endless loop there", after.as_secs_f64(), place = place)]
    TimedOut { after: Duration, place: Place },
}

impl Error {
    /// The process's exit status. Odd ones are the guest's own.
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Kvm(_)
            | Self::Measure { .. }
            | Self::OpenTap { .. }
            | Self::Host { .. }
            | Self::Jail { .. }
            | Self::Killed { .. }
            | Self::DiskInUse { .. } => 4,
            Self::ReadKernel { .. }
            | Self::Load { .. }
            | Self::KernelTooBig { .. }
            | Self::NotBootable { .. }
            | Self::ReadInitrd { .. }
            | Self::InitrdTooBig { .. }
            | Self::OpenDisk { .. }
            | Self::Socket { .. }
            | Self::ReadSnapshot { .. }
            | Self::Snapshot { .. }
            | Self::BadSnapshot { .. }
            | Self::Kit { .. }
            | Self::ElfInRealMode { .. }
            | Self::EntryTooHigh { .. }
            | Self::Write { .. }
            | Self::Output { .. } => 6,
            Self::NoRealElf
            | Self::NoFormat
            | Self::CommandLine { .. }
            | Self::ReadMachine { .. }
            | Self::BadMachine { .. }
            | Self::Machine { .. } => 2,
            Self::Crashed { .. } | Self::HaltedForever { .. } => 8,
            Self::TimedOut { .. } => 10,
        }
    }
}

/// What a signal that ended the machine's process means, where that is known.
fn killed(signal: i32) -> &'static str {
    match signal {
        9 => ": by hand, or because its control group's memory was used up",
        31 => {
            ", because a thread made a system call that is none of its work: the guest may have broken \
             into it; if you trust the guest, report this, and use --no-jail meanwhile"
        }
        _ => "",
    }
}

/// How a guest crashed.
#[derive(Debug)]
pub(crate) enum Crash {
    TripleFault,
    Emulation(kvm_vcpu::EmulationFailure),
    Exit(Box<kvm_vcpu::Exit>),
}

impl std::fmt::Display for Crash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TripleFault => {
                f.write_str("triple fault (an exception while it could handle none)")
            }
            Self::Emulation(failure) => write!(f, "KVM cannot emulate {failure}"),
            Self::Exit(exit) => write!(f, "KVM stopped it with {exit:?}"),
        }
    }
}

/// Where a guest was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) mode: CpuMode,
    pub(crate) cs: u16,
    pub(crate) cs_base: u64,
    pub(crate) rip: u64,
}

impl Place {
    /// What a CPU's code segment is after a reset. Some CPUs (AMD's) forget everything at a triple
    /// fault, and KVM resets them.
    fn is_reset(&self) -> bool {
        self.cs_base == 0xffff_0000 && self.rip == 0xfff0
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_reset() {
            return f.write_str("at a place that this CPU does not remember");
        }
        match self.mode {
            CpuMode::Real | CpuMode::Virtual8086 => {
                write!(f, "in {} at {:04x}:{:04x}", self.mode, self.cs, self.rip)
            }
            _ => write!(f, "in {} at rip {:#x}", self.mode, self.rip),
        }
    }
}
