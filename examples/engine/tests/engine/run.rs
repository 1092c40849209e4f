//! `cofferdam run` as a person meets it: what is inside, what comes back, what is told.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

use crate::fixture::{Fixture, stderr, stdout};

#[test]
#[ignore = "needs root"]
fn the_image_says_what_runs_and_the_command_line_changes_it() {
    let fixture = Fixture::new();
    let own = fixture.run(&[]).arg(fixture.image()).output().unwrap();
    assert_eq!(stdout(&own), "own command\n", "{}", stderr(&own));
    let script = "pwd; echo $FROM_IMAGE $ADDED; id -u; id -g; hostname";
    assert_eq!(
        stdout(&fixture.sh(&["--hostname", "box"], script)),
        "/tmp\nyes\n0\n0\nbox\n"
    );
    let options = [
        "-e",
        "ADDED=too",
        "-u",
        "app",
        "-w",
        "/",
        "--hostname",
        "box",
    ];
    assert_eq!(
        stdout(&fixture.sh(&options, script)),
        "/\nyes too\n7\n8\nbox\n"
    );
    let other = fixture
        .run(&["--entrypoint", "echo"])
        .arg(fixture.image())
        .arg("hello")
        .output()
        .unwrap();
    assert_eq!(stdout(&other), "hello\n");
}

#[test]
#[ignore = "needs root"]
fn layers_are_merged_and_whiteouts_hide() {
    let fixture = Fixture::new();
    assert_eq!(stdout(&fixture.sh(&[], "ls /etc")), "group\nnew\npasswd\n");
}

#[test]
#[ignore = "needs root"]
fn the_container_is_alone() {
    let fixture = Fixture::new();
    let seen = stdout(&fixture.sh(&[], "echo /proc/[0-9]*; for n in cgroup ipc mnt net pid uts user; do readlink /proc/self/ns/$n; done"));
    let mut lines = seen.lines();
    assert_eq!(lines.next(), Some("/proc/1"));
    let shared: Vec<&str> = lines
        .filter(|line| {
            let name = line.split_once(':').unwrap().0;
            fs::read_link(format!("/proc/self/ns/{name}"))
                .unwrap()
                .to_str()
                == Some(line)
        })
        .collect();
    assert_eq!(shared.len(), 1, "{seen}");
    assert!(shared[0].starts_with("user:"), "{seen}");
    assert_eq!(stdout(&fixture.sh(&[], "ls /sys/class/net")), "lo\n");
    let mounts = stdout(&fixture.sh(&[], "cat /proc/self/mountinfo"));
    let root: Vec<&str> = mounts.lines().next().unwrap().split(' ').collect();
    assert_eq!(
        root[3..5],
        ["/", "/"],
        "nothing is mounted below the container's root: {mounts}"
    );
    assert!(mounts.contains(" - overlay cofferdam "), "{mounts}");
}

#[test]
#[ignore = "needs root"]
fn capabilities_are_few_and_the_kernels_files_are_out_of_reach() {
    let fixture = Fixture::new();
    let status = stdout(&fixture.sh(&[], "cat /proc/self/status"));
    let caps = |key: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(caps("CapEff:"), "00000000a80425fb", "Docker's default set");
    assert_eq!(caps("CapBnd:"), "00000000a80425fb");
    assert_eq!(caps("CapInh:"), "0000000000000000");
    let output = fixture.sh(
        &[],
        "cat /proc/kcore /proc/keys; echo x > /proc/sys/kernel/panic",
    );
    assert_eq!(stdout(&output), "");
    assert!(
        stderr(&output).contains("Read-only file system"),
        "{}",
        stderr(&output)
    );
}

