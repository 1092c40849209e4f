//! The control socket: HTTP over a Unix socket, a request a connection.
//!
//! ```text
//! GET /machine               the machine file
//! GET /metrics               counters, as JSON
//! PUT /pause  PUT /resume    stop and go on
//! PUT /snapshot  {"to": DIR} save the machine; a running one is stopped for a moment
//! PUT /balloon  {"mib": N}   ask the guest for memory
//! PUT /shutdown              end the machine
//! ```

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::board::End;
use crate::error::Error;
use crate::files;
use crate::filter::Work;
use crate::machine::{Assembled, Happening};
use crate::snapshot;
use crate::virtio::worker::lock;

/// The longest request line or header, and the longest body.
const LINE: u64 = 4096;
const HEADERS: usize = 64;
const BODY: usize = 64 << 10;
/// What is read of a request that was refused already.
const REST: u64 = 1 << 20;
/// How long a client may take for its request, or to read the answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    Machine,
    Metrics,
    Pause,
    Resume,
    Snapshot(PathBuf),
    Balloon(u32),
    Shutdown,
}

/// A command, and where its answer goes.
pub(crate) struct Request {
    command: Command,
    answer: Sender<Answer>,
}

/// A status and a body.
type Answer = (u16, Value);

/// A control socket that nobody serves yet.
pub(crate) struct Socket {
    listener: UnixListener,
    name: Name,
}

/// Removes the socket when the machine has ended. In the jail it cannot be reached by its name:
/// whoever waits outside removes it.
pub(crate) struct Name(Option<PathBuf>);

impl Drop for Name {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            remove(path);
        }
    }
}

/// Removes a socket's name, if that is what is there.
pub(crate) fn remove(path: &Path) {
    use std::os::unix::fs::FileTypeExt as _;
    if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        // Someone may have removed it meanwhile.
        let _ = std::fs::remove_file(path);
    }
}

impl Socket {
    pub(crate) fn bind(path: &Path) -> Result<Self, Error> {
        let listener = files::bind(path)
            .and_then(|l| l.set_nonblocking(false).map(|()| l))
            .map_err(|source| Error::Socket {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            listener,
            name: Name((!crate::jail::is_inside()).then(|| path.to_owned())),
        })
    }

    /// Waits for one client (gdb), after whom nobody can connect.
    #[cfg(feature = "gdb")]
    pub(crate) fn accept(self) -> Result<UnixStream, Error> {
        let accepted = self.listener.accept().map_err(|source| Error::Host {
            what: "wait for gdb",
            source,
        });
        accepted.map(|(stream, _)| stream)
    }

    /// Serves it, until the machine has ended and the name is dropped.
    pub(crate) fn serve(self, happens: Sender<Happening>, jailed: bool) -> Name {
        serve(self.listener, happens, jailed);
        self.name
    }
}

fn serve(listener: UnixListener, happens: Sender<Happening>, jailed: bool) {
    thread::spawn(move || {
        if jailed && Work::Control.hold().is_err() {
            return;
        }
        for stream in listener.incoming().flatten() {
            // One after another: what they ask is done in an order, and none can keep the others for
            // longer than its patience.
            let _ = attend(&stream, &happens);
        }
    });
}

fn attend(stream: &UnixStream, happens: &Sender<Happening>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let request = read_request(&mut BufReader::new(stream));
    // Afterwards there would be nobody to answer.
    let ends = matches!(request, Ok(Command::Shutdown));
    let is_refused = request.is_err();
    let (status, body) = match request {
        Ok(Command::Shutdown) => (200, json!({})),
        Ok(command) => {
            let (answer, answers) = mpsc::channel();
            let request = Request { command, answer };
            let _ = happens.send(Happening::Request(request));
            answers
                .recv()
                .unwrap_or_else(|_| (503, json!({ "error": "the machine has ended" })))
        }
        Err((status, problem)) => (status, json!({ "error": problem })),
    };
    let mut body = body.to_string();
    body.push('\n');
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        500 => "Internal Server Error",
        _ => "Service Unavailable",
    };
    let head = format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let mut stream = stream;
    let written = stream.write_all((head + &body).as_bytes());
    if ends {
        let _ = happens.send(Happening::Ended(Ok(Some(End::Stopped))));
    }
    written?;
    if is_refused {
        // It was not read to its end: whoever still sends would be cut off before reading the answer.
        stream.shutdown(Shutdown::Write)?;
        stream.take(REST).read_to_end(&mut Vec::new())?;
    }
    Ok(())
}

type Refusal = (u16, String);

