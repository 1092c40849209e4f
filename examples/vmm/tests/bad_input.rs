//! What a user gets wrong gives one line that says what to do.

mod common;

use common::{Scratch, run};

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
