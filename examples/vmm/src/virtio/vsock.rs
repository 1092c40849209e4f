//! Connections between guest and host without a network (device 19).
//!
//! The host's ends are Unix sockets, by the convention that Firecracker uses: a program on the host
//! connects to the machine's socket, writes `CONNECT PORT\n` and reads `OK PORT\n`; a connection of
//! the guest to port N of the host (context id 2) goes to the socket with `_N` after its name.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{Chain, Device, Next, Ring, Source};
use crate::filter::call;

const HOST: u64 = 2;
const STREAM: u16 = 1;

const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const RST: u16 = 3;
const SHUTDOWN: u16 = 4;
const RW: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

const NO_RECEIVE: u32 = 1;
const NO_SEND: u32 = 2;

const RX: usize = 0;
const TX: usize = 1;
const EVENT: usize = 2;

const HEADER: usize = 44;
/// What the guest may send ahead of what the host reads, in each connection.
const BUFFER: u32 = 64 << 10;
const MOST_CONNECTIONS: usize = 1024;
/// Packets without data that wait for the guest; beyond, the guest waits.
const MOST_WAITING: usize = 4 * MOST_CONNECTIONS;
/// The longest `CONNECT PORT\n`.
const LONGEST_LINE: usize = 32;
/// Ports of the host's ends, above those that anybody chooses.
const FIRST_PORT: u32 = 1 << 30;

/// A packet's header, as far as it is not the same for all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Packet {
    host_port: u32,
    guest_port: u32,
    len: u32,
    operation: u16,
    flags: u32,
    /// The sender's buffer, and how much of what it got it has passed on.
    buffer: u32,
    forwarded: u32,
}

/// One connection, by the ports of host and guest.
type Ends = (u32, u32);

struct Connection {
    stream: UnixStream,
    fd: Arc<OwnedFd>,
    /// The guest has answered, or asked.
    open: bool,
    to_host: VecDeque<u8>,
    /// How much went to the host, and how much of that the guest knows.
    forwarded: u32,
    told: u32,
    /// The guest's buffer, what it has passed on, and what was sent to it.
    guest_buffer: u32,
    guest_forwarded: u32,
    sent: u32,
    host: Host,
    /// The guest will send no more.
    guest_done: bool,
}

/// What the host still does in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    /// It sends, and receives.
    Sends,
    /// It only receives: it has stopped sending, or the guest does not want more.
    Receives,
    Gone,
}

