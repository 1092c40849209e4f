//! A distribution's own kernels, under a KVM that can run them at speed: in the lab.

mod common;

use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::linux::{boot, initrd, kernel};
use common::{Running, Scratch};

#[test]
#[ignore = "needs lab"]
fn stock_kernels_boot_and_keep_what_they_write() {
    for (ending, cpus) in [
        ("-cloud-amd64", "1"),
        ("-cloud-amd64", "2"),
        ("-amd64", "4"),
    ] {
        let dir = Scratch::new();
        let (kernel, disk) = (kernel(ending), disk(&dir));
        let initrd = initrd(&dir, &kernel);
        let with = format!("{disk},serial=a-serial");
        // The second time in the jail, and what was written the first time is there.
        for jail in [false, true] {
            let mut options = vec!["--cpus", cpus, "--disk", &with];
            options.push(if jail { "--jail" } else { "--no-jail" });
            let ran = boot(&kernel, &initrd, "disk", &options);
            assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{}", ran.out);
            for line in [&format!("cpus={cpus}"), "serial=a-serial", "16"] {
                assert!(
                    ran.out.lines().any(|l| l.trim() == line),
                    "{line}: {}",
                    ran.out
                );
            }
            assert_eq!(ran.out.contains("data: OK"), jail, "{}", ran.out);
        }
    }
}

#[test]
#[ignore = "needs lab"]
fn panic_and_restart_have_statuses_of_their_own() {
    let dir = Scratch::new();
    let kernel = kernel("-cloud-amd64");
    let initrd = initrd(&dir, &kernel);
    for (test, status) in [("panic", 14), ("reboot", 12)] {
        let ran = boot(&kernel, &initrd, test, &["--cpus", "2"]);
        assert_eq!(ran.status, status, "{test}: {} {}", ran.err, ran.out);
    }
}

/// The file of a disk with an empty filesystem.
fn disk(dir: &Scratch) -> String {
    let disk = dir.path("disk");
    File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", &disk]).status();
    assert!(made.unwrap().success());
    disk
}

/// The counts of whole lines.
fn ticks(out: &str) -> Vec<u64> {
    let whole = out.split_inclusive('\n').filter(|l| l.ends_with('\n'));
    let counts = whole.filter_map(|l| l.strip_prefix("tick "));
    counts.filter_map(|n| n.trim().parse().ok()).collect()
}

#[test]
#[ignore = "needs lab"]
fn a_running_machine_is_saved_and_goes_on_twice() {
    let dir = Scratch::new();
    // The one for clouds does not know the generation counter.
    let kernel = kernel("-amd64");
    let initrd = initrd(&dir, &kernel);
    let store = dir.path("store");
    fs::create_dir(&store).unwrap();
    let saved = format!("{store}/saved");
    let mut args = vec![
        "boot", "--kernel", &kernel, "--initrd", &initrd, "--memory", "128",
    ];
    args.extend([
        "--cmdline",
        "console=ttyS0 quiet test=count",
        "--snapshots",
        &store,
    ]);
    let mut machine = Running::start(&dir, "count", &args);
    machine.wait_for(|out| ticks(out).len() >= 3);
    machine.save("saved");
    let last = *ticks(&machine.out()).last().unwrap();
    // It goes on, and ends when it is told to.
    machine.wait_for(|out| ticks(out).last().unwrap() > &(last + 1));
    assert!(!machine.out().contains("forks=1"), "{}", machine.out());
    machine.shut_down();
    // From the same moment, as often as one likes; but the guest knows how late it is.
    std::thread::sleep(Duration::from_secs(5));
    for name in ["first", "second"] {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let mut machine = Running::start(&dir, name, &["restore", &saved]);
        machine.wait_for(|out| ticks(out).len() >= 3);
        let out = machine.out();
        machine.shut_down();
        let first = ticks(&out)[0];
        assert!((last..=last + 1).contains(&first), "{first} after {last}");
        // The last line may not be whole yet.
        let (lines, _) = out.rsplit_once('\n').unwrap();
        let time = lines.lines().rev().find_map(|l| l.strip_prefix("time="));
        let time: u64 = time.expect("it tells the time").trim().parse().unwrap();
        assert!(time + 2 >= now.as_secs(), "{time} at {now:?}");
        // And that its random numbers are to be new ones.
        assert!(lines.contains("forks=1"), "{lines}");
    }
}

