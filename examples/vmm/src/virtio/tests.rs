//! Devices, driven as a driver should, and with malice.

use super::mock::{BUFFERS, MEMORY, Mock};
use super::transport::Transport;
use crate::virtio::Next;
use crate::virtio::balloon::Balloon;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::entropy::Entropy;
use crate::virtio::net::Net;
use crate::virtio::rate::{Limiter, Rate};
use kvm_vcpu::{GuestMemory, Region};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

fn unlimited() -> Limiter {
    Limiter::new(Rate::default())
}

fn disk(read_only: bool) -> (Mock, File) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 8 * 512]).unwrap();
    let block = Block::new(
        file.try_clone().unwrap(),
        read_only,
        "a serial",
        unlimited(),
    );
    (Mock::new(block.unwrap()), file)
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

#[test]
fn a_disk_is_read_and_written() {
    let (mut mock, mut file) = disk(false);
    assert_eq!(mock.get(0x100), 8);
    let data: Vec<u8> = (0..=255u8).cycle().step_by(3).take(1024).collect();
    // In pieces that are no sectors.
    let written = mock.request(0, &[&header(1, 2), &data[..100], &data[100..]], &[1]);
    assert_eq!(written, Some(vec![0]));
    let read = mock.request(0, &[&header(0, 1)], &[600, 936, 1]).unwrap();
    assert_eq!(read[..512], [7; 512]);
    assert_eq!(read[512..1536], data);
    assert_eq!(read[1536], 0);
    let mut all = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut all).unwrap();
    assert_eq!(all[1024..2048], data);
    assert_eq!(mock.request(0, &[&header(4, 0)], &[1]), Some(vec![0]));
    let id = mock.request(0, &[&header(8, 0)], &[20, 1]).unwrap();
    assert_eq!(&id[..9], b"a serial\0");
    // Past the end, over the end, half a sector, an unknown request.
    for (kind, sector, len) in [(0, 8, 512), (0, 7, 1024), (0, 0, 100), (0, u64::MAX, 512)] {
        let answer = mock
            .request(0, &[&header(kind, sector)], &[len, 1])
            .unwrap();
        assert_eq!(answer.last(), Some(&1), "{kind} {sector} {len}");
    }
    assert_eq!(mock.request(0, &[&header(99, 0)], &[1]), Some(vec![2]));
    // Sectors 0 and 1 become zeros.
    let range = [&0u64.to_le_bytes()[..], &2u32.to_le_bytes(), &[0; 4]].concat();
    assert_eq!(
        mock.request(0, &[&header(13, 0), &range], &[1]),
        Some(vec![0])
    );
    let read = mock.request(0, &[&header(0, 0)], &[1024, 1]).unwrap();
    assert_eq!(read, vec![0; 1025]);
    // The guest is told by an interrupt.
    assert_eq!(mock.get(0x60), 1);
    mock.set(0x64, 1);
    assert_eq!(mock.get(0x60), 0);
}

#[test]
fn what_is_discarded_is_given_back() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![7; 64 << 10]).unwrap();
    let block = Block::new(file.try_clone().unwrap(), false, "", unlimited());
    let mut mock = Mock::new(block.unwrap());
    let range = |sector: u64, sectors: u32, flags: u32| {
        let numbers = [sectors.to_le_bytes(), flags.to_le_bytes()].concat();
        [&sector.to_le_bytes()[..], &numbers].concat()
    };
    let mut discard = |ranges: &[u8]| mock.request(0, &[&header(11, 0), ranges], &[1]).unwrap();
    let before = file.metadata().unwrap().blocks();
    assert_eq!(discard(&[range(0, 64, 0), range(120, 8, 0)].concat()), [0]);
    assert!(file.metadata().unwrap().blocks() < before);
    let mut all = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut all).unwrap();
    let expected = [vec![0; 32 << 10], vec![7; 28 << 10], vec![0; 4 << 10]].concat();
    assert!(all == expected, "and nothing else changed");
    // Over the end, unknown flags, too many ranges, half a range, none.
    let many = range(0, 1, 0).repeat(17);
    for bad in [range(127, 2, 0), range(0, 1, 2), many, vec![0; 8], vec![]] {
        assert_eq!(discard(&bad), [1], "{bad:?}");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (mut mock, _file) = disk(true);
    assert_eq!(
        mock.request(0, &[&header(1, 0), &[1; 512]], &[1]),
        Some(vec![1])
    );
    let read = mock.request(0, &[&header(0, 0)], &[512, 1]).unwrap();
    assert_eq!(read[..512], [7; 512]);
}

