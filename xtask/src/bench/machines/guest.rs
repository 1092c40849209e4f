//! Linux as a guest: how it is started by each contender, and what it does.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Sample, done, order};
use crate::exec;
use crate::tools;

const MEMORY_MIB: u64 = 256;
/// What the guest says first.
const UP: &str = "init-up";
/// How much goes through the disk and through the network, and how many round trips there are.
const MIB: u32 = 16;
const ROUND_TRIPS: u32 = 200;
const HOST: &str = "192.168.78.1";
const TAP: &str = "cofferbench0";
/// No run takes so long.
const LIMIT: Duration = Duration::from_mins(3);

/// The guest's first program: what it does is in its command line, after `test=`.
const INIT: &str = r#"#!/bin/busybox sh
echo init-up
copy() {
    what=$1
    shift
    echo "$what begins"
    dd "$@" && echo "$what ends"
}
case $(sed 's/.*test=\([a-z]*\).*/\1/' /proc/cmdline) in
disk)
    copy write if=/dev/zero of=/dev/vda bs=1M count=MIB oflag=direct conv=fsync
    copy read if=/dev/vda of=/dev/null bs=1M count=MIB iflag=direct
    copy trips if=/dev/vda of=/dev/null bs=4k count=TRIPS iflag=direct
    ;;
net)
    ip addr add 192.168.78.2/24 dev eth0
    ip link set eth0 up
    nc HOST 5000 > /dev/null
    dd if=/dev/zero bs=1M count=MIB 2>/dev/null | nc HOST 5001
    mkfifo /trips
    nc HOST 5002 < /trips | cat > /trips
    ;;
esac
poweroff -f
"#;

/// One of those that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Contender {
    Ours,
    /// As root runs it without being told otherwise.
    Jailed,
    Qemu,
}

impl Contender {
    pub(super) const ALL: [Contender; 3] = [Contender::Ours, Contender::Jailed, Contender::Qemu];

    pub(super) fn name(self) -> &'static str {
        match self {
            Contender::Ours => "cofferdam-vmm",
            Contender::Jailed => "… jailed",
            Contender::Qemu => "qemu microvm",
        }
    }
}

/// What the guest is to do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Work {
    Boot,
    Disk,
    Net,
}

impl Work {
    const ALL: [Work; 3] = [Work::Boot, Work::Disk, Work::Net];

    fn name(self) -> &'static str {
        match self {
            Work::Boot => "boot",
            Work::Disk => "disk",
            Work::Net => "net",
        }
    }
}

/// The files that the machines are made of.
#[derive(Serialize, Deserialize)]
pub(super) struct Stage {
    vmm: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    /// Which round is next; everybody is the first in some.
    pub(super) round: u32,
}

impl Stage {
    pub(super) fn set(vmm: PathBuf, shared: &Path) -> Result<Stage> {
        let kernel = tools::cloud_kernel().context("there is no kernel for clouds in /boot")?;
        let (init, initrd) = (shared.join("init"), shared.join("initrd"));
        let script = INIT
            .replace("MIB", &MIB.to_string())
            .replace("TRIPS", &ROUND_TRIPS.to_string())
            .replace("HOST", HOST);
        fs::write(&init, script).with_context(|| format!("cannot write {}", init.display()))?;
        let mut command = Command::new(&vmm);
        command.arg("guest").arg("--kernel").arg(&kernel);
        command
            .arg("--init")
            .arg(&init)
            .arg("--output")
            .arg(&initrd);
        done(command, exec::aloud)?;
        Ok(Stage {
            vmm,
            kernel,
            initrd,
            round: 0,
        })
    }

    /// Starts the kernel on this machine, which need not be able to run it at speed; gives the CPU time
    /// in ms until its first instruction.
    pub(super) fn start(&self) -> Result<f64> {
        exec::go_on()?;
        let stats = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
        let memory = MEMORY_MIB.to_string();
        let mut command = Command::new(&self.vmm);
        command.args([
            "boot",
            "--no-jail",
            "--timeout",
            "0.001",
            "--memory",
            &memory,
        ]);
        command.arg("--kernel").arg(&self.kernel);
        command.arg("--initrd").arg(&self.initrd);
        command.arg("--stats").arg(stats.path());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(Stdio::null());
        command.status().context("cannot start it")?;
        Ok(Stats::read(stats.path())?.cpu_to_first_run_us / 1e3)
    }

