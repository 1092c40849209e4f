//! The lab's own promises, tried from outside: what it passes on, how it ends, what it leaves.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal};

use super::plan::Class;
use super::summary::{Outcome, Place};
use crate::exec;

/// A boot takes seconds, and a loaded machine many more.
const LIMIT: &str = "280";

type Check = fn(&Path) -> Result<()>;

const CHECKS: [(&str, Check); 5] = [
    ("passes_everything_on", passes_everything_on),
    ("gives_the_kernel_it_promises", gives_the_kernel_it_promises),
    ("ends_a_hung_command", ends_a_hung_command),
    (
        "ends_at_once_when_interrupted",
        ends_at_once_when_interrupted,
    ),
    ("runs_commands_under_systemd", runs_commands_under_systemd),
];

/// Tries them all. They run on this machine, and are of the lab's class.
pub(crate) fn run(scratch: &Path) -> Result<Outcome> {
    let mut outcome = Outcome::new(Class::Lab, Place::Here, "xtask/lab");
    let started = Instant::now();
    for (name, check) in CHECKS {
        let dir = scratch.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        match check(&dir).and_then(|()| nothing_runs()) {
            Ok(()) => outcome.passed.push(name.to_owned()),
            Err(error) => {
                outcome.failed.push(name.to_owned());
                outcome.output = outcome.output + name + ": " + &format!("{error:#}\n");
            }
        }
        exec::go_on()?;
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    outcome.time = started.elapsed();
    Ok(outcome.said())
}

fn lab(args: &[&str]) -> Command {
    // This very program, also after cargo has put a new one in its place.
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("lab")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn said(output: &Output) -> String {
    format!(
        "{}; it said {:?} and {:?}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn nothing_runs() -> Result<()> {
    let left = exec::descendants();
    ensure!(left.is_empty(), "processes are left: {left:?}");
    Ok(())
}

fn passes_everything_on(dir: &Path) -> Result<()> {
    let place = dir.join("a b, c");
    fs::create_dir_all(&place)?;
    let script = place.join("it's a script");
    fs::write(
        &script,
        "#!/bin/sh\ncat\npwd\necho \"$1\" >&2\necho result >/lab/out/file\nkill -9 $$\n",
    )?;
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let out = place.join("out");
    let mut command = lab(&["--timeout", LIMIT, "--out"]);
    command
        .arg(&out)
        .args(["--", "./it's a script", "an  argument"])
        .current_dir(&place)
        .stdin(Stdio::piped());
    let mut child = command.spawn()?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    stdin.write_all(b"input\n")?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let expected = format!("input\n{}\n", place.canonicalize()?.display());
    ensure!(output.stdout == expected.as_bytes(), "{}", said(&output));
    ensure!(output.stderr == b"an  argument\n", "{}", said(&output));
    ensure!(output.status.code() == Some(137), "{}", said(&output));
    let result = fs::read_to_string(out.join("file"))?;
    ensure!(result == "result\n", "/lab/out/file holds {result:?}");
    Ok(())
}

fn gives_the_kernel_it_promises(dir: &Path) -> Result<()> {
    let mine = dir.join("mine");
    fs::write(&mine, "before")?;
    let script = format!(
        "cat /sys/fs/cgroup/cgroup.controllers; test -w /dev/kvm && echo kvm; echo over >'{}'; \
         cat /sys/class/net/lo/operstate; stat -f -c %T / /tmp /dev/shm; exit 3",
        mine.display()
    );
    let output = lab(&["--timeout", LIMIT, "--", "sh", "-c", &script]).output()?;
    let lines = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<&str> = lines.lines().collect();
    ensure!(
        lines
            == [
                "cpuset cpu io memory hugetlb pids rdma misc",
                "kvm",
                "unknown",
                "overlayfs",
                "tmpfs",
                "tmpfs"
            ],
        "{}",
        said(&output)
    );
    ensure!(output.status.code() == Some(3), "{}", said(&output));
    let after = fs::read_to_string(&mine)?;
    ensure!(
        after == "before",
        "the lab wrote {after:?} into the host's file"
    );
    Ok(())
}

fn ends_a_hung_command(_: &Path) -> Result<()> {
    let started = Instant::now();
    let output = lab(&["--timeout", "3", "--", "sleep", "1000"]).output()?;
    ensure!(output.status.code() == Some(124), "{}", said(&output));
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(message.contains("--timeout"), "{}", said(&output));
    ensure!(
        started.elapsed() < Duration::from_secs(20),
        "it took {:?}",
        started.elapsed()
    );
    Ok(())
}

fn ends_at_once_when_interrupted(_: &Path) -> Result<()> {
    let mut command = lab(&["--timeout", LIMIT, "--", "sh", "-c", "echo up; sleep 1000"]);
    let mut child = command.spawn()?;
    let up = wait_for_output(&mut child);
    let pid = Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::INT)?;
    let started = Instant::now();
    let status = child.wait()?;
    up?;
    ensure!(status.code() == Some(130), "{status}");
    ensure!(
        started.elapsed() < Duration::from_secs(2),
        "it took {:?}",
        started.elapsed()
    );
    Ok(())
}

fn wait_for_output(child: &mut Child) -> Result<()> {
    use std::io::Read;
    let mut bytes = [0; 3];
    let stdout = child.stdout.as_mut().context("no standard output")?;
    stdout.read_exact(&mut bytes).context("it said nothing")?;
    Ok(())
}

fn runs_commands_under_systemd(_: &Path) -> Result<()> {
    let script = "cat /proc/1/comm /proc/self/cgroup; systemctl is-system-running --wait; exit 5";
    let output = lab(&["--systemd", "--timeout", LIMIT, "--", "sh", "-c", script]).output()?;
    ensure!(
        output.stdout == b"systemd\n0::/system.slice/lab.service\nrunning\n",
        "{}",
        said(&output)
    );
    ensure!(output.status.code() == Some(5), "{}", said(&output));
    // A machine needs a moment to be gone.
    thread::sleep(Duration::from_millis(100));
    Ok(())
}
