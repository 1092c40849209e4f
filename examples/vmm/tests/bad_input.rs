//! What a user gets wrong gives one line that says what to do.

mod common;

use common::{Running, Scratch, busy, counts, run};

#[track_caller]
fn refused(args: &[&str], status: i32, message: &str) {
    let ran = run(args);
    assert_eq!(ran.status, status, "{}", ran.err);
    assert_eq!(ran.err, format!("cofferdam-vmm: {message}\n"));
    assert_eq!(ran.out, "");
}

#[test]
fn a_missing_kernel() {
    refused(
        &["boot", "--kernel", "/nonexistent/guest"],
        6,
        "cannot read /nonexistent/guest: No such file or directory (os error 2); give the guest's file with --kernel",
    );
}

#[test]
fn a_directory_as_kernel() {
    refused(
        &["boot", "--kernel", "/"],
        6,
        "cannot read /: Is a directory (os error 21); give the guest's file with --kernel",
    );
}

#[test]
fn a_missing_snapshot() {
    refused(
        &["restore", "/nonexistent/saved"],
        6,
        "cannot read the snapshot /nonexistent/saved: No such file or directory (os error 2); give the directory that a snapshot was saved to",
    );
}

#[test]
fn a_missing_machine_file() {
    refused(
        &["boot", "--machine", "/nonexistent/machine"],
        2,
        "cannot read the machine file /nonexistent/machine: No such file or directory (os error 2); `cofferdam-vmm config` prints one to begin with",
    );
}

#[test]
fn a_real_mode_guest_as_elf() {
    let dir = Scratch::new();
    refused(
        &[
            "guest",
            "real",
            "--format",
            "elf",
            "--output",
            &dir.path("g"),
        ],
        2,
        "an ELF file cannot start in real mode: use --format flat, or leave --format away",
    );
}

#[test]
fn a_place_that_cannot_be_written() {
    refused(
        &["guest", "real", "--output", "/nonexistent/guest"],
        6,
        "cannot write /nonexistent/guest: No such file or directory (os error 2); choose a writable place",
    );
}

#[test]
fn wrong_options() {
    for args in [
        ["boot", "--kernel", "x", "--memory", "0"],
        ["boot", "--kernel", "x", "--timeout", "-1"],
        ["boot", "--kernel", "x", "--timeout", "nan"],
        ["boot", "--kernel", "x", "--mode", "fast"],
    ] {
        assert_eq!(run(&args).status, 2, "{args:?}");
    }
}

#[test]
#[ignore = "needs kvm"]
fn files_that_are_no_guests() {
    let dir = Scratch::new();
    let empty = dir.file("empty", b"");
    refused(
        &["boot", "--kernel", &empty],
        6,
        &format!(
            "cannot load {empty}: not a program that can be loaded: it is empty: give a flat binary or an ELF64 executable"
        ),
    );
    let cut = dir.file("cut", b"\x7fELF\x02\x01");
    refused(
        &["boot", "--kernel", &cut],
        6,
        &format!(
            "cannot load {cut}: not a program that can be loaded: it is cut short or damaged: a header points past its end; build or copy it again"
        ),
    );
    let mut linux = vec![0; 0x400];
    linux[0x202..0x206].copy_from_slice(b"HdrS");
    let linux = dir.file("vmlinuz", &linux);
    let ran = run(&["boot", "--kernel", &linux]);
    assert_eq!(ran.status, 6);
    assert!(
        ran.err.contains("its boot protocol is older"),
        "{}",
        ran.err
    );
}

#[test]
#[ignore = "needs kvm"]
fn a_guest_that_does_not_fit() {
    let dir = Scratch::new();
    let big = dir.file("big", &vec![0x90; 3 << 20]);
    refused(
        &["boot", "--kernel", &big, "--memory", "1"],
        6,
        &format!(
            "{big} is 3145728 bytes and the guest has 1 MiB of memory: give it more with --memory"
        ),
    );
    let endless = run(&["boot", "--kernel", "/dev/zero", "--memory", "1"]);
    assert_eq!(endless.status, 6, "{}", endless.err);
}

#[test]
#[ignore = "needs kvm"]
fn an_elf_file_in_real_mode() {
    let dir = Scratch::new();
    let guest = dir.path("guest");
    run(&["guest", "long", "--output", &guest]);
    refused(
        &["boot", "--kernel", &guest, "--mode", "real"],
        6,
        &format!(
            "{guest} is an ELF executable, which cannot start in real mode: use --mode long, --mode protected, or a flat binary"
        ),
    );
}

#[test]
#[ignore = "needs kvm"]
fn an_initial_ram_disk_that_does_not_fit() {
    let dir = Scratch::new();
    let kernel = busy(&dir);
    let initrd = dir.file("initrd", &vec![0; 5 << 20]);
    let args = [
        "boot", "--kernel", &kernel, "--memory", "4", "--initrd", &initrd,
    ];
    let ran = run(&args);
    assert_eq!(ran.status, 6);
    let says = format!("the initial RAM disk {initrd} has 5242880 bytes and there is room for");
    assert!(
        ran.err.contains(&says) && ran.err.contains("--memory"),
        "{}",
        ran.err
    );
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    let missing = run(&[
        "boot",
        "--kernel",
        &kernel,
        "--initrd",
        "/nonexistent/initrd",
    ]);
    assert_eq!(missing.status, 6);
    assert!(
        missing.err.contains("give its file with --initrd"),
        "{}",
        missing.err
    );
}

