//! The child allocates nothing between `clone` and `execve`.

mod common;

use std::alloc::System;
use std::fs::File;
use std::os::unix::fs::FileExt;

use common::{Rootfs, container};
use namespaces::{
    Barrier, Capabilities, Device, DeviceKind, IoPriority, Limit, Mount, MountAttributes,
    Namespace, Resource, Scheduler, Starting, TerminalSize, TimeOffset,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The counters of the allocator in the memory of the process, which is a copy of ours.
fn counters(starting: &Starting) -> Vec<u8> {
    let memory = File::open(format!("/proc/{}/mem", starting.pid())).expect("open its memory");
    let mut bytes = vec![0; size_of_val(&INSTRUMENTED_SYSTEM)];
    let address = (&raw const INSTRUMENTED_SYSTEM).addr();
    memory
        .read_exact_at(&mut bytes, address.try_into().expect("an address"))
        .expect("read its memory");
    bytes
}

#[test]
#[ignore = "needs root"]
fn the_child_allocates_nothing() {
    // The counters do count.
    let before = ALLOCATOR.stats();
    let outside = tempfile::tempdir().expect("a directory");
    assert_ne!(before, ALLOCATOR.stats());

    let rootfs = Rootfs::new();
    let mut command = container(&rootfs, "true");
    let zero = TimeOffset::default();
    command
        .unshare(Namespace::ALL)
        .time_offsets(zero, zero)
        .hostname("host")
        .domainname("domain")
        .loopback_up(true)
        .mounts(Mount::standard())
        .mount(Mount::bind(outside.path(), "/made/on/the/way").read_only())
        .mount(Mount::tmpfs("/bin").copy_up(true))
        .link("/new/link", "to")
        .mount(Mount::tmpfs("/run").with(MountAttributes::NO_ATIME))
        .devices([Device::new("/dev/null", DeviceKind::Character, 1, 3)])
        .devices([Device::new("/fifo", DeviceKind::Fifo, 0, 0)])
        .masked_paths(["/proc/kcore", "/etc"])
        .read_only_paths(["/proc/sys"])
        .root_read_only(true)
        .sysctl("net.ipv4.ip_forward", "1")
        .rlimit(
            Resource::Core,
            Limit {
                soft: Some(0),
                hard: Some(0),
            },
        )
        .scheduler(Scheduler::Batch)
        .io_priority(IoPriority::Idle)
        .cpu_affinity([0])
        .session_keyring("cofferdam-allocation")
        .terminal(TerminalSize {
            rows: 1,
            columns: 1,
        })
        .capabilities(Capabilities::container_default())
        .no_new_privs(true)
        .die_with_parent(true)
        .create_current_dir(true)
        .current_dir("/run");
    let devices = |command: &mut namespaces::Command| {
        let mut starting = command.start().expect("start");
        let before = counters(&starting);
        starting.advance(Barrier::Mounted).expect("advance");
        assert_eq!(counters(&starting), before, "while mounting");
        starting.advance(Barrier::Ready).expect("advance");
        assert_eq!(counters(&starting), before, "after mounting");
        let status = starting.exec().expect("exec").wait().expect("wait");
        assert!(status.success());
    };
    devices(&mut command);
    // Joining and cloning again.
    let mut first = container(&rootfs, "cat");
    let first = first
        .stdin(namespaces::Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut command = namespaces::Command::new("/bin/true");
    for kind in Namespace::ALL {
        command.join(kind, &first);
    }
    devices(&mut command);
}