    /// Runs everybody's machines in turn, one round.
    pub(super) fn perform(&self, mut tell: impl FnMut(Sample) -> Result<()>) -> Result<()> {
        let scratch = tempfile::tempdir().context("cannot make a temporary directory")?;
        if !Path::new("/dev/net/tun").exists() {
            run("modprobe", &["tun"])?;
        }
        run("ip", &["tuntap", "add", TAP, "mode", "tap"])?;
        run("ip", &["addr", "add", &format!("{HOST}/24"), "dev", TAP])?;
        run("ip", &["link", "set", TAP, "up"])?;
        let disk = scratch.path().join("disk");
        File::create(&disk)?.set_len(u64::from(MIB) << 20)?;
        for work in Work::ALL {
            for at in order(self.round, Contender::ALL.len()) {
                let contender = Contender::ALL[at];
                // The jail's cost is in the start.
                if contender == Contender::Jailed && work != Work::Boot {
                    continue;
                }
                let run = Run {
                    stage: self,
                    contender,
                    work,
                    disk: &disk,
                    stats: scratch.path().join("stats"),
                };
                let measured = run
                    .perform()
                    .with_context(|| format!("{} failed", contender.name()))?;
                for (measure, value) in measured {
                    tell(Sample {
                        measure: measure.to_owned(),
                        contender,
                        value,
                    })?;
                }
            }
        }
        Ok(())
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(arguments);
    done(command, exec::quiet).map(drop)
}

/// One machine.
struct Run<'a> {
    stage: &'a Stage,
    contender: Contender,
    work: Work,
    disk: &'a Path,
    stats: PathBuf,
}

