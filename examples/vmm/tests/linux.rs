//! A distribution's own kernels, under a KVM that can run them at speed: in the lab.

mod common;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Ran, Scratch, run};

/// What the guest does is in its command line, after `test=`.
const INIT: &str = r#"#!/bin/busybox sh
echo "cpus=$(nproc)"
case $(sed 's/.*test=\([a-z]*\).*/\1/' /proc/cmdline) in
disk)
    mount -t ext4 /dev/vda /mnt || echo "cannot mount"
    [ -e /mnt/sum ] && (cd /mnt && md5sum -c sum)
    dd if=/dev/urandom of=/mnt/data bs=64k count=32 conv=fsync 2>/dev/null
    (cd /mnt && md5sum data > sum && sync)
    umount /mnt
    echo "serial=$(cat /sys/block/vda/serial)"
    dd if=/dev/hwrng bs=16 count=1 2>/dev/null | wc -c
    ;;
count)
    i=0
    while true; do i=$((i + 1)); echo "tick $i"; sleep 0.2; done
    ;;
panic) echo c > /proc/sysrq-trigger ;;
esac
poweroff -f
"#;

fn kernel(ending: &str) -> String {
    let mut kernels: Vec<String> = fs::read_dir("/boot")
        .unwrap()
        .map(|e| e.unwrap().path().to_str().unwrap().to_owned())
        .filter(|p| p.starts_with("/boot/vmlinuz-") && p.ends_with(ending))
        .filter(|p| ending == "-cloud-amd64" || !p.ends_with("-cloud-amd64"))
        .collect();
    kernels.sort();
    kernels.pop().expect("a kernel of Debian is installed")
}

/// An initial RAM disk for a kernel.
fn initrd(dir: &Scratch, kernel: &str) -> String {
    let init = dir.file("init", INIT.as_bytes());
    let initrd = dir.path("initrd");
    let made = run(&[
        "guest", "--kernel", kernel, "--init", &init, "--output", &initrd,
    ]);
    assert_eq!((made.status, made.err.as_str()), (0, ""));
    initrd
}

fn boot(kernel: &str, initrd: &str, test: &str, more: &[&str]) -> Ran {
    let line = format!("console=ttyS0 panic=-1 quiet test={test}");
    let mut args = vec![
        "boot",
        "--kernel",
        kernel,
        "--initrd",
        initrd,
        "--cmdline",
        &line,
    ];
    args.extend(["--memory", "256", "--timeout", "100"]);
    args.extend(more);
    run(&args)
}

#[test]
#[ignore = "needs lab"]
fn stock_kernels_boot_and_keep_what_they_write() {
    for (ending, cpus) in [
        ("-cloud-amd64", "1"),
        ("-cloud-amd64", "2"),
        ("-amd64", "4"),
    ] {
        let dir = Scratch::new();
        let (kernel, disk) = (kernel(ending), dir.path("disk"));
        let initrd = initrd(&dir, &kernel);
        File::create(&disk).unwrap().set_len(32 << 20).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F", &disk]).status();
        assert!(made.unwrap().success());
        let with = format!("{disk},serial=a-serial");
        // The second time in the jail, and what was written the first time is there.
        for jail in [false, true] {
            let mut options = vec!["--cpus", cpus, "--disk", &with];
            options.extend(jail.then_some("--jail"));
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
fn a_panic_has_a_status_of_its_own() {
    let dir = Scratch::new();
    let kernel = kernel("-cloud-amd64");
    let initrd = initrd(&dir, &kernel);
    assert_eq!(boot(&kernel, &initrd, "panic", &[]).status, 14);
}

/// A machine that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ticks(path: &str) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().filter_map(|l| l.strip_prefix("tick "));
    lines.filter_map(|n| n.trim().parse().ok()).collect()
}

fn wait_for(what: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(100);
    while !what() {
        assert!(Instant::now() < end, "it does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn ask(socket: &str, request: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    let len = body.len();
    write!(
        stream,
        "{request} HTTP/1.1\r\nContent-Length: {len}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
#[ignore = "needs lab"]
fn a_running_machine_is_saved_and_goes_on_twice() {
    let dir = Scratch::new();
    let kernel = kernel("-cloud-amd64");
    let initrd = initrd(&dir, &kernel);
    let (out, socket, saved) = (dir.path("out"), dir.path("control"), dir.path("saved"));
    let machine = Command::new(env!("CARGO_BIN_EXE_cofferdam-vmm"))
        .args([
            "boot", "--kernel", &kernel, "--initrd", &initrd, "--memory", "128",
        ])
        .args([
            "--cmdline",
            "console=ttyS0 quiet test=count",
            "--control",
            &socket,
        ])
        .stdin(Stdio::null())
        .stdout(File::create(&out).unwrap())
        .spawn();
    let mut machine = Running(machine.unwrap());
    wait_for(|| ticks(&out).len() >= 3);
    let answer = ask(&socket, "PUT /snapshot", &format!("{{\"to\":\"{saved}\"}}"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let last = *ticks(&out).last().unwrap();
    // It goes on, and ends when it is told to.
    wait_for(|| ticks(&out).last().unwrap() > &(last + 1));
    ask(&socket, "PUT /shutdown", "");
    assert_eq!(machine.0.wait().unwrap().code(), Some(16));
    assert!(!Path::new(&socket).exists());
    // From the same moment, as often as one likes.
    for _ in 0..2 {
        let ran = run(&["restore", &saved, "--timeout", "4"]);
        assert_eq!(ran.status, 10, "{}", ran.err);
        let first = ran.out.lines().find_map(|l| l.strip_prefix("tick "));
        let first: u64 = first.expect("it goes on").trim().parse().unwrap();
        assert!((last..=last + 1).contains(&first), "{first} after {last}");
    }
    fs::write(dir.path("saved/machine"), "{\"version\":99}").unwrap();
    let ran = run(&["restore", &saved]);
    assert_eq!(ran.status, 6);
    assert!(ran.err.contains("version 99"), "{}", ran.err);
}
