//! `cargo xtask lab`: a command on another kernel, with this machine's files.
//!
//! The host's side. QEMU boots a distribution's kernel; [`initramfs`] and `init.sh` build the
//! file tree; [`agent`] runs the command there; [`wire`] is what the two say to each other.

pub(crate) mod agent;
mod cpio;
mod environment;
mod initramfs;
mod kernel;
mod qemu;
mod terminal;
mod wire;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, ExitCode};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};
use signal_hook::iterator::Signals;

use crate::places;
use crate::tools;
use kernel::Kernel;
use qemu::{Machine, Qemu};
use wire::{Frame, PULSE, Start};

/// A lab that has not come up by then never will; a loaded machine may well take a minute.
const BOOT_LIMIT: Duration = Duration::from_mins(5);

/// A lab that is up says that it is alive every few seconds ([`wire::PULSE`]); one that is silent
/// for this long hangs as a whole.
const SILENCE_LIMIT: Duration = Duration::from_mins(2);

/// The status of a lab that could not run its command, as with env(1), chroot(1) and others.
const STATUS_FAILED: u8 = 125;
/// The status of a lab that was ended by `--timeout`, as with timeout(1).
const STATUS_TIMED_OUT: u8 = 124;

/// Run a command as root on another kernel, with this machine's files
///
/// Boots a kernel of this machine's distribution under QEMU, in software: no root and no
/// /dev/kvm is needed. The lab sees this machine's files as they are; what it writes is gone when
/// it ends, except below /lab/out, which is a directory of this machine. It has cgroup v2 with
/// every controller and a real KVM of its own. It has no network but its loopback.
///
/// The command runs in the directory that the lab was started in. Its output and its exit status
/// are passed on; the lab's own troubles give 125, a time-out gives 124, a command that cannot be
/// executed 126, one that is not there 127. Standard input is passed on unless it is a terminal
/// (see --terminal). Ctrl-C ends the lab at once.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Let systemd be process 1, and run the command as one of its units
    #[arg(long)]
    systemd: bool,
    /// The lab's memory
    #[arg(long, value_name = "MiB", default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(512..=1 << 20))]
    memory: u32,
    /// How many CPUs the lab has
    ///
    /// With more than one, QEMU's emulation of virtualization can hang the whole lab when a guest
    /// runs on its /dev/kvm: use more for what needs no KVM.
    #[arg(long, value_name = "N", default_value_t = CPUS,
        value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// End the lab, with status 124, when it has run this many seconds, its start included
    #[arg(long, value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=1 << 32))]
    timeout: Option<u64>,
    /// The kernel to boot, instead of the newest under /boot that has its modules
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The directory that is /lab/out in the lab, instead of target/lab/out
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Set a variable in the command's environment, or pass on the one that is set here
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Give the command this terminal (Ctrl-] ends the lab then); this is so without a command
    #[arg(long, short)]
    terminal: bool,
    /// The command and its arguments; a shell if left out and standard input is a terminal
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How many CPUs a lab has unless it is told. With two, about one start of a virtual machine in
/// fifty hung QEMU as a whole; with one, none of hundreds did.
pub(crate) const CPUS: u32 = 1;

/// What a lab is to be, and to run.
pub(crate) struct Lab {
    pub(crate) systemd: bool,
    pub(crate) memory: u32,
    pub(crate) cpus: u32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) kernel: Option<PathBuf>,
    /// The host directory that is `/lab/out`; it is made if it is not there.
    pub(crate) out: PathBuf,
    /// Variables beyond those that every lab has.
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) terminal: bool,
    /// What is passed on as the command's standard input.
    pub(crate) input: Option<Box<dyn Read + Send>>,
    pub(crate) command: Vec<OsString>,
}

/// How a lab ended.
pub(crate) enum End {
    /// The command ended with this status, as a shell would give it.
    Status(u8),
    /// It ran longer than it might.
    TimedOut(Duration),
    /// This program was told to end by a signal.
    Signal(i32),
}

