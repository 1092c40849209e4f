//! What a malicious image or bundle may try, and what must come of it.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Bundle, OURS, create, stderr, stdout, unique};
use serde_json::json;

/// CVE-2019-5736: the image's program is the runtime that executes it.
#[test]
#[ignore = "needs root"]
fn the_runtimes_own_file_cannot_be_written() {
    let directory = tempfile::tempdir().unwrap();
    let runtime = directory.path().join("runtime");
    fs::copy(OURS, &runtime).unwrap();
    let before = fs::read(&runtime).unwrap();
    let mut bundle = Bundle::new(&["sh", "-c", "sleep 1000"]);
    bundle.set("/root/readonly", json!(false));
    bundle.write();
    let id = &unique();
    let ours = |arguments: &[&str]| {
        Command::new(&runtime)
            .arg("--root")
            .arg(bundle.state())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
    };
    let path = bundle.path().to_str().unwrap();
    assert!(ours(&["run", "--detach", "--bundle", path, id]).success());
    // Whoever enters is caught by a loop that opens every process's file for writing.
    let attack = "for i in $(seq 2000); do for p in /proc/[0-9]*; do \
                  (echo overwritten > $p/exe) 2>/dev/null && echo wrote >> /tmp/wrote; done; done";
    let mut attacker = Command::new(&runtime)
        .arg("--root")
        .arg(bundle.state())
        .args(["exec", id, "busybox", "sh", "-c", attack])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..20 {
        assert!(ours(&["exec", id, "true"]).success());
        ours(&["exec", id, "/proc/self/exe"]);
    }
    let _ = attacker.kill();
    let _ = attacker.wait();
    bundle.done(&["delete", "--force", id]);
    assert!(fs::read(&runtime).unwrap() == before);
    assert!(!bundle.rootfs().join("tmp/wrote").exists());
}

/// CVE-2021-30465: a directory of the root filesystem becomes a link to the machine's while a
/// mount is made on it.
#[test]
#[ignore = "needs root"]
fn links_that_are_swapped_in_lead_nowhere() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /proc/self/mountinfo"]);
    bundle.set("/root/readonly", json!(false));
    bundle.set(
        "/mounts/-",
        json!({"destination": "/swapped/inner", "type": "tmpfs", "source": "tmpfs"}),
    );
    let outside = tempfile::tempdir().unwrap();
    fs::create_dir(outside.path().join("inner")).unwrap();
    let swapped = bundle.rootfs().join("swapped");
    fs::create_dir_all(bundle.rootfs().join("real/inner")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let swapper = std::thread::spawn({
        let (stop, swapped, outside) = (Arc::clone(&stop), swapped, outside.path().to_owned());
        move || {
            let aside = swapped.with_file_name("real");
            while !stop.load(Ordering::Relaxed) {
                let _ = fs::rename(&aside, &swapped);
                let _ = fs::rename(&swapped, &aside);
                let _ = symlink(&outside, &swapped);
                let _ = fs::remove_file(&swapped);
            }
        }
    });
    let (mut ran, before) = (0, fs::read_to_string("/proc/self/mountinfo").unwrap());
    for _ in 0..60 {
        let output = bundle.run();
        ran += usize::from(output.status.success());
        // Wherever it went, it is not the machine's.
        assert!(
            !stdout(&output).contains(outside.path().to_str().unwrap()),
            "{}",
            stdout(&output)
        );
    }
    stop.store(true, Ordering::Relaxed);
    swapper.join().unwrap();
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
    assert_eq!(
        fs::read_dir(outside.path().join("inner")).unwrap().count(),
        0
    );
    assert!(ran > 0);
}

/// CVE-2024-21626: a descriptor of the machine that leaks, as a working directory or otherwise.
#[test]
#[ignore = "needs root"]
fn no_descriptor_leads_out() {
    for number in 3..12 {
        let mut bundle = Bundle::new(&["pwd"]);
        bundle.set("/process/cwd", json!(format!("/proc/self/fd/{number}")));
        let output = bundle.run();
        assert!(!output.status.success(), "{number}: {}", stdout(&output));
    }
    let bundle = Bundle::new(&["sh", "-c", "sleep 1000"]);
    bundle.write();
    let id = &unique();
    let path = bundle.path().to_str().unwrap();
    // A descriptor that whoever runs the runtime has left open.
    let script = format!(
        "exec 9</; exec {OURS} --root {} run --detach --bundle {path} {id} > /dev/null 2> /dev/null",
        bundle.state().display()
    );
    assert!(
        Command::new("sh")
            .args(["-c", &script])
            .status()
            .unwrap()
            .success()
    );
    for who in ["1", "self"] {
        let script = format!("ls /proc/{who}/fd");
        let text = bundle.done(&["exec", id, "sh", "-c", &script]);
        let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
        assert!(numbers.iter().all(|number| *number <= 3), "{who}: {text}");
    }
    let refused = bundle.ours(&["exec", "--cwd", "/proc/self/fd/7", id, "pwd"]);
    assert!(!refused.status.success(), "{refused:?}");
    bundle.done(&["delete", "--force", id]);
}