/// Reads one request: its line, its headers, and as much of a body as they say.
pub(crate) fn read_request(from: &mut impl io::BufRead) -> Result<Command, Refusal> {
    let bad = |what: &str| (400, what.to_owned());
    let mut line = || -> Result<String, Refusal> {
        let mut line = Vec::new();
        let got = from.by_ref().take(LINE).read_until(b'\n', &mut line);
        if got.is_err() || line.last() != Some(&b'\n') {
            return Err(bad("a line is too long or cut short"));
        }
        let text = String::from_utf8(line).map_err(|_| bad("a line is no UTF-8"))?;
        Ok(text.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Err(bad("the request line is not METHOD PATH HTTP/1.1"));
    };
    if !version.starts_with("HTTP/1.") {
        return Err(bad("only HTTP/1.1 is spoken here"));
    }
    let mut length = 0;
    for left in (0..HEADERS).rev() {
        let header = line()?;
        if header.is_empty() {
            break;
        }
        if left == 0 {
            return Err(bad("too many headers"));
        }
        let (name, value) = header
            .split_once(':')
            .ok_or_else(|| bad("a header has no colon"))?;
        if name.eq_ignore_ascii_case("content-length") {
            length = value
                .trim()
                .parse()
                .map_err(|_| bad("Content-Length is no number"))?;
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(bad("send the body with a Content-Length"));
        }
    }
    if length > BODY {
        return Err((413, format!("a body may have {BODY} bytes")));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)
        .map_err(|_| bad("the body is shorter than its Content-Length"))?;
    command(method, path, &body)
}

fn command(method: &str, path: &str, body: &[u8]) -> Result<Command, Refusal> {
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct To {
        to: PathBuf,
    }
    #[derive(serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Size {
        mib: u32,
    }
    fn parse<'a, T: serde::Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
        serde_json::from_slice(body).map_err(|e| (400, format!("the body is wrong: {e}")))
    }
    match (method, path) {
        ("GET", "/machine") => Ok(Command::Machine),
        ("GET", "/metrics") => Ok(Command::Metrics),
        ("PUT", "/pause") => Ok(Command::Pause),
        ("PUT", "/resume") => Ok(Command::Resume),
        ("PUT", "/shutdown") => Ok(Command::Shutdown),
        ("PUT", "/snapshot") => Ok(Command::Snapshot(parse::<To>(body)?.to)),
        ("PUT", "/balloon") => Ok(Command::Balloon(parse::<Size>(body)?.mib)),
        (
            _,
            "/machine" | "/metrics" | "/pause" | "/resume" | "/shutdown" | "/snapshot" | "/balloon",
        ) => Err((405, format!("{path} does not take {method}"))),
        _ => Err((404, format!("there is no {path}"))),
    }
}

/// Does what is asked.
pub(crate) fn answer(machine: &Assembled, request: Request) {
    let done = Ok::<_, Error>(json!({}));
    let asked = format!("{:?}", request.command);
    let begin = Instant::now();
    let answer = match request.command {
        Command::Machine => Ok(json!(machine.machine)),
        Command::Metrics => Ok(metrics(machine)),
        Command::Pause => {
            machine.pause();
            done
        }
        Command::Resume => {
            machine.resume();
            done
        }
        Command::Balloon(mib) => {
            let asked = machine.board.virtio.iter().any(|device| {
                let mut device = lock(device);
                let is_balloon = device.device.set_balloon(mib);
                device.wake.signal();
                is_balloon
            });
            if asked {
                done
            } else {
                Err(Error::Machine {
                    what: "it has no balloon".to_owned(),
                })
            }
        }
        Command::Snapshot(to) => snapshot::save(machine, &to).map(|w| json!(w)),
        // Whoever read it ends the machine.
        Command::Shutdown => done,
    };
    let answer = match answer {
        Ok(body) => (200, body),
        Err(e) => (500, json!({ "error": e.to_string() })),
    };
    let (status, took) = (answer.0, begin.elapsed());
    tracing::info!(asked, status, took_us = took.as_micros(), "control");
    // The client may be gone.
    let _ = request.answer.send(answer);
}

fn metrics(machine: &Assembled) -> Value {
    let devices = machine.board.virtio.iter();
    let devices: Vec<Value> = devices.map(|d| lock(d).device.metrics()).collect();
    json!({
        "exits": machine.board.stats.exits(),
        "guest_memory_bytes": machine.vm.memory().size(),
        "guest_resident_bytes": machine.vm.memory().resident().unwrap_or(0),
        "devices": devices,
    })
}
