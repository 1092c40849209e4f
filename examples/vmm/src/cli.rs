//! The command line, with help that a newcomer can learn from.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Run a bare-metal guest on a virtual CPU of /dev/kvm
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a virtual machine and run a guest in it until it exits
    #[command(after_help = EXIT_STATUS, after_long_help = MACHINE)]
    Boot(BootArgs),
    /// Write a small guest to a file, to boot it
    ///
    /// The guests are built into this program: no assembler is needed. Each prints through the
    /// serial port what it sees of the machine (its mode, the CPU's vendor, the hypervisor, whether
    /// paging is on) and halts.
    #[command(
        after_help = "Example:\n  cofferdam-vmm guest long --output hello.elf\n  cofferdam-vmm boot --kernel hello.elf"
    )]
    Guest(GuestArgs),
}

#[derive(Debug, Args)]
pub(crate) struct BootArgs {
    /// The guest: a flat binary, or an ELF64 executable for x86-64
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: PathBuf,
    /// The CPU mode of the guest's first instruction
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub(crate) mode: Mode,
    /// The guest's memory in MiB (1 to 1048576); the host gives it as the guest touches it
    #[arg(long, value_name = "MiB", default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) memory: u64,
    /// End the guest after this many seconds (such as 10 or 0.5), with exit status 10
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) timeout: Option<Duration>,
    /// Report measured values as JSON when the guest has ended: to FILE, or to standard error
    ///
    /// `process_start_to_first_output_us`: microseconds from the start of this process to the
    /// guest's first byte of output (null when there was none).
    /// `vmm_resident_bytes`: memory that this process holds, less what the guest touched.
    /// `guest_resident_bytes`: what the guest touched. `cpu_us`: CPU time, user and system.
    /// `exits`: how often the guest came out to this program, by reason.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    pub(crate) stats: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct GuestArgs {
    /// The mode that the guest is for
    #[arg(value_enum)]
    pub(crate) mode: GuestMode,
    /// The file's format (default: elf for long, flat for the others)
    #[arg(long, value_enum)]
    pub(crate) format: Option<Format>,
    /// Where to write it; an existing file is overwritten
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Long for an ELF file, real for any other
    Auto,
    /// 16-bit real mode: a flat binary at 0000:7c00, as a boot sector is loaded
    Real,
    /// 32-bit protected mode, flat segments, paging off; a flat binary is loaded at 0x100000
    Protected,
    /// 64-bit long mode, all memory mapped one to one; a flat binary is loaded at 0x100000
    Long,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum GuestMode {
    /// 16-bit real mode
    Real,
    /// 32-bit protected mode
    Protected,
    /// 64-bit long mode
    Long,
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
  0    the guest halted with interrupts off: a clean end
  odd  the guest wrote V to port 0xf4: the status is 2 x V + 1 (as QEMU's isa-debug-exit)
  2    the command line was wrong
  4    the host lacks something: /dev/kvm, permission, memory
  6    a file cannot be read, written or loaded
  8    the guest crashed, or halted for ever
  10   the guest was ended by --timeout";

const MACHINE: &str = "\
The machine:
  one vCPU, interrupts off, no interrupt controller
  memory from address 0, with a hole from 3 GiB to 4 GiB
  a 16550 serial port at I/O ports 0x3f8 to 0x3ff: its output goes to standard output
  an exit port at 0xf4

Exit status:
  0    the guest halted with interrupts off: a clean end
  odd  the guest wrote V to port 0xf4: the status is 2 x V + 1 (as QEMU's isa-debug-exit)
  2    the command line was wrong
  4    the host lacks something: /dev/kvm, permission, memory
  6    a file cannot be read, written or loaded
  8    the guest crashed, or halted for ever
  10   the guest was ended by --timeout

Example:
  cofferdam-vmm guest real --output hello.bin
  cofferdam-vmm boot --kernel hello.bin --timeout 10 --stats";