impl Connection {
    fn new(stream: UnixStream, open: bool) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let fd = Arc::new(stream.as_fd().try_clone_to_owned()?);
        Ok(Self {
            stream,
            fd,
            open,
            to_host: VecDeque::new(),
            forwarded: 0,
            told: 0,
            guest_buffer: 0,
            guest_forwarded: 0,
            sent: 0,
            host: Host::Sends,
            guest_done: false,
        })
    }

    /// How much the guest has room for.
    fn credit(&self) -> u32 {
        let under_way = self.sent.wrapping_sub(self.guest_forwarded);
        self.guest_buffer.saturating_sub(under_way)
    }

    /// Whether the host's end is closed, or shut down for both directions.
    fn is_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&*self.fd, PollFlags::empty())];
        let now = Timespec::default();
        // It cannot fail; if it did, the next write would tell.
        poll(&mut fds, Some(&now)).is_ok() && fds[0].revents().contains(PollFlags::HUP)
    }

    /// Writes to the host what it takes; false when it is gone.
    fn flush(&mut self) -> bool {
        while !self.to_host.is_empty() {
            match self.stream.write(self.to_host.as_slices().0) {
                Ok(n) => {
                    self.to_host.drain(..n);
                    // What is forwarded is counted modulo 2^32.
                    self.forwarded = self.forwarded.wrapping_add(u32::try_from(n).unwrap_or(0));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

pub(crate) struct Vsock {
    cid: u32,
    path: PathBuf,
    listener: UnixListener,
    listener_fd: Option<Arc<OwnedFd>>,
    /// Programs of the host that have not said yet where they want to go.
    arriving: Vec<(UnixStream, Arc<OwnedFd>, Vec<u8>)>,
    connections: HashMap<Ends, Connection>,
    waiting: VecDeque<Packet>,
    next_port: u32,
    /// The driver has no buffer for what the host sends.
    starved: bool,
    /// The guest has to be told that all its connections are gone.
    was_restored: bool,
}

impl Vsock {
    /// The listener should not block.
    pub(crate) fn new(cid: u32, path: PathBuf, listener: UnixListener) -> Self {
        let listener_fd = listener.as_fd().try_clone_to_owned().ok().map(Arc::new);
        Self {
            cid,
            path,
            listener,
            listener_fd,
            arriving: Vec::new(),
            connections: HashMap::new(),
            waiting: VecDeque::new(),
            next_port: FIRST_PORT,
            starved: true,
            was_restored: false,
        }
    }

    fn say(&mut self, (host_port, guest_port): Ends, operation: u16, flags: u32) {
        let (buffer, forwarded) = match self.connections.get_mut(&(host_port, guest_port)) {
            Some(c) => {
                c.told = c.forwarded;
                (BUFFER, c.forwarded)
            }
            None => (0, 0),
        };
        self.waiting.push_back(Packet {
            host_port,
            guest_port,
            len: 0,
            operation,
            flags,
            buffer,
            forwarded,
        });
    }

    fn drop_connection(&mut self, ends: Ends) {
        self.connections.remove(&ends);
        self.say(ends, RST, 0);
    }

    /// A packet from the guest.
    fn take(&mut self, chain: &mut Chain<'_>) {
        let Some(header) = chain.read_array::<HEADER>() else {
            return;
        };
        let Some(packet) = parse(&header, self.cid) else {
            return;
        };
        let ends = (packet.host_port, packet.guest_port);
        if packet.operation == REQUEST {
            self.connect(ends, packet);
            return;
        }
        let Some(connection) = self.connections.get_mut(&ends) else {
            if packet.operation != RST {
                self.say(ends, RST, 0);
            }
            return;
        };
        connection.guest_buffer = packet.buffer;
        connection.guest_forwarded = packet.forwarded;
        match packet.operation {
            RESPONSE if !connection.open => {
                connection.open = true;
                connection
                    .to_host
                    .extend(format!("OK {}\n", ends.0).bytes());
                // The line is not the guest's, and so does not count as forwarded.
                let line = u32::try_from(connection.to_host.len()).unwrap_or(0);
                connection.forwarded = connection.forwarded.wrapping_sub(line);
                connection.told = connection.forwarded;
            }
            RW if connection.open && !connection.guest_done => {
                let len = packet.len as usize;
                let room =
                    (BUFFER as usize + LONGEST_LINE).saturating_sub(connection.to_host.len());
                if len > chain.to_read() || len > room {
                    self.drop_connection(ends);
                    return;
                }
                let mut bytes = vec![0; len];
                chain.read(&mut bytes);
                connection.to_host.extend(bytes);
            }
            SHUTDOWN => {
                connection.guest_done |= packet.flags & NO_SEND != 0;
                if packet.flags & NO_RECEIVE != 0 && connection.host == Host::Sends {
                    connection.host = Host::Receives;
                }
            }
            CREDIT_UPDATE => {}
            CREDIT_REQUEST => self.say(ends, CREDIT_UPDATE, 0),
            RST => {
                self.connections.remove(&ends);
            }
            _ => self.drop_connection(ends),
        }
    }

    /// The guest wants to reach a program of the host.
    fn connect(&mut self, ends: Ends, packet: Packet) {
        let full = self.connections.len() >= MOST_CONNECTIONS;
        if full || self.connections.contains_key(&ends) {
            self.drop_connection(ends);
            return;
        }
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ends.0));
        match connect_to(&path.into()).and_then(|stream| Connection::new(stream, true)) {
            Ok(mut connection) => {
                connection.guest_buffer = packet.buffer;
                connection.guest_forwarded = packet.forwarded;
                self.connections.insert(ends, connection);
                self.say(ends, RESPONSE, 0);
            }
            Err(_) => self.say(ends, RST, 0),
        }
    }

    /// Programs of the host that connect, and say to which port.
    fn welcome(&mut self) {
        while self.arriving.len() + self.connections.len() < MOST_CONNECTIONS {
            let Ok((stream, _)) = self.listener.accept() else {
                break;
            };
            let fd = stream.as_fd().try_clone_to_owned();
            if let (Ok(fd), Ok(())) = (fd, stream.set_nonblocking(true)) {
                self.arriving.push((stream, Arc::new(fd), Vec::new()));
            }
        }
        for (mut stream, fd, mut line) in std::mem::take(&mut self.arriving) {
            let mut byte = [0];
            let told = loop {
                match stream.read(&mut byte) {
                    Ok(1) if byte[0] == b'\n' => break Some(true),
                    Ok(1) if line.len() < LONGEST_LINE => line.push(byte[0]),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break None,
                    _ => break Some(false),
                }
            };
            let port = || -> Option<u32> {
                let text = std::str::from_utf8(&line).ok()?;
                text.strip_prefix("CONNECT ")?.trim().parse().ok()
            };
            match (told, port()) {
                (None, _) => self.arriving.push((stream, fd, line)),
                (Some(true), Some(port)) => {
                    let ends = (self.next_port, port);
                    self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
                    if let Ok(connection) = Connection::new(stream, false) {
                        self.connections.insert(ends, connection);
                        self.say(ends, REQUEST, 0);
                    }
                }
                // Whoever speaks otherwise is hung up on.
                (Some(_), _) => {}
            }
        }
    }

    /// Passes on to the host what the guest has sent, and ends what is over.
    fn flush(&mut self) {
        let all: Vec<Ends> = self.connections.keys().copied().collect();
        for ends in all {
            let Some(connection) = self.connections.get_mut(&ends) else {
                continue;
            };
            if !connection.flush() {
                self.drop_connection(ends);
                continue;
            }
            if connection.guest_done && connection.to_host.is_empty() {
                if connection.host != Host::Sends {
                    self.drop_connection(ends);
                    continue;
                }
                // The host may have gone already.
                let _ = connection.stream.shutdown(Shutdown::Write);
            }
            // Until then the guest may go on sending, as after shutdown(2) of one direction.
            if connection.host == Host::Receives && connection.is_hung_up() {
                connection.host = Host::Gone;
                self.say(ends, SHUTDOWN, NO_RECEIVE | NO_SEND);
                continue;
            }
            if connection.forwarded.wrapping_sub(connection.told) > BUFFER / 2 {
                self.say(ends, CREDIT_UPDATE, 0);
            }
        }
    }

    /// Gives the guest what waits for it, and what the host has sent.
    fn give(&mut self, ring: &mut Ring) {
        let mut buffer = vec![0; BUFFER as usize];
        while let Some(packet) = self.waiting.front().copied() {
            let cid = self.cid;
            if !ring.one(|chain| {
                chain.write(&header(packet, cid));
            }) {
                break;
            }
            self.waiting.pop_front();
        }
        let all: Vec<Ends> = self.connections.keys().copied().collect();
        for ends in all {
            let Some(connection) = self.connections.get_mut(&ends) else {
                continue;
            };
            let credit = connection.credit() as usize;
            if !connection.open
                || connection.host != Host::Sends
                || credit == 0
                || !ring.has_chain()
            {
                continue;
            }
            let cid = self.cid;
            let mut over = None;
            ring.one(|chain| {
                let room = chain.room().saturating_sub(HEADER);
                let len = room.min(credit).min(buffer.len());
                let got = match connection.stream.read(&mut buffer[..len]) {
                    Ok(0) if len > 0 => {
                        over = Some(true);
                        0
                    }
                    Ok(n) => n,
                    Err(e) => {
                        let again = matches!(
                            e.kind(),
                            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                        );
                        over = (!again).then_some(false);
                        0
                    }
                };
                // A chain that was taken is used: without data, for the news of our buffer.
                let operation = if got > 0 { RW } else { CREDIT_UPDATE };
                let len = u32::try_from(got).unwrap_or(0);
                connection.sent = connection.sent.wrapping_add(len);
                connection.told = connection.forwarded;
                let packet = Packet {
                    host_port: ends.0,
                    guest_port: ends.1,
                    len,
                    operation,
                    flags: 0,
                    buffer: BUFFER,
                    forwarded: connection.forwarded,
                };
                chain.write(&header(packet, cid));
                chain.write(&buffer[..got]);
            });
            match over {
                Some(true) => {
                    let (host, flags) = if connection.is_hung_up() {
                        (Host::Gone, NO_RECEIVE | NO_SEND)
                    } else {
                        (Host::Receives, NO_SEND)
                    };
                    connection.host = host;
                    self.say(ends, SHUTDOWN, flags);
                }
                Some(false) => self.drop_connection(ends),
                None => {}
            }
        }
        self.starved = !ring.has_chain();
    }
}

/// Connects to a Unix socket without waiting.
fn connect_to(path: &PathBuf) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Reads a header from the guest; `None` for one that is not for the host.
fn parse(header: &[u8; HEADER], cid: u32) -> Option<Packet> {
    let u32_at = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    if u64_at(0) != u64::from(cid) || u64_at(8) != HOST || u16_at(28) != STREAM {
        return None;
    }
    Some(Packet {
        guest_port: u32_at(16),
        host_port: u32_at(20),
        len: u32_at(24),
        operation: u16_at(30),
        flags: u32_at(32),
        buffer: u32_at(36),
        forwarded: u32_at(40),
    })
}

fn header(packet: Packet, cid: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, &HOST.to_le_bytes());
    put(8, &u64::from(cid).to_le_bytes());
    put(16, &packet.host_port.to_le_bytes());
    put(20, &packet.guest_port.to_le_bytes());
    put(24, &packet.len.to_le_bytes());
    put(28, &STREAM.to_le_bytes());
    put(30, &packet.operation.to_le_bytes());
    put(32, &packet.flags.to_le_bytes());
    put(36, &packet.buffer.to_le_bytes());
    put(40, &packet.forwarded.to_le_bytes());
    bytes
}

impl Device for Vsock {
    fn id(&self) -> u32 {
        19
    }

    fn queues(&self) -> &'static [u16] {
        &[128, 128, 16]
    }

    fn config(&self) -> Vec<u8> {
        u64::from(self.cid).to_le_bytes().to_vec()
    }

    fn process(&mut self, rings: &mut [Ring]) -> Next {
        if self.was_restored {
            // The event "transport reset" is number 0.
            self.was_restored = !rings[EVENT].one(|chain| {
                chain.write(&0u32.to_le_bytes());
            });
        }
        let more = rings[TX].each(|chain| {
            if self.waiting.len() >= MOST_WAITING {
                return ControlFlow::Break(());
            }
            self.take(chain);
            ControlFlow::Continue(())
        });
        self.welcome();
        self.flush();
        self.give(&mut rings[RX]);
        if more { Next::More } else { Next::Wait }
    }

    fn sources(&self) -> Vec<Source> {
        let room = self.arriving.len() + self.connections.len() < MOST_CONNECTIONS;
        let listener = self.listener_fd.as_ref().filter(|_| room);
        let mut sources: Vec<Source> = listener
            .into_iter()
            .chain(self.arriving.iter().map(|(_, fd, _)| fd))
            .map(Source::readable)
            .collect();
        for c in self.connections.values() {
            let mut events = PollFlags::empty();
            if c.open && c.host == Host::Sends && c.credit() > 0 && !self.starved {
                events |= PollFlags::IN;
            }
            if !c.to_host.is_empty() {
                events |= PollFlags::OUT;
            }
            // That a host is gone that has only stopped sending is told without being asked for.
            if !events.is_empty() || c.host == Host::Receives {
                sources.push(Source {
                    fd: c.fd.clone(),
                    events,
                });
            }
        }
        sources
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.waiting.clear();
        self.starved = true;
    }

    fn restore(&mut self, _state: &serde_json::Value, _features: u64) {
        self.was_restored = true;
    }

    fn calls(&self) -> &'static [i64] {
        &[
            call::SOCKET,
            call::CONNECT,
            call::ACCEPT4,
            call::RECVFROM,
            call::SHUTDOWN,
            call::IOCTL,
        ]
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::json!({ "kind": "vsock", "connections": self.connections.len() })
    }
}