#[test]
fn entropy_fills_what_it_is_given() {
    let mut mock = Mock::new(Entropy::new(unlimited()));
    let bytes = mock.request(0, &[], &[64, 64]).unwrap();
    assert!(bytes[..64].iter().any(|b| *b != 0) && bytes[64..].iter().any(|b| *b != 0));
}

#[test]
fn a_limited_device_waits() {
    let rate = Rate {
        bytes_per_second: Some(64),
        operations_per_second: None,
    };
    let mut mock = Mock::new(Entropy::new(Limiter::new(rate)));
    assert!(mock.request(0, &[], &[6400]).is_some());
    assert_eq!(mock.request(0, &[], &[64]), None);
}

#[test]
fn limited_disks_and_networks_go_on_after_a_while() {
    let one = || {
        Limiter::new(Rate {
            bytes_per_second: None,
            operations_per_second: Some(1),
        })
    };
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[7; 512]).unwrap();
    let mut disk = Mock::new(Block::new(file, false, "", one()).unwrap());
    let (tap, net) = network((one(), one()));
    let mut network = Mock::new(net);
    for _ in 0..4 {
        rustix::io::write(&tap, b"\0\0\0\0\0\0\0\0\0\0an answer").unwrap();
    }
    // A second's worth and one more are let through.
    let limit = |request: &mut dyn FnMut() -> Option<Vec<u8>>| {
        let passed = (0..4).take_while(|_| request().is_some()).count();
        assert!((1..=2).contains(&passed), "{passed}");
        passed
    };
    let reads = limit(&mut || disk.request(0, &[&header(0, 0)], &[512, 1]));
    let sent = limit(&mut || network.request(1, &[&[0; 12], b"a packet"], &[]));
    let received = limit(&mut || network.request(0, &[], &[2048]));
    for mock in [&mut disk, &mut network] {
        let Next::After(time) = mock.transport.process() else {
            panic!("it does not wait");
        };
        assert!(time <= Duration::from_secs(1), "{time:?}");
    }
    std::thread::sleep(Duration::from_millis(1001));
    for (mock, counts) in [
        (&mut disk, &[("reads", reads)][..]),
        (&mut network, &[("sent", sent), ("received", received)]),
    ] {
        assert_eq!(mock.transport.process(), Next::Wait);
        for (what, before) in counts {
            assert_eq!(mock.transport.device.metrics()[what], before + 1, "{what}");
        }
    }
}

#[test]
fn a_console_passes_bytes_both_ways() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let mut out = tempfile::tempfile().unwrap();
    let console = Console::new(Some(reader.into()), out.try_clone().unwrap());
    let mut mock = Mock::new(console.unwrap());
    assert_eq!(mock.request(1, &[b"hel", b"lo"], &[]), Some(vec![]));
    let mut text = String::new();
    out.rewind().unwrap();
    out.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    writer.write_all(b"keys").unwrap();
    assert_eq!(&mock.request(0, &[], &[16]).unwrap()[..4], b"keys");
}

/// A network card, and what stands in for its tap interface.
fn network(limits: (Limiter, Limiter)) -> (OwnedFd, Net) {
    let (ours, theirs) = rustix::net::socketpair(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::NONBLOCK,
        None,
    )
    .unwrap();
    let net = Net::new(theirs, [2, 0, 0, 0, 0, 1], Some(1500), limits);
    (ours, net)
}

#[test]
fn a_network_card_passes_packets() {
    let (ours, net) = network((unlimited(), unlimited()));
    let mut mock = Mock::new(net);
    assert_eq!(mock.get(0x100), 2);
    mock.request(1, &[&[0; 12], b"a packet"], &[]).unwrap();
    let mut bytes = [0; 64];
    let n = rustix::io::read(&ours, &mut bytes).unwrap();
    assert_eq!(&bytes[..n], b"\0\0\0\0\0\0\0\0\0\0a packet");
    rustix::io::write(&ours, b"\0\0\0\0\0\0\0\0\0\0an answer").unwrap();
    let got = mock.request(0, &[], &[2048]).unwrap();
    assert_eq!(&got[..21], b"\0\0\0\0\0\0\0\0\0\0\x01\0an answer");
}

