//! Running the program as a user does.
#![allow(dead_code, reason = "each test uses a part")]

pub(crate) mod linux;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the program with these arguments.
pub(crate) fn run(args: &[&str]) -> Ran {
    let output = Command::new(env!("CARGO_BIN_EXE_cofferdam-vmm"))
        .args(args)
        .output()
        .unwrap();
    Ran {
        status: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory that goes away with the test.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// A machine that runs beside the test, and is ended with it.
pub(crate) struct Running {
    child: Child,
    out: String,
    control: String,
}

impl Running {
    /// Starts the program with these arguments, its output in a file of the directory, with a control
    /// socket.
    pub(crate) fn start(dir: &Scratch, name: &str, args: &[&str]) -> Self {
        let (out, control) = (
            dir.path(&format!("{name}.out")),
            dir.path(&format!("{name}.control")),
        );
        let child = Command::new(env!("CARGO_BIN_EXE_cofferdam-vmm"))
            .args(args)
            .args(["--control", &control])
            .stdin(Stdio::null())
            .stdout(File::create(&out).unwrap())
            .spawn()
            .unwrap();
        Self {
            child,
            out,
            control,
        }
    }

    /// What it has put out so far.
    pub(crate) fn out(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Waits until something holds of its output.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, what: impl Fn(&str) -> bool) {
        self.wait_until(|machine| what(&machine.out()));
    }

    /// Waits until something holds of it.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(100);
        while !what(self) {
            let status = self.child.try_wait().unwrap();
            assert_eq!(status, None, "it has ended: {}", self.out());
            assert!(Instant::now() < end, "it does not come: {}", self.out());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks the control socket, and does not wait for the answer.
    #[track_caller]
    pub(crate) fn begin(&self, request: &str, body: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.control).unwrap();
        let len = body.len();
        write!(
            stream,
            "{request} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{body}"
        )
        .unwrap();
        stream
    }

    /// Asks the control socket; gives the status and the body.
    #[track_caller]
    pub(crate) fn ask(&self, request: &str, body: &str) -> (u16, serde_json::Value) {
        let mut stream = self.begin(request, body);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        let body = answer.split("\r\n\r\n").nth(1).unwrap_or_default();
        (
            status.unwrap_or_else(|| panic!("no answer: {answer:?}")),
            serde_json::from_str(body).unwrap(),
        )
    }

    /// Saves a snapshot.
    #[track_caller]
    pub(crate) fn save(&self, to: &str) -> serde_json::Value {
        let (status, body) = self.ask("PUT /snapshot", &format!("{{\"to\":\"{to}\"}}"));
        assert_eq!(status, 200, "{body}");
        body
    }

    /// Ends it from outside.
    #[track_caller]
    pub(crate) fn shut_down(mut self) {
        self.ask("PUT /shutdown", "");
        assert_eq!(self.child.wait().unwrap().code(), Some(16));
        assert!(!fs::exists(&self.control).unwrap());
    }

    /// The number of the process that was started.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it as it is (kill -9). From a jail it leaves its control group to the next machine.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for its end; gives the status.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already. If it can, it is to remove its control group.
        if let Ok(None) = self.child.try_wait()
            && let Some(pid) = Pid::from_raw(self.child.id().cast_signed())
        {
            let _ = kill_process(pid, Signal::TERM);
            for _ in 0..500 {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The file of a guest that counts for ever, and notices when its memory is not as it was.
pub(crate) fn busy(dir: &Scratch) -> String {
    let kernel = dir.path("kernel");
    let made = run(&["guest", "multiboot", "--output", &kernel]);
    assert_eq!((made.status, made.err.as_str()), (0, ""));
    kernel
}

/// The whole lines that [`busy`] printed, which count on without a gap.
#[track_caller]
pub(crate) fn counts(out: &str) -> Vec<u32> {
    // One that was restored may begin in the middle of a line.
    let lines = out.split_inclusive('\n');
    let whole = lines.filter(|l| l.len() == 9);
    let counts: Vec<u32> = whole
        .map(|l| u32::from_str_radix(l.trim(), 16).unwrap())
        .collect();
    for pair in counts.windows(2) {
        assert_eq!(pair[1], pair[0] + 1, "a gap in {out}");
    }
    counts
}
