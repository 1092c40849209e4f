//! What a machine is made of: the machine file, and what the command line says of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cli::BootArgs;
use crate::error::Error;
use crate::layout::VIRTIO_LINES;
use crate::virtio::rate::Rate;

/// The CPU mode of a guest's first instruction, or the protocol by which it is booted.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// What the file is: a Linux kernel, an ELF file with a PVH entry, a Multiboot kernel; else long for
    /// an ELF file, real for any other
    #[default]
    Auto,
    /// 16-bit real mode: a flat binary at 0000:7c00, as a boot sector is loaded
    Real,
    /// 32-bit protected mode, flat segments, paging off; a flat binary is loaded at 0x100000
    Protected,
    /// 64-bit long mode, all memory mapped one to one; a flat binary is loaded at 0x100000
    Long,
    /// Linux's 64-bit boot protocol: a bzImage (vmlinuz) or an ELF vmlinux
    Linux,
    /// The PVH entry of an ELF kernel, in 32-bit protected mode
    Pvh,
    /// Multiboot 1, in 32-bit protected mode
    Multiboot,
}

/// A virtual machine, as the machine file describes it
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Machine {
    /// The guest: a Linux kernel, an ELF64 executable, a Multiboot kernel, or a flat binary
    pub(crate) kernel: PathBuf,
    /// How it is started
    #[serde(default)]
    pub(crate) mode: Mode,
    /// An initial RAM disk
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) initrd: Option<PathBuf>,
    /// The kernel's command line
    #[serde(default)]
    pub(crate) command_line: String,
    /// Memory in MiB, 1 to 1048576
    #[serde(default = "default_memory")]
    pub(crate) memory_mib: u64,
    /// Virtual CPUs, 1 to 254
    #[serde(default = "default_cpus")]
    pub(crate) cpus: u8,
    /// Disks, in the order in which the guest numbers them
    #[serde(default)]
    pub(crate) disks: Vec<Disk>,
    /// Network cards
    #[serde(default)]
    pub(crate) networks: Vec<Network>,
    /// Connections between guest and host without a network
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vsock: Option<Vsock>,
    /// Where a second console's output goes; the guest sees it as /dev/hvc0
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) console: Option<PathBuf>,
    /// Random numbers from the host
    #[serde(default = "yes")]
    pub(crate) entropy: bool,
    /// A balloon, by which the guest gives memory back
    #[serde(default = "yes")]
    pub(crate) balloon: bool,
    /// Keep a log of the memory that changes, so that a snapshot stops the machine only for what
    /// changed since the one before
    #[serde(default)]
    pub(crate) log_changes: bool,
}

/// A disk: a raw file or a block device
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    /// The guest cannot write it
    #[serde(default)]
    pub(crate) read_only: bool,
    /// What the guest sees as its serial number, at most 20 bytes
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) serial: Option<String>,
    /// How much it may do
    #[serde(default)]
    pub(crate) rate: Rate,
}

/// A network card on a tap interface of the host
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    /// The interface's name
    pub(crate) tap: String,
    /// The card's address; one that is made of the interface's name if left out
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mac: Option<Mac>,
    /// The largest packet that the guest should send
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) mtu: Option<u16>,
    /// How much the guest may receive
    #[serde(default)]
    pub(crate) receive: Rate,
    /// How much the guest may send
    #[serde(default)]
    pub(crate) send: Rate,
}

/// Connections between guest and host without a network
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vsock {
    /// The guest's context id, 3 or more
    pub(crate) cid: u32,
    /// The Unix socket on which the host connects to the guest; a connection of the guest to port N goes
    /// to the socket with _N after its name
    pub(crate) socket: PathBuf,
}

/// The address of a network card, such as 02:00:00:00:00:01
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub(crate) struct Mac(pub(crate) [u8; 6]);