impl Run<'_> {
    fn command(&self) -> Command {
        let line = format!("console=ttyS0 quiet panic=-1 test={}", self.work.name());
        let memory = MEMORY_MIB.to_string();
        let disk = self.disk.display();
        let mut command;
        if self.contender == Contender::Qemu {
            command = Command::new("qemu-system-x86_64");
            command.args(["-M", "microvm", "-accel", "kvm", "-cpu", "host"]);
            command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
            command.args(["-no-reboot", "-serial", "stdio", "-m", &memory]);
            // Virtio as it is since version 1, which is not the default here.
            command.args(["-global", "virtio-mmio.force-legacy=false"]);
            command.arg("-kernel").arg(&self.stage.kernel);
            command.arg("-initrd").arg(&self.stage.initrd);
            command.args(["-append", &line]);
            match self.work {
                Work::Boot => {}
                Work::Disk => {
                    let drive = format!("id=d,if=none,format=raw,file={disk}");
                    command.args(["-drive", &drive, "-device", "virtio-blk-device,drive=d"]);
                }
                Work::Net => {
                    let net = format!("tap,id=n,ifname={TAP},script=no,downscript=no");
                    command.args(["-netdev", &net, "-device", "virtio-net-device,netdev=n"]);
                }
            }
        } else {
            command = Command::new(&self.stage.vmm);
            command.args(["boot", "--memory", &memory, "--cmdline", &line]);
            command.arg("--kernel").arg(&self.stage.kernel);
            command.arg("--initrd").arg(&self.stage.initrd);
            command.arg("--stats").arg(&self.stats);
            if self.contender == Contender::Ours {
                command.arg("--no-jail");
            }
            match self.work {
                Work::Boot => {}
                Work::Disk => {
                    command.arg("--disk").arg(self.disk);
                }
                Work::Net => {
                    command.args(["--net", &format!("tap={TAP}")]);
                }
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    fn perform(&self) -> Result<Vec<(&'static str, f64)>> {
        let network = (self.work == Work::Net)
            .then(|| thread_of_network().context("cannot listen"))
            .transpose()?;
        let start = Instant::now();
        let mut child = self.command().spawn().context("cannot start it")?;
        let mut lines = BufReader::new(child.stdout.take().context("it has no output")?).lines();
        let mut measured = Vec::new();
        let mut said = String::new();
        // What takes how long in the guest is timed here, whose clock is the same for all.
        let (mut begun, mut took) = (BTreeMap::new(), BTreeMap::new());
        while let Some(line) = lines.next().transpose()? {
            if line.trim() == UP && self.work == Work::Boot {
                measured.push(("boot to init, ms", start.elapsed().as_secs_f64() * 1e3));
                // In the jail it is another process.
                if self.contender != Contender::Jailed {
                    measured.push(("CPU time until init, ms", cpu_time(&child)? * 1e3));
                    measured.push(("memory beyond the guest's, MiB", beyond_guest(&child)?));
                }
            }
            match line.trim().split_once(' ') {
                Some((what, "begins")) => {
                    begun.insert(what.to_owned(), Instant::now());
                }
                Some((what, "ends")) => {
                    if let Some((what, since)) = begun.remove_entry(what) {
                        took.insert(what, since.elapsed().as_secs_f64());
                    }
                }
                _ => {}
            }
            said = said + &line + "\n";
        }
        let status = child.wait()?;
        ensure!(
            status.success(),
            "it ended with {status}, having said: {said}"
        );
        let seconds = |what: &str| {
            let seconds = took.get(what).copied();
            seconds.with_context(|| format!("it did not do {what}, but said: {said}"))
        };
        let (mib, trips) = (f64::from(MIB), f64::from(ROUND_TRIPS));
        match self.work {
            Work::Boot => {
                ensure!(!measured.is_empty(), "it did not come up: {said}");
                if self.contender == Contender::Ours {
                    measured.extend(self.own()?);
                }
            }
            Work::Disk => {
                measured.push(("disk: written, MiB/s", mib / seconds("write")?));
                measured.push(("disk: read, MiB/s", mib / seconds("read")?));
                measured.push(("disk: 4 KiB read, µs", seconds("trips")? / trips * 1e6));
            }
            Work::Net => {
                let Some(network) = network else {
                    bail!("there is no network");
                };
                let Ok(times) = network.join() else {
                    bail!("the network's thread is gone");
                };
                let [to, from, through] = times?.map(|t| t.as_secs_f64());
                measured.push(("network: to the guest, MiB/s", mib / to));
                measured.push(("network: from the guest, MiB/s", mib / from));
                measured.push(("network: round trip, µs", through / trips * 1e6));
            }
        }
        Ok(measured)
    }

    /// What only our own program tells of itself.
    fn own(&self) -> Result<Vec<(&'static str, f64)>> {
        let stats = Stats::read(&self.stats)?;
        let first_run = stats.process_start_to_first_run_us / 1e3;
        Ok(vec![
            ("start to first instruction, ms", first_run),
            ("exits, start to power-off", stats.exits_total),
        ])
    }
}

/// What our program tells of a run.
#[derive(Deserialize)]
struct Stats {
    process_start_to_first_run_us: f64,
    cpu_to_first_run_us: f64,
    exits_total: f64,
}

impl Stats {
    fn read(path: &Path) -> Result<Stats> {
        let text = fs::read(path).context("it wrote no statistics")?;
        Ok(serde_json::from_slice(&text)?)
    }
}

type Network = thread::JoinHandle<io::Result<[Duration; 3]>>;

/// Sends to the guest, receives from it, and passes single bytes to and fro; tells how long each
/// took.
fn thread_of_network() -> io::Result<Network> {
    let listen = |port: u16| TcpListener::bind((HOST, port));
    let (to, from, trips) = (listen(5000)?, listen(5001)?, listen(5002)?);
    Ok(thread::spawn(move || {
        let mebibyte = vec![0; 1 << 20];
        let sent = timed(&to, |mut stream| {
            for _ in 0..MIB {
                stream.write_all(&mebibyte)?;
            }
            stream.shutdown(Shutdown::Write)?;
            until_end(stream, &mut [0; 16])
        })?;
        let received = timed(&from, |stream| until_end(stream, &mut vec![0; 1 << 20]))?;
        let through = timed(&trips, |mut stream| {
            for _ in 0..ROUND_TRIPS {
                stream.write_all(&[1])?;
                stream.read_exact(&mut [0])?;
            }
            Ok(())
        })?;
        Ok([sent, received, through])
    }))
}

/// Waits for the guest, and tells how long the talk with it took. The guest waits for the
/// connection's end, which comes with the talk's.
fn timed(
    listener: &TcpListener,
    talk: impl FnOnce(TcpStream) -> io::Result<()>,
) -> io::Result<Duration> {
    listener.set_nonblocking(true)?;
    let waiting = Instant::now();
    let stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if waiting.elapsed() > LIMIT => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    let start = Instant::now();
    talk(stream)?;
    Ok(start.elapsed())
}

fn until_end(mut stream: TcpStream, buffer: &mut [u8]) -> io::Result<()> {
    while stream.read(buffer)? > 0 {}
    Ok(())
}

/// Seconds of CPU time, user and system; see proc_pid_stat(5).
fn cpu_time(child: &Child) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let rest = stat.rsplit_once(')').context("no such process")?.1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<f64>().ok());
    let [user, system] = [11, 12].map(ticks);
    // The kernel's unit for user space has been a hundredth of a second for ever.
    Ok((user.context("no user time")? + system.context("no system time")?) / 100.0)
}