pub(crate) fn run(args: &Args) -> ExitCode {
    match lab_of(args).and_then(|lab| lab.run(&mut io::stdout(), &mut io::stderr())) {
        Ok(End::Status(status)) => ExitCode::from(status),
        Ok(End::TimedOut(limit)) => {
            eprintln!(
                "lab: ended because it had run for {} s (--timeout)",
                limit.as_secs()
            );
            ExitCode::from(STATUS_TIMED_OUT)
        }
        Ok(End::Signal(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::from(STATUS_FAILED)
        }
    }
}

fn lab_of(args: &Args) -> Result<Lab> {
    let on_terminal = io::stdin().is_terminal();
    let terminal = args.terminal || args.command.is_empty();
    if terminal && !on_terminal {
        bail!("standard input is not a terminal; give a command after --, without --terminal");
    }
    let command = if args.command.is_empty() {
        vec!["/bin/bash".into(), "-l".into()]
    } else {
        args.command.clone()
    };
    let mut extra = Vec::new();
    for variable in &args.env {
        let pair = match variable.split_once('=') {
            Some((name, value)) => (name.into(), value.into()),
            None => match env::var_os(variable) {
                Some(value) => (variable.into(), value),
                None => bail!("--env {variable}: it is not set here; write {variable}=VALUE"),
            },
        };
        extra.push(pair);
    }
    Ok(Lab {
        systemd: args.systemd,
        memory: args.memory,
        cpus: args.cpus,
        timeout: args.timeout.map(Duration::from_secs),
        kernel: args.kernel.clone(),
        out: args.out.clone().unwrap_or_else(|| directory().join("out")),
        env: extra,
        terminal,
        input: (terminal || !on_terminal).then(|| Box::new(io::stdin()) as Box<_>),
        command,
    })
}

/// Where the lab keeps its cache and its logs.
pub(crate) fn directory() -> PathBuf {
    places::target().join("lab")
}

/// What comes to the thread that runs the lab.
enum Event {
    Frame(Frame),
    /// The machine is gone, or speaks nonsense.
    Broken(Option<io::Error>),
    Signal(i32),
    /// The key that ends a lab on a terminal.
    Escape,
}

impl Lab {
    /// Boots the lab, runs the command in it, and ends it. What the command says is written to
    /// `out` and `err` as it comes.
    pub(crate) fn run(mut self, out: &mut dyn Write, err: &mut dyn Write) -> Result<End> {
        let started = Instant::now();
        tools::require(&[qemu::TOOLS[0], qemu::TOOLS[1], initramfs::BUSYBOX])?;
        let kernel = match &self.kernel {
            Some(image) => Kernel::at(image)?,
            None => Kernel::installed()?,
        };
        let cache = directory();
        for dir in [&cache, &self.out] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let initramfs = initramfs::build(&kernel, self.systemd)?.cached(&cache)?;
        let (console, _lock) = console_log(&cache)?;
        let mut command_line =
            "console=ttyS0 panic=-1 mitigations=off random.trust_cpu=on no_timer_check".to_owned();
        if self.systemd {
            command_line += " systemd.unit=lab.target systemd.show_status=no";
            // To the console: it is all there is to see if the system does not come up.
            command_line += " systemd.log_target=kmsg printk.devkmsg=on";
        }

        let (events_in, events) = mpsc::sync_channel(64);
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGWINCH])?;
        let signals_end = signals.handle();
        let sender = events_in.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                if sender.send(Event::Signal(signal)).is_err() {
                    return;
                }
            }
        });
        // The handlers go when this function is left, whichever way.
        let _signals = Closing(signals_end);

        let (mut qemu, to_lab, from_lab) = Qemu::start(&Machine {
            kernel: &kernel.image,
            initramfs: &initramfs,
            command_line: &command_line,
            memory: self.memory,
            cpus: self.cpus,
            out: &self.out,
            console: &console,
        })?;
        let to_lab = Arc::new(Mutex::new(to_lab));
        let sender = events_in.clone();
        thread::spawn(move || receive(from_lab, &sender));

        let progress = progress(&kernel, &self);
        let mut raw = None;
        let mut ready = false;
        let mut heard = started;
        loop {
            let hangs = if ready {
                heard + SILENCE_LIMIT
            } else {
                started + BOOT_LIMIT
            };
            let end = self.timeout.map(|limit| started + limit);
            let patience = end.map_or(hangs, |end| end.min(hangs));
            let event =
                match events.recv_timeout(patience.saturating_duration_since(Instant::now())) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Disconnected) => bail!("the lab's threads are gone"),
                    Err(RecvTimeoutError::Timeout) => {
                        progress.finish_and_clear();
                        if let Some(limit) = self.timeout.filter(|_| end == Some(patience)) {
                            return Ok(End::TimedOut(limit));
                        }
                        drop(raw);
                        let (what, limit) = if ready {
                            ("it has given no sign of life for", SILENCE_LIMIT)
                        } else {
                            ("it did not come up within", BOOT_LIMIT)
                        };
                        bail!("{what} {} s; {}", limit.as_secs(), last_words(&console));
                    }
                };
            let send = |frame: &Frame| {
                let mut to_lab = to_lab.lock().unwrap_or_else(PoisonError::into_inner);
                frame.send(&mut *to_lab).context("cannot speak to the lab")
            };
            match event {
                Event::Frame(frame) => {
                    heard = Instant::now();
                    match frame {
                        Frame::Ready => {
                            ready = true;
                            progress.finish_and_clear();
                            send(&Frame::Start(self.start()?))?;
                            if self.terminal {
                                raw =
                                    Some(terminal::Raw::set().context("cannot set the terminal")?);
                            }
                            if let Some(input) = self.input.take() {
                                let (to_lab, events) = (Arc::clone(&to_lab), events_in.clone());
                                let escape = self.terminal;
                                thread::spawn(move || pass_input(input, &to_lab, escape, &events));
                            } else {
                                send(&Frame::StdinEnd)?;
                            }
                            let to_lab = Arc::clone(&to_lab);
                            thread::spawn(move || keep_awake(&to_lab));
                        }
                        Frame::Stdout(bytes) => pass_output(out, &bytes)?,
                        Frame::Stderr(bytes) => pass_output(err, &bytes)?,
                        Frame::Refused(why) => writeln!(err, "lab: {why}")?,
                        Frame::Exit(status) => return Ok(End::Status(status)),
                        Frame::Alive
                        | Frame::Start(_)
                        | Frame::Stdin(_)
                        | Frame::StdinEnd
                        | Frame::Size(..) => {}
                    }
                }
                Event::Signal(SIGWINCH) => {
                    if raw.is_some() {
                        let (rows, columns) = terminal::size();
                        send(&Frame::Size(rows, columns))?;
                    }
                }
                Event::Signal(signal) => {
                    progress.finish_and_clear();
                    return Ok(End::Signal(signal));
                }
                Event::Escape => return Ok(End::Signal(SIGINT)),
                Event::Broken(error) => {
                    progress.finish_and_clear();
                    drop(raw);
                    if let Some(error) = error {
                        return Err(error).context("cannot understand the lab");
                    }
                    let when = if ready {
                        "while the command ran"
                    } else {
                        "before it was up"
                    };
                    let how = qemu.wait().map_or_else(String::new, |s| format!(" ({s})"));
                    bail!("the machine ended {when}{how}; {}", last_words(&console));
                }
            }
        }
    }

    /// What to run, with the environment that it has in the lab.
    fn start(&self) -> Result<Start> {
        let cwd = env::current_dir().context("the current directory is gone")?;
        let size = self.terminal.then(terminal::size);
        let mut environment = environment::of(env::vars_os());
        for (name, value) in &self.env {
            environment.retain(|(n, _)| n != name);
            environment.push((name.clone(), value.clone()));
        }
        Ok(Start::new(&self.command, &environment, &cwd.into(), size))
    }
}