/// How often; a hundred times with `PROPTEST_CASES=100`.
fn rounds() -> usize {
    let cases = std::env::var("PROPTEST_CASES").ok();
    cases.and_then(|n| n.parse().ok()).unwrap_or(4)
}

#[test]
#[ignore = "needs lab"]
fn a_busy_machine_goes_on_after_every_snapshot() {
    let dir = Scratch::new();
    let kernel = kernel("-cloud-amd64");
    let initrd = initrd(&dir, &kernel);
    let (disk, store) = (disk(&dir), dir.path("store"));
    fs::create_dir(&store).unwrap();
    let saved = format!("{store}/saved");
    let mut args = vec![
        "boot", "--kernel", &kernel, "--initrd", &initrd, "--memory", "128", "--disk", &disk,
    ];
    args.extend(["--cmdline", "console=ttyS0 loglevel=1 test=load"]);
    args.extend(["--log-changes", "--snapshots", &store]);
    let mut machine = Running::start(&dir, "0", &args);
    let mut said = String::new();
    for round in 1..=rounds() {
        machine.wait_for(|out| ticks(out).len() >= 2);
        // The disk is to stay as it was.
        assert_eq!(machine.ask("PUT /pause", "").0, 200);
        machine.save("saved");
        said += &machine.out();
        machine.shut_down();
        let args = ["restore", &saved, "--snapshots", &store];
        machine = Running::start(&dir, &round.to_string(), &args);
    }
    machine.wait_for(|out| ticks(out).len() >= 2);
    said += &machine.out();
    assert!(!said.contains("damaged"), "{said}");
    for pair in ticks(&said).windows(2) {
        assert_eq!(pair[1], pair[0] + 1, "{said}");
    }
}

#[test]
#[ignore = "needs lab"]
fn memtest_speaks_on_the_serial_port() {
    let dir = Scratch::new();
    let mut args = vec![
        "boot",
        "--kernel",
        "/boot/memtest86+x64.bin",
        "--memory",
        "32",
    ];
    args.extend(["--cmdline", "console=ttyS0,115200"]);
    let mut machine = Running::start(&dir, "memtest", &args);
    machine.wait_for(|out| out.contains("Memtest86+") && out.contains("Pass"));
    machine.shut_down();
}

#[test]
#[ignore = "needs lab"]
fn an_unpacked_kernel_boots_by_its_own_protocol_and_by_pvh() {
    let dir = Scratch::new();
    // The one for clouds is not packed with xz.
    let kernel = kernel("-amd64");
    let image = fs::read(&kernel).unwrap();
    // The header says where in the protected-mode part the compressed kernel is.
    let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
    let start = (usize::from(image[0x1f1]) + 1) * 512 + number(0x248);
    let packed = dir.file("vmlinux.xz", &image[start..start + number(0x24c)]);
    let unpacked = Command::new("xz")
        .args(["-d", "-c", "--single-stream", &packed])
        .output()
        .unwrap();
    let vmlinux = dir.file("vmlinux", &unpacked.stdout);
    let initrd = initrd(&dir, &kernel);
    for mode in ["auto", "linux"] {
        let ran = boot(&vmlinux, &initrd, "nothing", &["--mode", mode]);
        assert_eq!(ran.status, 0, "{mode}: {} {}", ran.err, ran.out);
        assert!(ran.out.contains("cpus=1"), "{}", ran.out);
    }
}