/// Memory in MiB that the process holds beside the guest's, which is its largest mapping. Advice about a
/// part of it divides it in `/proc`: what has no file, can be written and follows without a gap belongs to it.
fn beyond_guest(child: &Child) -> Result<f64> {
    let maps = fs::read_to_string(format!("/proc/{}/smaps", child.id()))?;
    beyond_largest(&maps).context("it has no memory")
}

fn beyond_largest(maps: &str) -> Option<f64> {
    let kib = |line: &str, key: &str| -> Option<f64> {
        let value = line.strip_prefix(key)?.trim().strip_suffix("kB")?;
        value.trim().parse().ok()
    };
    // Each mapping's size, and what is resident of it.
    let mut mappings: Vec<(u64, f64)> = Vec::new();
    let mut memory_end = None;
    for line in maps.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [range, access, _, _, inode, rest @ ..] = &words[..]
            && let Some((start, end)) = addresses(range)
        {
            let is_memory = *access == "rw-p" && *inode == "0" && rest.is_empty();
            match mappings.last_mut() {
                Some((size, _)) if is_memory && memory_end == Some(start) => *size += end - start,
                _ => mappings.push((end - start, 0.0)),
            }
            memory_end = is_memory.then_some(end);
        } else if let Some((value, (_, resident))) = kib(line, "Rss:").zip(mappings.last_mut()) {
            *resident += value;
        }
    }
    let total: f64 = mappings.iter().map(|(_, resident)| resident).sum();
    let (_, guest) = mappings.iter().max_by_key(|(size, _)| *size)?;
    Some((total - guest) / 1024.0)
}

/// The ends of a mapping, in hexadecimal with a hyphen between them.
fn addresses(range: &str) -> Option<(u64, u64)> {
    let (start, end) = range.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    number(start).zip(number(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_is_the_largest_mapping_with_all_its_parts() {
        let maps = "\
1000-2000 r-xp 00000000 08:01 77 /bin/vmm
Rss:                   1 kB
2000-8000 rw-p 00000000 00:00 0 
Size:                 24 kB
Rss:                   2 kB
8000-9000 rw-p 00000000 00:00 0 
Rss:                   4 kB
VmFlags: rd wr hg
9000-a000 rw-p 00000000 00:00 0 [stack]
Rss:                1024 kB
a000-b000 rw-p 00000000 00:00 0 
Rss:                   0 kB
b000-f000 ---p 00000000 00:00 0 
Rss:                   0 kB
f000-10000 rw-p 00000000 00:00 0 
Rss:                   0 kB
10000-14000 ---p 00000000 00:00 0 
Rss:                   0 kB
20000-21000 rw-p 00000000 00:00 0 
Rss:                1023 kB
";
        assert_eq!(beyond_largest(maps), Some(2.0));
        assert_eq!(beyond_largest(""), None);
    }
}