#[test]
#[ignore = "needs root"]
fn the_exit_status_is_that_of_a_shell() {
    let fixture = Fixture::new();
    let code = |command: &[&str]| {
        let output = fixture
            .run(&[])
            .arg(fixture.image())
            .args(command)
            .output()
            .unwrap();
        (output.status.code().unwrap(), stderr(&output))
    };
    assert_eq!(code(&["sh", "-c", "exit 41"]).0, 41);
    assert_eq!(code(&["true"]).0, 0);
    // PID 1 cannot kill itself; the kernel can.
    assert_eq!(
        code(&["sh", "-c", "ulimit -t 1; while :; do :; done"]).0,
        128 + 9
    );
    for (command, status, words) in [
        (["nosuch"], 127, "nosuch not found"),
        (["/bin/nosuch"], 127, "/bin/nosuch not found"),
        (["/text"], 126, "cannot execute /text"),
        (["/noise"], 126, "cannot execute /noise"),
        (["/etc"], 126, "cannot execute /etc"),
    ] {
        let (code, message) = code(&command);
        assert_eq!(code, status, "{command:?}: {message}");
        assert!(message.contains(words), "{command:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
    assert!(fixture.runs().is_empty());
}

#[test]
#[ignore = "needs root"]
fn what_changed_is_told_and_thrown_away() {
    let fixture = Fixture::new();
    let script =
        "echo more >> /etc/new; rm /etc/group; mkdir /data; echo x > /data/x; chmod 600 /text";
    let output = fixture.sh(&["--summary"], script);
    let told = stderr(&output);
    let changes: Vec<&str> = told
        .lines()
        .skip_while(|line| *line != "files changed:")
        .skip(1)
        .collect();
    assert_eq!(
        changes,
        [
            "  A /data",
            "  A /data/x",
            "  C /etc",
            "  D /etc/group",
            "  C /etc/new",
            "  C /text"
        ],
        "{told}"
    );
    assert!(told.contains("exit status 0"), "{told}");
    assert_eq!(
        stdout(&fixture.sh(&[], "cat /etc/new; ls -d /data")),
        "new\n"
    );
    assert!(stderr(&fixture.sh(&["--summary"], "true")).contains("files changed: none"));
}

#[test]
#[ignore = "needs root"]
fn a_read_only_root_stays_as_it_is() {
    let fixture = Fixture::new();
    let output = fixture.sh(
        &["--read-only"],
        "echo x > /file; echo y > /dev/shm/file && cat /dev/shm/file",
    );
    assert_eq!(stdout(&output), "y\n");
    assert!(
        stderr(&output).contains("Read-only file system"),
        "{}",
        stderr(&output)
    );
}

#[test]
#[ignore = "needs root"]
fn the_standard_streams_pass_through() {
    let fixture = Fixture::new();
    let mut child = fixture
        .run(&[])
        .arg(fixture.image())
        .args(["sh", "-c", "cat; echo wrong >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "line\n".repeat(100_000);
    let mut stdin = child.stdin.take().unwrap();
    let sent = text.clone();
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(
        stdout(&output) == text,
        "{} bytes came back of {}",
        output.stdout.len(),
        text.len()
    );
    assert_eq!(stderr(&output), "wrong\n");
}

#[test]
#[ignore = "needs root"]
fn memory_and_processes_are_limited() {
    let fixture = Fixture::new();
    let report = fixture.state().with_extension("json");
    let options = |limit: [&str; 2]| {
        [limit[0], limit[1], "--report", report.to_str().unwrap()].map(str::to_owned)
    };
    let reported = |limit: [&str; 2], script: &str| {
        let options = options(limit);
        let output = fixture.sh(&options.each_ref().map(String::as_str), script);
        let report: serde_json::Value =
            serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
        (output.status.code().unwrap(), report, stdout(&output))
    };
    let (code, report, _) = reported(
        ["--memory", "24M"],
        "exec dd if=/dev/zero of=/dev/null bs=128M count=1",
    );
    assert_eq!(
        (code, &report["usage"]["oom_kills"]),
        (137, &1.into()),
        "{report}"
    );

    let (code, report, out) = reported(
        ["--pids", "8"],
        "for i in 1 2 3 4 5 6 7 8 9 10; do sleep 9 & done; echo no",
    );
    assert!(code == 2 && out.is_empty(), "{code} {out}");
    assert!(
        report["usage"]["pids_refused"].as_u64().unwrap() >= 1,
        "{report}"
    );

    let (code, report, _) = reported(
        ["--cpus", "0.1"],
        "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done",
    );
    let seconds = |value: &serde_json::Value| {
        value["secs"].as_f64().unwrap() + value["nanos"].as_f64().unwrap() / 1e9
    };
    let (cpu, run) = (
        seconds(&report["usage"]["cpu"]),
        seconds(&report["timings"]["run"]),
    );
    // The first period is free, so a short run may have more than its share.
    assert!(
        code == 0 && cpu < 0.2 * run + 0.05,
        "{cpu} s of CPU in {run} s"
    );
}

#[test]
#[ignore = "needs root"]
fn bad_input_is_told_on_one_line_with_what_to_do() {
    let fixture = Fixture::new();
    let failed = |options: &[&str], words: &str| {
        let output = fixture.sh(options, "true");
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(125), "{options:?}: {message}");
        assert_eq!(message.lines().count(), 1, "{options:?}: {message}");
        assert!(message.contains(words), "{options:?}: {message}");
    };
    failed(&["--user", "nobody-here"], "nobody-here");
    failed(&["--user", "4294967295"], "4294967295");
    failed(&["--hostname", &"h".repeat(65)], "hostname");
    failed(&["--memory", "1K"], "memory");
    assert!(fixture.runs().is_empty());
}

#[test]
#[ignore = "needs root"]
fn a_damaged_image_does_not_run() {
    let fixture = Fixture::new();
    let blobs = fixture.image().join("blobs/sha256");
    let layer = fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let whole = fs::read(&layer).unwrap();
    let damages: [(&str, Vec<u8>); 3] = [
        ("tampered", {
            let mut bytes = whole.clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bytes
        }),
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("empty", Vec::new()),
    ];
    for (what, bytes) in damages {
        fs::write(&layer, bytes).unwrap();
        let output = fixture.sh(&[], "echo it ran");
        assert_eq!(output.status.code(), Some(125), "{what}");
        assert_eq!(stdout(&output), "", "{what}");
        let message = stderr(&output);
        assert!(
            message.contains("sha256:") && message.lines().count() == 1,
            "{what}: {message}"
        );
    }
    fs::remove_file(&layer).unwrap();
    let message = stderr(&fixture.sh(&[], "true"));
    assert!(
        message.contains("sha256:") && message.lines().count() == 1,
        "missing: {message}"
    );
    assert!(fixture.runs().is_empty());
}

#[test]
#[ignore = "needs root"]
fn the_engines_own_file_cannot_be_overwritten_from_inside() {
    // CVE-2019-5736: get hold of the engine's file while it runs, write to it when it has ended.
    let fixture = Fixture::new();
    let program = fixture.program();
    let before = fs::read(&program).unwrap();
    let mut child = fixture
        .run(&[])
        .arg(fixture.image())
        .args(["sh", "-c", "echo here; sleep 1000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let exe = format!("/proc/{}/exe", child.id());
    let held = rustix::fs::open(exe, OFlags::PATH, Mode::empty()).unwrap();
    rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap();
    let write = |path: String| OpenOptions::new().write(true).open(path);
    let refused = write(format!("/proc/self/fd/{}", held.as_raw_fd())).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem, "{refused}");
    assert!(fs::read(&program).unwrap() == before);
    // The file itself is writable by root: it is the way to it that is not.
    assert!(write(program.display().to_string()).is_ok());
}