#[test]
#[ignore = "needs kvm"]
fn a_command_line_that_is_too_long() {
    let dir = Scratch::new();
    let kernel = busy(&dir);
    let line = "x".repeat(70_000);
    let args = ["boot", "--kernel", &kernel, "--cmdline", &line];
    let ran = run(&args);
    assert_eq!(ran.status, 2);
    assert!(
        ran.err.contains("has 70000 bytes") && ran.err.contains("shorten it"),
        "{}",
        ran.err
    );
}

#[test]
#[ignore = "needs kvm"]
fn a_disk_that_another_machine_has() {
    let dir = Scratch::new();
    let kernel = busy(&dir);
    let disk = dir.file("disk", &[0; 4096]);
    let mut machine = Running::start(
        &dir,
        "first",
        &["boot", "--kernel", &kernel, "--disk", &disk],
    );
    machine.wait_for(|out| !counts(out).is_empty());
    refused(
        &["boot", "--kernel", &kernel, "--disk", &disk],
        4,
        &format!(
            "the disk {disk} is in use by another machine: stop that, or give both the disk with ,ro"
        ),
    );
    machine.shut_down();
    // Once it has ended, the disk is free; and many may read one.
    let read_only = format!("{disk},ro");
    let args = ["boot", "--kernel", &kernel, "--disk", &read_only];
    let mut first = Running::start(&dir, "reader", &args);
    first.wait_for(|out| !counts(out).is_empty());
    let ran = run(&[
        "boot",
        "--kernel",
        &kernel,
        "--disk",
        &read_only,
        "--timeout",
        "0.2",
    ]);
    assert_eq!(ran.status, 10, "{}", ran.err);
    first.shut_down();
}

#[test]
#[ignore = "needs kvm"]
fn what_the_host_does_not_have() {
    let dir = Scratch::new();
    let kernel = busy(&dir);
    for (option, value, status, says) in [
        (
            "--net",
            "tap=cofferdamno0",
            4,
            "ip tuntap add cofferdamno0 mode tap",
        ),
        (
            "--disk",
            "/nonexistent/disk",
            6,
            "give a raw file or a block device",
        ),
        ("--vsock", "3:/nonexistent/v", 6, "choose another place"),
        ("--control", "/nonexistent/c", 6, "choose another place"),
        (
            "--snapshots",
            "/nonexistent/s",
            6,
            "choose a writable place",
        ),
        ("--console", "/nonexistent/c", 6, "choose a writable place"),
        ("--vsock", "2:/tmp/v", 2, "it must be 3 or more"),
        ("--net", "tap=", 2, "give it as tap=NAME"),
    ] {
        let ran = run(&["boot", "--kernel", &kernel, option, value, "--timeout", "5"]);
        assert_eq!(ran.status, status, "{option} {value}: {}", ran.err);
        assert!(ran.err.contains(says), "{option} {value}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
}

#[test]
fn a_wrong_machine_file() {
    let dir = Scratch::new();
    for (text, says) in [
        ("{", "EOF"),
        ("{\"kernel\": \"k\", \"colour\": 1}", "colour"),
        ("{\"kernel\": \"k\", \"cpus\": 300}", "300"),
        ("{\"kernel\": \"k\", \"memory_mib\": 0}", "memory of 0 MiB"),
        ("{}", "kernel"),
    ] {
        let file = dir.file("machine", text.as_bytes());
        let ran = run(&["config", "--machine", &file]);
        assert_eq!(ran.status, 2, "{text}: {}", ran.err);
        assert!(ran.err.contains(says), "{text}: {}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
}

#[test]
#[ignore = "needs kvm"]
fn a_host_that_emulates_kernels_says_so_first() {
    let dir = Scratch::new();
    // A kernel that ends the machine: mov al, 7; out 0xf4, al.
    let mut image = vec![0; 0x1000];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    for (at, value) in [
        (0x201, vec![0x66]),
        (0x206, vec![0x0c, 0x02]),
        (0x1f1, vec![1]),
        (0x211, vec![1]),
        (0x230, 0x1000u32.to_le_bytes().to_vec()),
        (0x236, vec![1, 0]),
        (0x238, 255u32.to_le_bytes().to_vec()),
        (0x258, 0x10_0000u64.to_le_bytes().to_vec()),
        (0x260, 0x1000u32.to_le_bytes().to_vec()),
        // The 64-bit entry, 0x200 into the part after the setup sectors.
        (0x600, vec![0xb0, 7, 0xe6, 0xf4]),
    ] {
        image[at..at + value.len()].copy_from_slice(&value);
    }
    let kernel = dir.file("vmlinuz", &image);
    let ran = run(&["boot", "--kernel", &kernel, "--timeout", "10"]);
    assert_eq!(ran.status, 15, "{}", ran.err);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let can = cpu.split_whitespace().any(|w| w == "svm" || w == "vmx");
    assert_eq!(
        ran.err.contains("has neither VMX nor SVM"),
        !can,
        "{}",
        ran.err
    );
}