impl Vsock {
    /// Where the sockets are.
    pub(crate) fn directory(&self) -> &Path {
        match self.socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

impl FromStr for Mac {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || format!("{text:?} is no network address; write it as 02:00:00:00:00:01");
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(help)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| help())?;
        }
        if parts.next().is_some() {
            return Err(help());
        }
        if mac[0] & 1 != 0 {
            return Err(format!(
                "{text} is the address of a group; its first byte must be even"
            ));
        }
        Ok(Self(mac))
    }
}

impl TryFrom<String> for Mac {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.0.map(|b| format!("{b:02x}")).join(":")
    }
}

impl Network {
    /// The card's address: the same for the same interface, and administered locally.
    pub(crate) fn address(&self) -> [u8; 6] {
        let from_name = || {
            let hash = self.tap.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
                (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
            });
            let mut mac = [2; 6];
            mac[1..].copy_from_slice(&hash.to_be_bytes()[..5]);
            mac
        };
        self.mac.map_or_else(from_name, |mac| mac.0)
    }
}

/// `FILE[,ro][,serial=TEXT][,bps=N][,iops=N]`
impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, options) = split_options(text)?;
        let mut disk = Self {
            path: path.into(),
            read_only: false,
            serial: None,
            rate: Rate::default(),
        };
        for option in options {
            match option {
                ("ro", "") => disk.read_only = true,
                ("serial", value) => disk.serial = Some(value.to_owned()),
                ("bps", value) => disk.rate.bytes_per_second = Some(number(value)?),
                ("iops", value) => disk.rate.operations_per_second = Some(number(value)?),
                (other, _) => {
                    return Err(format!(
                        "a disk has no option {other:?}; there are ro, serial=TEXT, bps=BYTES and iops=N"
                    ));
                }
            }
        }
        Ok(disk)
    }
}

/// `tap=NAME[,mac=…][,mtu=N][,bps=N][,pps=N]`
impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let options = text
            .split(',')
            .map(|o| o.split_once('=').unwrap_or((o, "")));
        let mut network = Self {
            tap: String::new(),
            mac: None,
            mtu: None,
            receive: Rate::default(),
            send: Rate::default(),
        };
        for option in options {
            match option {
                ("tap", value) => value.clone_into(&mut network.tap),
                ("mac", value) => network.mac = Some(value.parse()?),
                ("mtu", value) => network.mtu = Some(number(value)?),
                ("bps", value) => {
                    network.receive.bytes_per_second = Some(number(value)?);
                    network.send.bytes_per_second = Some(number(value)?);
                }
                ("pps", value) => {
                    network.receive.operations_per_second = Some(number(value)?);
                    network.send.operations_per_second = Some(number(value)?);
                }
                (other, _) => {
                    return Err(format!(
                        "a network has no option {other:?}; there are tap=NAME, mac=ADDRESS, mtu=BYTES, bps=BYTES and pps=PACKETS"
                    ));
                }
            }
        }
        Ok(network)
    }
}

/// `CID:PATH`
impl FromStr for Vsock {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (cid, socket) = text
            .split_once(':')
            .ok_or("write CID:PATH, such as 3:/run/guest.sock")?;
        Ok(Self {
            cid: number(cid)?,
            socket: socket.into(),
        })
    }
}

/// A file's name, and options after commas.
fn split_options(text: &str) -> Result<(&str, impl Iterator<Item = (&str, &str)>), String> {
    let mut parts = text.split(',');
    let path = parts
        .next()
        .filter(|p| !p.is_empty())
        .ok_or("a file's name is missing")?;
    Ok((path, parts.map(|o| o.split_once('=').unwrap_or((o, "")))))
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is no number that is possible here"))
}

fn default_memory() -> u64 {
    128
}

fn default_cpus() -> u8 {
    1
}

fn yes() -> bool {
    true
}

