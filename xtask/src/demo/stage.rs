//! Where the demo plays: its scratch directory, its screen, and the way out when it is interrupted.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGPIPE, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use tempfile::TempDir;

/// The place where the demo plays.
pub(crate) struct Stage {
    scratch: TempDir,
    scenes: usize,
    shared: Arc<Interrupt>,
}

/// What the thread that waits for signals shares with the one that runs programs.
#[derive(Default)]
struct Interrupt {
    /// The signal that came, or 0. Set by the handler itself: the program that is running may end
    /// of the same signal before the thread that waits for it wakes up.
    signal: Arc<AtomicUsize>,
    /// The program that is running, or 0.
    child: AtomicI32,
}

/// What a program did.
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    /// From just before it was started to the first byte of its standard output.
    pub(crate) first_output: Option<Duration>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// The exit status as a shell counts it.
    pub(crate) fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}

impl Stage {
    /// Catches the signals that end a program, and makes the scratch directory.
    pub(crate) fn set() -> Result<Self> {
        let shared = Arc::new(Interrupt::default());
        let ends = [SIGINT, SIGTERM, SIGHUP];
        for signal in ends {
            flag::register_usize(signal, Arc::clone(&shared.signal), number(signal))
                .context("cannot catch signals")?;
        }
        let mut signals = Signals::new(ends).context("cannot catch signals")?;
        let in_thread = Arc::clone(&shared);
        thread::spawn(move || {
            for signal in signals.forever() {
                in_thread.deliver(signal);
            }
        });
        // Not before: what ends this program would leave it behind.
        let scratch = tempfile::Builder::new()
            .prefix("cofferdam-demo-")
            .tempdir()
            .context(
                "cannot make a temporary directory; set TMPDIR to one that you may write to",
            )?;
        Ok(Self {
            scratch,
            scenes: 0,
            shared,
        })
    }

    /// A directory for files that are gone when the demo is over.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The signal that interrupted the demo, if one did.
    pub(crate) fn interrupted(&self) -> Option<i32> {
        let signal = self.shared.signal.load(Ordering::SeqCst);
        i32::try_from(signal).ok().filter(|signal| *signal != 0)
    }

    /// Removes the scratch directory.
    pub(crate) fn close(self) -> Result<()> {
        let path = self.scratch.path().to_owned();
        self.scratch
            .close()
            .with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Begins the next part.
    pub(crate) fn scene(&mut self, title: &str) {
        self.scenes += 1;
        self.shared.print(&format!("\n{}. {title}\n", self.scenes));
    }

    /// Says something about what was seen.
    pub(crate) fn say(&self, text: &str) {
        for line in text.lines() {
            self.shared.print(&format!("   {line}\n"));
        }
    }

    /// Runs a program, showing the command line and what it prints.
    pub(crate) fn show(&self, command: &mut Command) -> Result<Outcome> {
        self.say(&format!("$ {}", self.line(command)));
        self.run(command, true)
    }

    /// Runs a program without showing anything.
    pub(crate) fn quietly(&self, command: &mut Command) -> Result<Outcome> {
        self.run(command, false)
    }

    fn run(&self, command: &mut Command, show: bool) -> Result<Outcome> {
        let name = command.get_program().to_string_lossy().into_owned();
        if self.interrupted().is_some() {
            bail!("interrupted");
        }
        let begin = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.shared.watch(&child);
        let streams = (child.stdout.take(), child.stderr.take());
        let (stdout, stderr) = thread::scope(|scope| {
            let screen = show.then_some(&*self.shared);
            let stdout = scope.spawn(move || collect(streams.0, screen, begin));
            let stderr = scope.spawn(move || collect(streams.1, screen, begin));
            (stdout.join(), stderr.join())
        });
        let status = child
            .wait()
            .with_context(|| format!("cannot wait for {name}"));
        self.shared.child.store(0, Ordering::SeqCst);
        let (Ok((stdout, first_output)), Ok((stderr, _))) = (stdout, stderr) else {
            bail!("cannot read what {name} printed");
        };
        if self.interrupted().is_some() {
            bail!("interrupted");
        }
        Ok(Outcome {
            status: status?,
            first_output,
            stdout,
            stderr,
        })
    }

    /// A command line as one would type it, with the scratch directory and the paths of our
    /// programs cut short.
    fn line(&self, command: &Command) -> String {
        let program = Path::new(command.get_program())
            .file_name()
            .unwrap_or(command.get_program());
        let scratch = self.scratch().to_string_lossy();
        std::iter::once(program)
            .chain(command.get_args())
            .map(|word| quoted(&word.to_string_lossy().replace(&*scratch, "$DEMO")))
            .collect::<Vec<_>>()
            .join(" ")
    }
}

impl Interrupt {
    /// Prints; when nobody reads any more (`cargo xtask demo | head`), that ends the demo as a
    /// signal would.
    fn print(&self, text: &str) {
        if io::stdout().write_all(text.as_bytes()).is_err() {
            self.deliver(SIGPIPE);
        }
    }

    fn deliver(&self, signal: i32) {
        self.signal.store(number(signal), Ordering::SeqCst);
        self.end_child();
    }

    /// A terminal sends its signals to the child too, a service manager does not; the programs that
    /// we run take a second one as well.
    fn end_child(&self) {
        if let Some(child) = Pid::from_raw(self.child.load(Ordering::SeqCst)) {
            let _ = kill_process(child, Signal::TERM);
        }
    }

    fn watch(&self, child: &Child) {
        self.child.store(child.id().cast_signed(), Ordering::SeqCst);
        // It may have come just before there was a child to pass it on to.
        if self.signal.load(Ordering::SeqCst) != 0 {
            self.end_child();
        }
    }
}

fn number(signal: i32) -> usize {
    signal.unsigned_abs() as usize
}

/// Reads a stream to its end, and tells when its first byte came.
fn collect(
    stream: Option<impl Read>,
    screen: Option<&Interrupt>,
    begin: Instant,
) -> (String, Option<Duration>) {
    let Some(stream) = stream else {
        return (String::new(), None);
    };
    let mut reader = BufReader::new(stream);
    let first = reader
        .fill_buf()
        .is_ok_and(|bytes| !bytes.is_empty())
        .then(|| begin.elapsed());
    let mut text = String::new();
    let mut line = Vec::new();
    while reader
        .read_until(b'\n', &mut line)
        .is_ok_and(|read| read > 0)
    {
        let piece = String::from_utf8_lossy(&line);
        if let Some(screen) = screen {
            screen.print(&format!("   | {}\n", piece.trim_end()));
        }
        text.push_str(&piece);
        line.clear();
    }
    (text, first)
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%$".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