#[test]
fn a_packet_is_spread_over_as_many_buffers_as_it_needs() {
    const WRITE: u16 = 2;
    let (tap, net) = network((unlimited(), unlimited()));
    // With EVENT_IDX, by which the driver says when it wants to be told.
    let mut mock = Mock::with_features(net, u64::MAX);
    let packet: Vec<u8> = (0..=255).cycle().take(1514).collect();
    let offer = |mock: &mut Mock, index: u16| {
        let at = BUFFERS + 0x1000 * u64::from(index);
        mock.descriptor(0, index, (at, 700, WRITE, 0));
        mock.offer(0, index);
    };
    let receive = |mock: &mut Mock, buffers: [u32; 3]| {
        rustix::io::write(&tap, &[&[0; 10], &packet[..]].concat()).unwrap();
        mock.transport.process();
        let mut got = Vec::new();
        for (head, len) in mock.used(0) {
            let at = got.len();
            got.resize(at + len as usize, 0);
            let from = BUFFERS + 0x1000 * u64::from(head);
            mock.memory.read(from, &mut got[at..]).unwrap();
            assert_eq!(head, buffers[at / 700]);
        }
        got
    };
    let whole = [&[0; 10], &[3, 0][..], &packet].concat();
    (0..4).for_each(|index| offer(&mut mock, index));
    assert_eq!(receive(&mut mock, [0, 1, 2]), whole);
    assert!(mock.transport.interrupt.take());
    // One buffer is left; the packet waits for two more.
    assert!(receive(&mut mock, [0; 3]).is_empty());
    assert!(!mock.transport.interrupt.take());
    (4..6).for_each(|index| offer(&mut mock, index));
    assert_eq!(receive(&mut mock, [3, 4, 5]), whole);
}

#[test]
fn a_balloon_frees_pages_and_asks_for_them() {
    let memory = GuestMemory::new(&[Region::anonymous(0, MEMORY)]).unwrap();
    memory.fill(0x8_0000, 0x4000, 1).unwrap();
    let mut mock = Mock::new(Balloon::new(memory.clone()));
    let before = memory.resident().unwrap();
    let pages = [0x80u32, 0x81, 0xffff_ffff].map(u32::to_le_bytes).concat();
    assert!(mock.request(0, &[&pages], &[]).is_some());
    assert_eq!(memory.resident().unwrap(), before - 0x2000);
    assert!(mock.transport.device.set_balloon(3));
    mock.transport.process();
    assert_eq!(mock.get(0x100), 3 * 256);
    assert_eq!(mock.get(0xfc), 1);
    assert_ne!(mock.get(0x60) & 2, 0);
}

#[test]
fn a_vsock_connects_both_ways() {
    use crate::virtio::vsock::Vsock;
    use std::net::Shutdown;
    use std::os::unix::net::{UnixListener, UnixStream};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let program = UnixListener::bind(dir.path().join("v_80")).unwrap();
    let mut mock = Mock::new(Vsock::new(3, path.clone(), listener));
    let packet = |host: u32, guest: u32, operation: u16, data: &[u8]| {
        let mut p = [&3u64.to_le_bytes()[..], &2u64.to_le_bytes()].concat();
        p.extend(
            [guest, host, u32::try_from(data.len()).unwrap()]
                .map(u32::to_le_bytes)
                .concat(),
        );
        p.extend([1u16, operation].map(u16::to_le_bytes).concat());
        // No flags, a buffer of 4 KiB, nothing forwarded.
        p.extend([0u32, 4096, 0].map(u32::to_le_bytes).concat());
        p.extend(data);
        p
    };
    let operation = |p: &[u8]| u16::from_le_bytes([p[30], p[31]]);
    // The guest asks for a port that a program listens on, sends, and is sent to.
    mock.request(1, &[&packet(80, 1000, 1, b"")], &[]).unwrap();
    let (mut theirs, _) = program.accept().unwrap();
    assert_eq!(operation(&mock.request(0, &[], &[512]).unwrap()), 2);
    mock.request(1, &[&packet(80, 1000, 5, b"ping")], &[])
        .unwrap();
    let mut four = [0; 4];
    theirs.read_exact(&mut four).unwrap();
    assert_eq!(&four, b"ping");
    theirs.write_all(b"pong").unwrap();
    let got = mock.request(0, &[], &[512]).unwrap();
    assert_eq!((operation(&got), &got[44..48]), (5, &b"pong"[..]));
    // Nobody listens there.
    mock.request(1, &[&packet(81, 1001, 1, b"")], &[]).unwrap();
    assert_eq!(operation(&mock.request(0, &[], &[512]).unwrap()), 3);
    // The program stops sending, and still receives; then it is gone.
    let shutdown = |mock: &mut Mock| {
        let mut got = mock.request(0, &[], &[512]).unwrap();
        while operation(&got) != 4 {
            got = mock.request(0, &[], &[512]).unwrap();
        }
        u32::from_le_bytes(got[32..36].try_into().unwrap())
    };
    theirs.shutdown(Shutdown::Write).unwrap();
    assert_eq!(shutdown(&mut mock), 2);
    mock.request(1, &[&packet(80, 1000, 5, b"more")], &[])
        .unwrap();
    theirs.read_exact(&mut four).unwrap();
    assert_eq!(&four, b"more");
    drop(theirs);
    mock.transport.process();
    assert_eq!(shutdown(&mut mock), 3);
    mock.request(1, &[&packet(80, 1000, 3, b"")], &[]).unwrap();
    while mock.request(0, &[], &[512]).is_some() {}
    // A program asks for a port of the guest.
    let mut ours = UnixStream::connect(&path).unwrap();
    ours.write_all(b"CONNECT 7\n").unwrap();
    mock.transport.process();
    mock.transport.process();
    let port = 1 << 30;
    mock.request(1, &[&packet(port, 7, 2, b"")], &[]).unwrap();
    let mut line = [0; 14];
    ours.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK 1073741824\n");
}