/// Ends the thread that waits for signals.
struct Closing(signal_hook::iterator::Handle);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Removes all but the youngest files whose names start so. One that a starting lab is about to
/// read is among these.
fn prune(dir: &Path, start: &str, kept: usize) {
    let mut files: Vec<_> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with(start))
        .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
        .collect();
    files.sort();
    let old = files.len().saturating_sub(kept);
    for (_, path) in files.drain(..old) {
        // Another lab may have removed it first.
        let _ = fs::remove_file(path);
    }
}

fn progress(kernel: &Kernel, lab: &Lab) -> indicatif::ProgressBar {
    // Drawn on a terminal only, and gone before the command says anything.
    let bar = indicatif::ProgressBar::new_spinner();
    bar.set_message(format!(
        "booting {} ({} CPUs, {} MiB)",
        kernel.version, lab.cpus, lab.memory
    ));
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

fn receive(mut from_lab: ChildStdout, events: &SyncSender<Event>) {
    loop {
        let event = match Frame::receive(&mut from_lab) {
            Ok(Some(frame)) => Event::Frame(frame),
            Ok(None) => Event::Broken(None),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Event::Broken(None),
            Err(error) => Event::Broken(Some(error)),
        };
        let last = matches!(event, Event::Broken(_));
        if events.send(event).is_err() || last {
            return;
        }
    }
}

fn pass_input(
    mut from: impl Read,
    to_lab: &Mutex<ChildStdin>,
    escape: bool,
    events: &SyncSender<Event>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let frame = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => Frame::StdinEnd,
            Ok(n) => {
                if escape && buffer[..n].contains(&terminal::ESCAPE) {
                    // The lab may have ended meanwhile.
                    let _ = events.send(Event::Escape);
                    return;
                }
                Frame::Stdin(buffer[..n].to_vec())
            }
        };
        let mut to_lab = to_lab.lock().unwrap_or_else(PoisonError::into_inner);
        if frame.send(&mut *to_lab).is_err() || frame == Frame::StdinEnd {
            return;
        }
    }
}

