//! The container's terminal: handed to an engine, or joined to this program's own.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use namespaces::TerminalSize;
use rustix::event::{PollFd, PollFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::termios::{OptionalActions, Termios, Winsize};

use crate::config::ConsoleSize;

/// Passes a descriptor over a socket that somebody listens at; `text` goes with it.
pub(crate) fn pass(socket: &Path, fds: &[BorrowedFd<'_>], text: &[u8]) -> Result<()> {
    let cannot = || format!("cannot pass a descriptor to {}", socket.display());
    let stream = UnixStream::connect(socket).with_context(cannot)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(fds)) {
        bail!("too many descriptors for {}", socket.display());
    }
    let sent = sendmsg(
        &stream,
        &[IoSlice::new(text)],
        &mut control,
        SendFlags::NOSIGNAL,
    )
    .map_err(io::Error::from)
    .with_context(cannot)?;
    (&stream)
        .write_all(text.get(sent..).unwrap_or_default())
        .with_context(cannot)
}

/// Hands a terminal over, as runc does: with a name that tells what it is.
pub(crate) fn hand_over(master: &OwnedFd, socket: &Path) -> Result<()> {
    pass(socket, &[master.as_fd()], b"/dev/ptmx").context("--console-socket")
}

/// The size that a new terminal is to have: the one asked for, or that of this program's own.
pub(crate) fn size(asked: Option<&ConsoleSize>) -> TerminalSize {
    let number = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    if let Some(size) = asked.filter(|size| size.width != 0 && size.height != 0) {
        return TerminalSize {
            rows: number(size.height),
            columns: number(size.width),
        };
    }
    let own = rustix::termios::tcgetwinsize(rustix::stdio::stdin()).ok();
    TerminalSize {
        rows: own.map_or(0, |own| own.ws_row),
        columns: own.map_or(0, |own| own.ws_col),
    }
}

/// This program's own terminal, set so that every key goes to the container. As it was when
/// dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn set() -> Self {
        let stdin = rustix::stdio::stdin();
        let Ok(before) = rustix::termios::tcgetattr(stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        match rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ =
                rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

/// This program's streams joined to the container's terminal.
pub(crate) struct Joined {
    master: std::fs::File,
    to_master: Vec<u8>,
    to_output: Vec<u8>,
    input_open: bool,
    output_open: bool,
    _raw: Raw,
}

/// How much is read at once; more waits until it is written.
const CHUNK: usize = 1 << 13;

impl Joined {
    pub(crate) fn new(master: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&master, true).context("cannot use the terminal")?;
        let joined = Self {
            master: master.into(),
            to_master: Vec::new(),
            to_output: Vec::new(),
            input_open: true,
            output_open: true,
            _raw: Raw::set(),
        };
        joined.resize();
        Ok(joined)
    }

    /// Gives the container's terminal the size of this program's.
    pub(crate) fn resize(&self) {
        let stdin = rustix::stdio::stdin();
        if let Ok(size) = rustix::termios::tcgetwinsize(stdin)
            && (size.ws_row, size.ws_col) != (0, 0)
        {
            let size = Winsize {
                ws_xpixel: 0,
                ws_ypixel: 0,
                ..size
            };
            let _ = rustix::termios::tcsetwinsize(&self.master, size);
        }
    }

    /// What to wait for.
    pub(crate) fn poll_fds(&self) -> Vec<PollFd<'_>> {
        let mut fds = Vec::new();
        let mut events = PollFlags::empty();
        if self.output_open && self.to_output.is_empty() {
            events |= PollFlags::IN;
        }
        if !self.to_master.is_empty() {
            events |= PollFlags::OUT;
        }
        if self.output_open && !events.is_empty() {
            fds.push(PollFd::new(&self.master, events));
        }
        if self.input_open && self.to_master.is_empty() {
            fds.push(PollFd::from_borrowed_fd(
                rustix::stdio::stdin(),
                PollFlags::IN,
            ));
        }
        fds
    }

    /// Moves what can be moved without waiting for the other side.
    pub(crate) fn pump(&mut self) {
        self.read_input();
        self.write_master();
        self.read_master();
    }

    /// Writes what the container still has said, when it is gone.
    pub(crate) fn drain(&mut self) {
        while self.output_open && self.read_master() {}
    }

    fn read_input(&mut self) {
        if !self.input_open || !self.to_master.is_empty() {
            return;
        }
        let stdin = rustix::stdio::stdin();
        let mut ready = [PollFd::from_borrowed_fd(stdin, PollFlags::IN)];
        let zero = rustix::event::Timespec::default();
        if !matches!(rustix::event::poll(&mut ready, Some(&zero)), Ok(1)) {
            return;
        }
        let mut buffer = [0; CHUNK];
        match rustix::io::read(stdin, &mut buffer) {
            Ok(0) => {
                self.input_open = false;
                // What a person types to end the input.
                self.to_master.push(4);
            }
            Ok(count) => self.to_master.extend(buffer.iter().take(count)),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.input_open = false,
        }
    }

    fn write_master(&mut self) {
        while !self.to_master.is_empty() {
            match self.master.write(&self.to_master) {
                Ok(count) => drop(self.to_master.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.to_master.clear(),
            }
        }
    }

    /// Whether there was something.
    fn read_master(&mut self) -> bool {
        let mut buffer = [0; CHUNK];
        match self.master.read(&mut buffer) {
            Ok(count) if count > 0 => {
                self.to_output.extend(buffer.iter().take(count));
                self.write_output();
                true
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                false
            }
            // EIO: nobody has the terminal open any more.
            _ => {
                self.output_open = false;
                false
            }
        }
    }

    fn write_output(&mut self) {
        let mut stdout = io::stdout().lock();
        if stdout
            .write_all(&self.to_output)
            .and_then(|()| stdout.flush())
            .is_err()
        {
            self.output_open = false;
        }
        self.to_output.clear();
    }
}
