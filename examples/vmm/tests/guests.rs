//! Guests that run to their end, or not so well, under the program as a user starts it.

mod common;

use common::{Scratch, run};

#[test]
#[ignore = "needs kvm"]
fn each_mode_says_hello_and_tells_what_it_sees() {
    for (mode, says, paging) in [
        ("real", "16-bit real mode", "off"),
        ("protected", "32-bit protected mode", "off"),
        ("long", "64-bit long mode", "on"),
    ] {
        let dir = Scratch::new();
        let guest = dir.path("guest");
        assert_eq!(run(&["guest", mode, "--output", &guest]).status, 0);
        let boot_mode = if mode == "protected" { mode } else { "auto" };
        let ran = run(&["boot", "--kernel", &guest, "--mode", boot_mode]);
        assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{mode}");
        let lines: Vec<&str> = ran.out.lines().collect();
        assert_eq!(
            lines[0],
            format!("Hello from a bare-metal guest in {says}.")
        );
        let vendor = lines[1].strip_prefix("CPU vendor: ").unwrap();
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        assert!(cpuinfo.contains(vendor) && vendor.len() == 12, "{vendor}");
        assert_eq!(lines[2], "Hypervisor: KVMKVMKVM");
        assert_eq!(lines[3], format!("Paging: {paging}"));
        assert_eq!(lines.len(), 4);
    }
}

#[test]
#[ignore = "needs kvm"]
fn the_long_mode_guest_runs_flat_and_with_much_memory_too() {
    let dir = Scratch::new();
    let guest = dir.path("guest");
    run(&["guest", "long", "--format", "flat", "--output", &guest]);
    for memory in ["2", "3072", "5000"] {
        let ran = run(&[
            "boot", "--kernel", &guest, "--mode", "long", "--memory", memory,
        ]);
        assert_eq!(ran.status, 0, "{}", ran.err);
        assert!(ran.out.contains("64-bit long mode"));
    }
}

#[test]
#[ignore = "needs kvm"]
fn the_exit_port_gives_the_status() {
    let dir = Scratch::new();
    // mov al, 3; out 0xf4, al
    let guest = dir.file("guest", &[0xb0, 3, 0xe6, 0xf4]);
    assert_eq!(run(&["boot", "--kernel", &guest]).status, 7);
}

#[test]
#[ignore = "needs kvm"]
fn a_triple_fault_is_one_line_with_the_mode() {
    let dir = Scratch::new();
    // ud2, with no interrupt table that could handle it
    let guest = dir.file("guest", &[0x0f, 0x0b]);
    let ran = run(&["boot", "--kernel", &guest, "--mode", "long"]);
    assert_eq!(ran.status, 8);
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(ran.err.contains("triple fault"), "{}", ran.err);
}

#[test]
#[ignore = "needs kvm"]
fn waiting_for_an_interrupt_that_never_comes_is_an_error() {
    let dir = Scratch::new();
    // sti; hlt
    let guest = dir.file("guest", &[0xfb, 0xf4]);
    let ran = run(&["boot", "--kernel", &guest]);
    assert_eq!(ran.status, 8);
    assert_eq!(
        ran.err,
        "cofferdam-vmm: the guest halted with interrupts on, in real mode at 0000:7c02, and this \
         machine has nothing to interrupt it: end it with `cli; hlt`\n"
    );
}

#[test]
#[ignore = "needs kvm"]
fn an_endless_guest_ends_at_the_timeout() {
    let dir = Scratch::new();
    // jmp $
    let guest = dir.file("guest", &[0xeb, 0xfe]);
    let before = std::time::Instant::now();
    let ran = run(&["boot", "--kernel", &guest, "--timeout", "0.3"]);
    assert_eq!(ran.status, 10);
    assert!(before.elapsed().as_millis() >= 300);
    assert_eq!(
        ran.err,
        "cofferdam-vmm: the guest was still running after 0.3 s (--timeout), in real mode at \
         0000:7c00: give it longer, or look for an endless loop there\n"
    );
}

#[test]
#[ignore = "needs kvm"]
fn statistics_are_measured() {
    let dir = Scratch::new();
    let (guest, stats) = (dir.path("guest"), dir.path("stats.json"));
    run(&["guest", "real", "--output", &guest]);
    let ran = run(&["boot", "--kernel", &guest, "--stats", &stats]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let text = std::fs::read_to_string(&stats).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    let number = |key: &str| stats[key].as_u64().unwrap();
    assert_eq!(stats["mode"], "real");
    assert_eq!(number("guest_memory_bytes"), 128 << 20);
    // The code and the stack, and what the CPU itself touches.
    assert!((0x1000..0x1_0000).contains(&number("guest_resident_bytes")));
    assert!((100 << 10..64 << 20).contains(&number("vmm_resident_bytes")));
    assert!(number("process_start_to_first_run_us") < number("process_start_to_first_output_us"));
    assert!(number("process_start_to_first_output_us") <= number("total_us"));
    assert!((1..number("cpu_us")).contains(&number("cpu_to_first_run_us")));
    // Each byte is one write, after at least one look at the line status.
    let bytes = ran.out.len() as u64;
    assert_eq!(stats["exits"]["port_out"].as_u64().unwrap(), bytes);
    assert_eq!(stats["exits"]["port_in"].as_u64().unwrap(), bytes);
    assert_eq!(stats["exits"]["halt"], 1);
    assert!(number("exits_total") > 2 * bytes);

    // Without a file, on standard error.
    let ran = run(&["boot", "--kernel", &guest, "--stats"]);
    assert!(serde_json::from_str::<serde_json::Value>(&ran.err).is_ok());
}
