//! The lab's side of `cargo xtask lab`: runs the command and passes on what it says.
//!
//! Without systemd this is process 1, which must reap every orphan and must never end.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Resource, Rlimit, WaitOptions, WaitStatus};
use rustix::pty::OpenptFlags;
use rustix::system::RebootCommand;
use rustix::termios::Winsize;

use super::wire::{Frame, PORT, PULSE, Start};
use crate::tools;

/// How long after the command's end its orphans may still hold its output without adding to it.
const QUIET: Duration = Duration::from_millis(200);

type Port = Arc<Mutex<File>>;
type ToFrame = fn(Vec<u8>) -> Frame;

pub(crate) fn run() -> Result<ExitCode> {
    if let Err(error) = serve() {
        // The console is the host's log, whose end it shows when a lab ends without a status.
        eprintln!("lab agent: {error:#}");
    }
    power_off()
}

fn power_off() -> ! {
    // The host ends the machine as soon as it has the status; this is for a host that is gone.
    rustix::fs::sync();
    let _ = rustix::system::reboot(RebootCommand::PowerOff);
    loop {
        thread::park();
    }
}

fn serve() -> Result<()> {
    let path = port()?;
    let mut reader = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    // A port can be opened once only; both directions share the description.
    let port: Port = Arc::new(Mutex::new(reader.try_clone()?));
    send(&port, &Frame::Ready)?;
    let Some(Frame::Start(start)) = Frame::receive(&mut reader)? else {
        anyhow::bail!("the host did not say what to run");
    };
    let pulse = Arc::clone(&port);
    thread::spawn(move || {
        while send(&pulse, &Frame::Alive).is_ok() {
            thread::sleep(PULSE);
        }
    });
    // What systemd gives every service; the kernel's own default for process 1 is far lower.
    let files = Rlimit {
        current: Some(1024),
        maximum: Some(524_288),
    };
    let _ = rustix::process::setrlimit(Resource::Nofile, files);
    let running = match Running::start(&start) {
        Ok(running) => running,
        Err((status, why)) => {
            send(&port, &Frame::Refused(why))?;
            send(&port, &Frame::Exit(status))?;
            return await_end(&mut reader);
        }
    };
    let input = running.input.map(File::from);
    thread::spawn(move || {
        // The host's end of the port closes when the host's program is gone.
        let _ = pass_input(&mut reader, input);
        power_off();
    });
    let (ended, pumps) = mpsc::channel();
    let open = running.output.len();
    let mut held = Vec::new();
    for (stream, frame) in running.output {
        held.push(stream.try_clone()?);
        let (port, ended) = (Arc::clone(&port), ended.clone());
        thread::spawn(move || {
            pump(File::from(stream), frame, &port);
            let _ = ended.send(());
        });
    }
    let status = reap_until(running.pid)?;
    let mut open = open;
    while open > 0 {
        match pumps.recv_timeout(QUIET) {
            Ok(()) => open -= 1,
            // An orphan holds the pipe. What was written before the command's end is read first.
            Err(_) => {
                if held
                    .iter()
                    .all(|s| rustix::io::ioctl_fionread(s).unwrap_or(0) == 0)
                {
                    break;
                }
            }
        }
    }
    rustix::fs::sync();
    send(&port, &Frame::Exit(status))?;
    thread::sleep(Duration::from_secs(10));
    Ok(())
}

/// Waits for the host to end the machine.
fn await_end(reader: &mut File) -> Result<()> {
    while Frame::receive(reader)?.is_some() {}
    Ok(())
}

fn send(port: &Port, frame: &Frame) -> io::Result<()> {
    let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
    frame.send(&mut *port)
}