/// Interrupts the lab now and then, until it is gone. QEMU 7.2 changes the flags of pending
/// interrupts at VMRUN without its lock, and so loses some; if one was the timer's, the lab halts
/// for good. The next interrupt, whatever it is for, makes QEMU look again.
fn keep_awake(to_lab: &Mutex<ChildStdin>) {
    loop {
        thread::sleep(PULSE);
        let mut to_lab = to_lab.lock().unwrap_or_else(PoisonError::into_inner);
        if Frame::Alive.send(&mut *to_lab).is_err() {
            return;
        }
    }
}

fn pass_output(to: &mut dyn Write, bytes: &[u8]) -> Result<()> {
    let mut write = || {
        to.write_all(bytes)?;
        to.flush()
    };
    write().context("cannot pass the command's output on")
}

/// A free log for the kernel's console: `console.log`, or a numbered one while that is in use by
/// another lab. It is ours as long as the file is open.
fn console_log(dir: &Path) -> Result<(PathBuf, File)> {
    for n in 0..100 {
        let name = match n {
            0 => "console.log".to_owned(),
            n => format!("console.{n}.log"),
        };
        let path = dir.join(name);
        let open = File::options().create(true).append(true).open(&path);
        let file = open.with_context(|| format!("cannot write {}", path.display()))?;
        if file.try_lock().is_ok() {
            file.set_len(0)?;
            return Ok((path, file));
        }
    }
    bail!(
        "a hundred labs are running already, by the locks on {}",
        dir.display()
    )
}

fn last_words(console: &Path) -> String {
    let tail = tools::tail(console, 20);
    let shown = console.display();
    if tail.is_empty() {
        format!("its console ({shown}) is empty")
    } else {
        format!("the end of its console ({shown}):\n{tail}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_side_by_side_have_logs_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let (first, lock) = console_log(dir.path()).unwrap();
        let (second, _lock) = console_log(dir.path()).unwrap();
        assert_ne!(first, second);
        drop(lock);
        assert_eq!(console_log(dir.path()).unwrap().0, first);
    }
}