/// CVE-2019-16884, CVE-2025-31133, CVE-2025-52881: what is written to or masked in /proc is
/// something of the image's.
#[test]
#[ignore = "needs root"]
fn a_false_proc_takes_nothing() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /proc/sys/net/ipv4/ip_forward"]);
    let fake = bundle.rootfs().join("fake/sys/net/ipv4");
    fs::create_dir_all(&fake).unwrap();
    fs::write(fake.join("ip_forward"), "untouched\n").unwrap();
    let source = bundle.rootfs().join("fake");
    bundle.set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}));
    bundle.set(
        "/mounts/-",
        json!({"destination": "/proc", "source": source, "options": ["bind"]}),
    );
    bundle.run();
    assert_eq!(
        fs::read_to_string(fake.join("ip_forward")).unwrap(),
        "untouched\n"
    );

    // /dev/null of the image in place of the device that masks.
    let mut bundle = Bundle::new(&["sh", "-c", "cat /etc/secret; ls -l /etc/secret"]);
    symlink("/etc/passwd", bundle.rootfs().join("dev/null")).unwrap();
    bundle.set("/linux/maskedPaths", json!(["/etc/secret"]));
    let output = bundle.run();
    let text = stdout(&output);
    assert!(
        text.starts_with('c') && text.contains("1,   3"),
        "{text}{}",
        stderr(&output)
    );
}

/// CVE-2016-9962: whoever enters is looked into before the program is executed.
#[test]
#[ignore = "needs root"]
fn who_enters_cannot_be_looked_into() {
    let mut bundle = Bundle::new(&["sh", "-c", "sleep 1000"]);
    bundle.set("/root/readonly", json!(false));
    let id = &unique();
    create(&bundle, id, &[]);
    bundle.done(&["start", id]);
    // A process is open to root, who it belongs to, when it executes a file of the image: that of
    // busybox. The names of files that are read through any other's /proc directory are noted.
    let attack = "for i in $(seq 2000); do for p in /proc/[0-9]*; do \
                  e=$(readlink $p/exe) && [ $e != /bin/busybox ] && \
                  { echo $e; head -c 1 $p/mem; readlink $p/fd/3; } >> /tmp/seen 2>&1; \
                  done; done";
    let mut attacker = bundle
        .command_of(&["exec", id, "sh", "-c", attack])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..20 {
        assert!(bundle.ours(&["exec", id, "true"]).status.success());
    }
    let _ = attacker.kill();
    let _ = attacker.wait();
    bundle.done(&["delete", "--force", id]);
    let seen = fs::read_to_string(bundle.rootfs().join("tmp/seen")).unwrap_or_default();
    assert_eq!(seen, "");
}

/// CVE-2022-29162: nothing is inheritable.
#[test]
#[ignore = "needs root"]
fn nothing_is_inheritable_by_default() {
    let output = Bundle::new(&["grep", "CapInh", "/proc/self/status"]).run();
    assert_eq!(stdout(&output), "CapInh:\t0000000000000000\n");
}

/// A root filesystem that is a link, a mount target that is one, and `..` in both.
#[test]
#[ignore = "needs root"]
fn targets_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let mut bundle = Bundle::new(&["true"]);
    bundle.set("/root/readonly", json!(false));
    symlink(outside.path(), bundle.rootfs().join("link")).unwrap();
    let inside = bundle
        .rootfs()
        .join(outside.path().strip_prefix("/").unwrap());
    fs::create_dir_all(&inside).unwrap();
    for destination in [
        "/link/made",
        "/../../../../link/made2",
        "/link/../link/made3",
    ] {
        bundle.set(
            "/mounts/-",
            json!({"destination": destination, "type": "tmpfs", "source": "x"}),
        );
    }
    let output = bundle.run();
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(inside.join("made").is_dir());
}
