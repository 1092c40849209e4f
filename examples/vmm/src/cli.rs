//! The command line, with help that a newcomer can learn from.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(crate) use crate::config::Mode;
use crate::config::{Disk, Network, Vsock};

/// Run a guest on virtual CPUs of /dev/kvm: a distribution's kernel, or a program without one
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a virtual machine and run a guest in it until it ends
    #[command(after_help = EXIT_STATUS, after_long_help = MACHINE)]
    Boot(Box<BootArgs>),
    /// Go on with a machine that was saved
    #[command(after_help = EXIT_STATUS)]
    Restore(RestoreArgs),
    /// Print the machine that these options make, as a machine file
    Config(Box<ConfigArgs>),
    /// Write a small guest to a file, or an initial RAM disk for a distribution's kernel
    ///
    /// The small guests are built into this program: no assembler is needed. Each prints through the
    /// serial port what it sees of the machine (its mode, the CPU's vendor, the hypervisor, whether
    /// paging is on) and halts.
    ///
    /// With --kernel, writes an initial RAM disk with the modules of that kernel that this machine's
    /// devices need, and busybox; it mounts the first disk if its command line says root=/dev/vda,
    /// and runs init there, or else gives a shell.
    #[command(
        after_help = "Examples:\n  cofferdam-vmm guest long --output hello.elf\n  cofferdam-vmm boot --kernel hello.elf\n\n  cofferdam-vmm guest --kernel /boot/vmlinuz-6.1.0-1-amd64 --output initrd\n  cofferdam-vmm boot --kernel /boot/vmlinuz-6.1.0-1-amd64 --initrd initrd --cmdline console=ttyS0"
    )]
    Guest(GuestArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BootArgs {
    /// The guest: a Linux kernel, an ELF64 executable, a Multiboot kernel, or a flat binary
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The machine file (JSON, see `config`); options change what it says
    #[arg(long, value_name = "FILE")]
    pub(crate) machine: Option<PathBuf>,
    /// The CPU mode of the guest's first instruction, or its boot protocol [default: auto]
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,
    /// An initial RAM disk for the kernel
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line, such as console=ttyS0
    #[arg(long, value_name = "TEXT")]
    pub(crate) cmdline: Option<String>,
    /// The guest's memory in MiB (1 to 1048576), which the host gives as the guest touches it
    /// [default: 128]
    #[arg(long, value_name = "MiB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) memory: Option<u64>,
    /// Virtual CPUs [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=254))]
    pub(crate) cpus: Option<u8>,
    /// A disk: a raw file or block device, with at most so many bytes and operations a second; may be
    /// given several times
    #[arg(long, value_name = "FILE[,ro][,serial=TEXT][,bps=N][,iops=N]")]
    pub(crate) disk: Vec<Disk>,
    /// A network card on a tap interface, with at most so many bytes and packets a second each way; may
    /// be given several times
    #[arg(long, value_name = "tap=NAME[,mac=ADDRESS][,mtu=N][,bps=N][,pps=N]")]
    pub(crate) net: Vec<Network>,
    /// Connections with the host: the guest's number (3 or more), and a Unix socket
    #[arg(long, value_name = "CID:PATH")]
    pub(crate) vsock: Option<Vsock>,
    /// Where the output of a second console (/dev/hvc0) goes
    #[arg(long, value_name = "FILE")]
    pub(crate) console: Option<PathBuf>,
    /// Keep a log of the memory that changes: snapshots after the first then stop the machine only
    /// for what changed since
    #[arg(long)]
    pub(crate) log_changes: bool,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// What does not change the machine.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// End the guest after this many seconds (such as 10 or 0.5), with exit status 10
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Report measured values as JSON when the guest has ended: to FILE, or to standard error
    ///
    /// `process_start_to_first_output_us`: microseconds from the start of this process to the
    /// guest's first byte of output (null when there was none).
    /// `cpu_to_first_run_us`: CPU time, user and system, before the guest's first instruction.
    /// `vmm_resident_bytes`: memory that this process holds, less what the guest touched.
    /// `guest_resident_bytes`: what the guest touched. `cpu_us`: CPU time, user and system.
    /// `exits`: how often the guest came out to this program, by reason.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub(crate) stats: Option<PathBuf>,
    /// Write what happens to the machine to the end of FILE, or to standard error (-): a line of JSON
    /// for its start and end, for what the control socket is asked, and for each device's driver
    #[arg(long, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// A Unix socket to control the machine by HTTP: pause, resume, snapshot, metrics, shutdown
    #[arg(long, value_name = "PATH")]
    pub(crate) control: Option<PathBuf>,
    /// A Unix socket at which gdb is waited for (`target remote PATH`): it has all vCPUs before
    /// their first instruction
    #[cfg(feature = "gdb")]
    #[arg(long, value_name = "PATH")]
    pub(crate) gdb: Option<PathBuf>,
    /// The directory in which the control socket's clients save snapshots, by name. Without it they
    /// save them anywhere by path, but not from the jail
    #[arg(long, value_name = "DIR")]
    pub(crate) snapshots: Option<PathBuf>,
    /// Shut the machine in: namespaces of its own with an empty root, a control group, no
    /// capabilities, and system call filters. For root this is the default
    #[arg(long)]
    pub(crate) jail: bool,
    /// Do not shut the machine in
    #[arg(long, conflicts_with = "jail")]
    pub(crate) no_jail: bool,
}

impl RunArgs {
    /// The sockets that this program makes and removes.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = &PathBuf> {
        #[cfg(feature = "gdb")]
        let gdb = self.gdb.iter();
        #[cfg(not(feature = "gdb"))]
        let gdb = std::iter::empty();
        self.control.iter().chain(gdb)
    }
}

