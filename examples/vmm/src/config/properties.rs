//! Machines of all kinds, and options with anything in them.

use super::*;
use proptest::option;
use proptest::prelude::*;

fn rate() -> impl Strategy<Value = Rate> {
    (option::of(any::<u64>()), option::of(any::<u64>())).prop_map(|(bytes, operations)| Rate {
        bytes_per_second: bytes,
        operations_per_second: operations,
    })
}

fn disk() -> impl Strategy<Value = Disk> {
    let serial = option::of("[a-z0-9]{0,22}");
    ("[a-z/.]{1,9}", any::<bool>(), serial, rate()).prop_map(|(path, read_only, serial, rate)| {
        Disk {
            path: path.into(),
            read_only,
            serial,
            rate,
        }
    })
}

fn network() -> impl Strategy<Value = Network> {
    let mac = option::of(any::<[u8; 6]>().prop_map(|mut mac| {
        mac[0] &= !1;
        Mac(mac)
    }));
    (
        "[a-z/]{0,17}",
        mac,
        option::of(any::<u16>()),
        rate(),
        rate(),
    )
        .prop_map(|(tap, mac, mtu, receive, send)| Network {
            tap,
            mac,
            mtu,
            receive,
            send,
        })
}

fn vsock() -> impl Strategy<Value = Option<Vsock>> {
    let vsock = (any::<u32>(), "[a-z/]{1,9}").prop_map(|(cid, socket)| Vsock {
        cid,
        socket: socket.into(),
    });
    option::of(vsock)
}

fn machine() -> impl Strategy<Value = Machine> {
    let mode = prop::sample::select(<Mode as clap::ValueEnum>::value_variants());
    let disks = prop::collection::vec(disk(), 0..12);
    let networks = prop::collection::vec(network(), 0..8);
    (
        ("[a-z/]{0,9}", mode, option::of("[a-z]{1,9}"), ".{0,20}"),
        (0u64..1 << 21, any::<u8>(), disks, networks, vsock()),
        (option::of("[a-z]{1,9}"), any::<[bool; 3]>()),
    )
        .prop_map(|(boot, parts, (console, yes))| Machine {
            kernel: boot.0.into(),
            mode: boot.1,
            initrd: boot.2.map(PathBuf::from),
            command_line: boot.3,
            memory_mib: parts.0,
            cpus: parts.1,
            disks: parts.2,
            networks: parts.3,
            vsock: parts.4,
            console: console.map(PathBuf::from),
            entropy: yes[0],
            balloon: yes[1],
            log_changes: yes[2],
        })
}

proptest! {
    /// What `config` prints is the same machine; and a machine that is accepted has room for its
    /// tables, a line for each device, and memory that is all told of and nowhere twice.
    #[test]
    fn a_machine_is_what_its_file_says(machine in machine()) {
        let text = serde_json::to_string(&machine).unwrap();
        let again = Machine::parse(&text);
        prop_assert_eq!(again.as_ref(), Ok(&machine));
        if let Err(e) = machine.check() {
            prop_assert_eq!(e.status(), 2);
            return Ok(());
        }
        prop_assert!(machine.devices() <= VIRTIO_LINES.len());
        let devices = u32::try_from(machine.devices()).unwrap();
        let tables = crate::acpi::Tables::new(machine.cpus, devices);
        for (at, table) in &tables.placed {
            prop_assert!(at + table.len() as u64 <= crate::acpi::GENERATION);
        }
        let regions = crate::layout::regions(machine.memory_mib << 20, true);
        let sum: u64 = regions.iter().map(kvm_vcpu::Region::len).sum();
        prop_assert_eq!(sum, machine.memory_mib << 20);
        let map = crate::layout::map(machine.memory_mib << 20);
        for pair in map.windows(2) {
            prop_assert!(pair[0].0.end <= pair[1].0.start);
        }
    }

    /// Whatever an option says, it is understood or refused with a reason.
    #[test]
    fn options_are_understood_or_refused(text in "(tap=|mac=|mtu=|serial=|bps=|iops=|pps=|ro|[0-9:,=/a-f]){0,9}") {
        for refused in [
            text.parse::<Disk>().err(),
            text.parse::<Network>().err(),
            text.parse::<Vsock>().err(),
            text.parse::<Mac>().err(),
        ] {
            prop_assert!(refused.is_none_or(|reason| !reason.is_empty()));
        }
    }
}