#[test]
fn a_device_is_saved_and_restored() {
    let (mut mock, file) = disk(false);
    assert!(mock.request(0, &[&header(4, 0)], &[1]).is_some());
    let saved = mock.transport.save();
    let text = serde_json::to_string(&saved).unwrap();
    let block = Block::new(file, false, "a serial", unlimited()).unwrap();
    let mut other = Transport::new(Box::new(block), mock.memory.clone()).unwrap();
    other
        .restore(&serde_json::from_str(&text).unwrap())
        .unwrap();
    assert_eq!(other.save(), saved);
    mock.transport = other;
    let read = mock.request(0, &[&header(0, 0)], &[512, 1]).unwrap();
    assert_eq!(read[..512], [7; 512]);
    let entropy = Box::new(Entropy::new(unlimited()));
    assert!(
        Transport::new(entropy, mock.memory.clone())
            .unwrap()
            .restore(&saved)
            .is_err()
    );
}

#[test]
fn a_restored_network_card_passes_packets_by_its_new_tap() {
    let (_gone, net) = network((unlimited(), unlimited()));
    let mut mock = Mock::new(net);
    mock.request(1, &[&[0; 12], b"before"], &[]).unwrap();
    let saved = mock.transport.save();
    let (tap, net) = network((unlimited(), unlimited()));
    mock.transport = Transport::new(Box::new(net), mock.memory.clone()).unwrap();
    mock.transport.restore(&saved).unwrap();
    // The driver is told of what it may have missed.
    assert!(mock.transport.interrupt.take());
    mock.request(1, &[&[0; 12], b"after"], &[]).unwrap();
    let mut bytes = [0; 64];
    let n = rustix::io::read(&tap, &mut bytes).unwrap();
    assert_eq!(&bytes[10..n], b"after");
    rustix::io::write(&tap, b"\0\0\0\0\0\0\0\0\0\0an answer").unwrap();
    let got = mock.request(0, &[], &[2048]).unwrap();
    assert_eq!(&got[12..21], b"an answer");
}

mod properties {
    use crate::virtio::mock::{KINDS, MEMORY, QUEUES, SIZE, Step, any_device};
    use proptest::prelude::*;

    fn step() -> impl Strategy<Value = Step> {
        let address = prop_oneof![
            0..MEMORY,
            Just(MEMORY - 1),
            Just(u64::MAX),
            QUEUES..QUEUES + 0x3000
        ];
        let len = prop_oneof![0u32..2048, Just(16), Just(u32::MAX), 0..0x10_0000u32];
        prop_oneof![
            (
                prop_oneof![(0u64..0x40).prop_map(|r| r * 4), 0u64..0x1000],
                prop::collection::vec(any::<u8>(), 1..9)
            )
                .prop_map(|(r, v)| Step::Register(r, v)),
            (0u64..0x1000, 1usize..9).prop_map(|(r, n)| Step::Read(r, n)),
            (0usize..3, 0u16..SIZE, address, len, 0u16..8, 0u16..SIZE + 2)
                .prop_map(|(q, i, a, l, f, n)| Step::Descriptor(q, i, (a, l, f, n))),
            (0usize..3, 0u16..SIZE + 1).prop_map(|(q, h)| Step::Offer(q, h)),
            (0usize..3, any::<u16>()).prop_map(|(q, i)| Step::Available(q, i)),
            (
                QUEUES..QUEUES + 0x3000,
                prop::collection::vec(any::<u8>(), 1..64)
            )
                .prop_map(|(a, b)| Step::Scribble(a, b)),
            Just(Step::Process),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_shrink_iters: 2000, ..ProptestConfig::with_cases(
            std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)) })]

        /// Whatever a driver does, no device panics or hangs, none holds more memory than it
        /// should, and what a device does ends.
        #[test]
        fn no_driver_can_harm_us(steps in prop::collection::vec(step(), 1..60)) {
            for mut mock in (0..KINDS).map(any_device) {
                for step in &steps {
                    mock.take(step.clone());
                }
                mock.check();
            }
        }
    }
}