impl Machine {
    /// The machine that the command line asks for: that of the machine file, if there is one, with what
    /// the options change.
    pub(crate) fn from_args(args: &BootArgs) -> Result<Self, Error> {
        let mut machine = match &args.machine {
            Some(path) => Self::read(path)?,
            None => Self {
                kernel: args.kernel.clone().unwrap_or_default(),
                mode: Mode::Auto,
                initrd: None,
                command_line: String::new(),
                memory_mib: default_memory(),
                cpus: default_cpus(),
                disks: Vec::new(),
                networks: Vec::new(),
                vsock: None,
                console: None,
                entropy: true,
                balloon: true,
                log_changes: false,
            },
        };
        if let Some(kernel) = &args.kernel {
            machine.kernel.clone_from(kernel);
        }
        if let Some(mode) = args.mode {
            machine.mode = mode;
        }
        if args.initrd.is_some() {
            machine.initrd.clone_from(&args.initrd);
        }
        if let Some(line) = &args.cmdline {
            machine.command_line.clone_from(line);
        }
        if let Some(memory) = args.memory {
            machine.memory_mib = memory;
        }
        if let Some(cpus) = args.cpus {
            machine.cpus = cpus;
        }
        machine.disks.extend(args.disk.iter().cloned());
        machine.networks.extend(args.net.iter().cloned());
        if args.vsock.is_some() {
            machine.vsock.clone_from(&args.vsock);
        }
        if args.console.is_some() {
            machine.console.clone_from(&args.console);
        }
        machine.log_changes |= args.log_changes;
        machine.check()?;
        Ok(machine)
    }

    /// Reads a machine file.
    fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path).map_err(|source| Error::ReadMachine {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text).map_err(|problem| Error::BadMachine {
            path: path.to_owned(),
            problem,
        })
    }

    /// Reads a machine from JSON; the error says what is wrong and where.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    /// How many virtio devices it has.
    pub(crate) fn devices(&self) -> usize {
        let single = [
            self.vsock.is_some(),
            self.console.is_some(),
            self.entropy,
            self.balloon,
        ];
        self.disks.len() + self.networks.len() + single.iter().filter(|d| **d).count()
    }

    /// Checks what can be checked without the host.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |what: String| Err(Error::Machine { what });
        if self.kernel.as_os_str().is_empty() {
            return refuse("it has no kernel: give one with --kernel".to_owned());
        }
        if !(1..=1 << 20).contains(&self.memory_mib) {
            return refuse(format!(
                "memory of {} MiB: it must be 1 to 1048576 MiB",
                self.memory_mib
            ));
        }
        if !(1..=254).contains(&self.cpus) {
            return refuse(format!("{} CPUs: it must have 1 to 254", self.cpus));
        }
        if self.devices() > VIRTIO_LINES.len() {
            return refuse(format!(
                "{} virtio devices: it can have {}, so leave some out",
                self.devices(),
                VIRTIO_LINES.len()
            ));
        }
        for disk in &self.disks {
            if disk.serial.as_ref().is_some_and(|s| s.len() > 20) {
                return refuse(format!(
                    "the serial number of {} is longer than 20 bytes",
                    disk.path.display()
                ));
            }
        }
        for net in &self.networks {
            if net.tap.is_empty() || net.tap.len() > 15 || net.tap.contains('/') {
                return refuse(format!(
                    "{:?} cannot be an interface's name: give it as tap=NAME",
                    net.tap
                ));
            }
            if net.mtu.is_some_and(|mtu| mtu < 68) {
                return refuse("an MTU below 68, the least that IPv4 allows".to_owned());
            }
        }
        if self
            .vsock
            .as_ref()
            .is_some_and(|v| v.cid < 3 || v.cid == u32::MAX)
        {
            return refuse("a vsock context id that is reserved: it must be 3 or more".to_owned());
        }
        Ok(())
    }
}

/// Prints the machine as a machine file, or that file's schema.
pub(crate) fn print(args: &crate::cli::ConfigArgs) -> Result<(), Error> {
    use std::io::Write as _;
    let text = if args.schema {
        serde_json::to_string_pretty(&schemars::schema_for!(Machine))
    } else {
        serde_json::to_string_pretty(&Machine::from_args(&args.boot)?)
    };
    let text = text.map_err(|e| Error::Output { source: e.into() })?;
    writeln!(std::io::stdout(), "{text}").map_err(|source| Error::Output { source })
}

#[cfg(test)]
mod properties;