/// The device node of our port. Its driver may still be at work on it.
fn port() -> Result<PathBuf> {
    let class = Path::new("/sys/class/virtio-ports");
    for _ in 0..1000 {
        for entry in fs::read_dir(class).into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            let node = Path::new("/dev").join(entry.file_name());
            let is_there = || fs::metadata(&node).is_ok_and(|m| m.file_type().is_char_device());
            if name.trim() == PORT && is_there() {
                return Ok(node);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
    anyhow::bail!("there is no port named {PORT} under {}", class.display())
}

struct Running {
    pid: Pid,
    input: Option<OwnedFd>,
    output: Vec<(OwnedFd, ToFrame)>,
}

impl Running {
    /// Starts the command; the error is the status to end with, and why.
    fn start(start: &Start) -> Result<Running, (u8, String)> {
        let argv = start.argv();
        let env: Vec<(OsString, OsString)> = start.env().collect();
        let cwd = PathBuf::from(start.cwd());
        if !cwd.is_dir() {
            let why = format!("the directory {} is not there in the lab", cwd.display());
            return Err((125, why));
        }
        let name = argv.first().cloned().unwrap_or_default();
        executable(&name, &cwd, &env)?;
        // A session of its own, as a login or a service has it.
        let mut command = Command::new("/usr/bin/setsid");
        if start.terminal.is_some() {
            command.arg("--ctty");
        }
        command
            .arg("--")
            .args(&argv)
            .current_dir(&cwd)
            .env_clear()
            .envs(env);
        let failed = |error: io::Error| (125, format!("cannot start {}: {error}", name.display()));
        let spawned = match start.terminal {
            Some(size) => on_terminal(command, size),
            None => on_pipes(command),
        };
        spawned.map_err(failed)
    }
}

fn on_pipes(mut command: Command) -> io::Result<Running> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut output: Vec<(OwnedFd, ToFrame)> = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        output.push((stdout.into(), Frame::Stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        output.push((stderr.into(), Frame::Stderr));
    }
    Ok(Running {
        pid: Pid::from_child(&child),
        input: child.stdin.take().map(OwnedFd::from),
        output,
    })
}

fn on_terminal(mut command: Command, size: (u16, u16)) -> io::Result<Running> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    resize(&master, size);
    let child = command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave)
        .spawn()?;
    Ok(Running {
        pid: Pid::from_child(&child),
        input: Some(master.try_clone()?),
        output: vec![(master, Frame::Stdout)],
    })
}

fn resize(terminal: impl AsFd, (rows, columns): (u16, u16)) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // A terminal of the wrong size is still a terminal.
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

/// Sees that a command can be executed, in the words and with the statuses of a shell.
fn executable(
    name: &OsString,
    cwd: &Path,
    env: &[(OsString, OsString)],
) -> Result<(), (u8, String)> {
    let shown = name.display();
    if name.as_encoded_bytes().contains(&b'/') {
        let path = cwd.join(name);
        return match fs::metadata(&path) {
            Err(error) => Err((127, format!("cannot run {shown} in the lab: {error}"))),
            Ok(_) if !tools::is_executable(&path) => {
                Err((126, format!("{shown} is not an executable file in the lab")))
            }
            Ok(_) => Ok(()),
        };
    }
    let path = env.iter().find(|(key, _)| key == "PATH");
    let found = path.is_some_and(|(_, path)| {
        std::env::split_paths(path).any(|dir| tools::is_executable(&cwd.join(dir).join(name)))
    });
    if found {
        Ok(())
    } else {
        Err((
            127,
            format!("there is no command {shown} in the lab's PATH"),
        ))
    }
}

/// Passes frames for the command's input on until the host is gone.
fn pass_input(reader: &mut File, mut input: Option<File>) -> io::Result<()> {
    while let Some(frame) = Frame::receive(reader)? {
        match frame {
            Frame::StdinEnd => input = None,
            // A command that does not read its input has closed it; the rest is for nobody.
            Frame::Stdin(bytes) if input.as_mut().is_some_and(|i| i.write_all(&bytes).is_err()) => {
                input = None;
            }
            Frame::Size(rows, columns) => {
                if let Some(terminal) = &input {
                    resize(terminal, (rows, columns));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Passes output on until its end; a terminal's end is an error of reading.
fn pump(mut from: File, frame: ToFrame, port: &Port) {
    let mut buffer = vec![0; 32 * 1024];
    loop {
        match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(n) => {
                if send(port, &frame(buffer[..n].to_vec())).is_err() {
                    return;
                }
            }
        }
    }
}

/// Waits for the command, and as process 1 also for every orphan that ends meanwhile.
fn reap_until(command: Pid) -> Result<u8> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == command => return Ok(status_byte(status)),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the command"),
        }
    }
}

fn status_byte(status: WaitStatus) -> u8 {
    let status = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 125,
    };
    u8::try_from(status).unwrap_or(u8::MAX)
}