#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The directory that the snapshot was saved to
    #[arg(value_name = "DIR")]
    pub(crate) from: PathBuf,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    #[command(flatten)]
    pub(crate) boot: BootArgs,
    /// Print the machine file's JSON schema instead
    #[arg(long)]
    pub(crate) schema: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// The mode that a small guest is for
    #[arg(
        value_enum,
        required_unless_present = "kernel",
        conflicts_with = "kernel"
    )]
    pub(crate) mode: Option<GuestMode>,
    /// The file's format (default: elf for long, flat for the others; multiboot has its own)
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Make an initial RAM disk for this kernel (a file, or a Debian package that is installed)
    #[arg(long, value_name = "FILE-OR-PACKAGE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The program that the initial RAM disk starts, instead of its own
    #[arg(long, value_name = "FILE", requires = "kernel")]
    pub(crate) init: Option<PathBuf>,
    /// One more module of the kernel to load; may be given several times
    #[arg(long, value_name = "NAME", requires = "kernel")]
    pub(crate) module: Vec<String>,
    /// Where to write it; an existing file is overwritten
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GuestMode {
    /// 16-bit real mode
    Real,
    /// 32-bit protected mode
    Protected,
    /// 64-bit long mode
    Long,
    /// A Multiboot kernel that counts for ever and prints the count: to be saved and restored
    Multiboot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The code alone; its first byte is its first instruction
    Flat,
    /// An ELF64 executable
    Elf,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let help = "give seconds, such as 10 or 0.5";
    let seconds: f64 = text.parse().map_err(|_| help.to_owned())?;
    if seconds <= 0.0 {
        return Err(format!("it must be more than 0; {help}"));
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| help.to_owned())
}

const EXIT_STATUS: &str = "\
Exit status:
  0    the guest powered off, or halted with interrupts off: a clean end
  odd  the guest wrote V to port 0xf4: the status is 2 x V + 1 (as QEMU's isa-debug-exit)
  2    the command line or the machine file was wrong
  4    the host lacks something: /dev/kvm, permission, memory
  6    a file cannot be read, written or loaded
  8    the guest crashed, or halted for ever
  10   the guest was ended by --timeout
  12   the guest asked for a restart
  14   the guest's kernel panicked
  16   the machine was ended from outside: by the detach key, a signal, or the control socket";

const MACHINE: &str = "\
A guest without a kernel's protocol (modes real, protected, long):
  one vCPU, interrupts off, no interrupt controller
  memory from address 0, with a hole from 3 GiB to 4 GiB
  a 16550 serial port at I/O ports 0x3f8 to 0x3ff: its output goes to standard output
  an exit port at 0xf4

A kernel (modes linux, pvh, multiboot) has beside these:
  interrupt controllers and the timer in KVM, as many vCPUs as --cpus says
  ACPI tables that describe everything, with power off and restart
  virtio-mmio devices: disks, network cards, entropy, balloon, console, vsock
  the terminal as serial console: Ctrl-] ends the machine

Exit status:
  0    the guest powered off, or halted with interrupts off: a clean end
  odd  the guest wrote V to port 0xf4: the status is 2 x V + 1 (as QEMU's isa-debug-exit)
  2    the command line or the machine file was wrong
  4    the host lacks something: /dev/kvm, permission, memory
  6    a file cannot be read, written or loaded
  8    the guest crashed, or halted for ever
  10   the guest was ended by --timeout
  12   the guest asked for a restart
  14   the guest's kernel panicked
  16   the machine was ended from outside: by the detach key, a signal, or the control socket

Examples:
  cofferdam-vmm guest real --output hello.bin
  cofferdam-vmm boot --kernel hello.bin --timeout 10 --stats

  cofferdam-vmm guest --kernel /boot/vmlinuz-6.1.0-1-amd64 --output initrd
  cofferdam-vmm boot --kernel /boot/vmlinuz-6.1.0-1-amd64 --initrd initrd --cmdline console=ttyS0";
