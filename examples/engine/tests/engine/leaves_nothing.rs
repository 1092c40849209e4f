//! Whatever ends a run, nothing of it stays: no mount, control group, process or file.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::fixture::{self, Fixture};
use rustix::process::{Pid, Signal, kill_process};

/// A run whose container says that it is there, and then waits.
fn waiting(fixture: &Fixture, script: &str) -> Child {
    let mut child = fixture
        .run(&["--memory", "32M", "--best-effort-limits"])
        .arg(fixture.image())
        .args(["sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "here\n");
    child
}

/// Waits until the container's first process has become this program. A shell catches SIGINT, and a
/// signal that comes just before it executes its last command is lost with its handler.
fn becomes(child: &Child, program: &str) {
    let id = child.id();
    let end = Instant::now() + Duration::from_mins(1);
    let names = || -> std::io::Result<String> {
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        let first = children.split_whitespace().next().unwrap_or("none");
        fs::read_to_string(format!("/proc/{first}/comm"))
    };
    while names().unwrap_or_default().trim_end() != program {
        assert!(Instant::now() < end, "it does not become {program}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Control groups of containers that are there.
fn groups() -> BTreeSet<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let roots = mounts.lines().filter(|line| line.contains(" - cgroup"));
    roots
        .filter_map(|line| fs::read_dir(line.split(' ').nth(4)?).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"cofferdam-"))
        })
        .collect()
}

/// Groups, mounts and processes in which the run's identifier or directory shows.
fn traces(fixture: &Fixture, ids: &[String]) -> Vec<String> {
    let state = fixture.state().display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let groups = groups().into_iter().map(|path| path.display().to_string());
    let mounts = mounts
        .lines()
        .filter(|line| line.contains(&state))
        .map(str::to_owned)
        .collect::<Vec<_>>();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            command.contains(&state).then_some(command)
        });
    groups
        .filter(|group| ids.iter().any(|id| group.contains(id.as_str())))
        .chain(mounts)
        .chain(processes)
        .collect()
}

fn assert_gone(fixture: &Fixture, ids: &[String]) {
    assert_eq!(fixture.runs(), Vec::<String>::new());
    assert_eq!(traces(fixture, ids), Vec::<String>::new());
}

#[test]
#[ignore = "needs root"]
fn a_run_that_ends_by_itself() {
    let fixture = Fixture::new();
    let mut child = waiting(&fixture, "echo here; sleep 0.2");
    let ids = fixture.runs();
    assert_eq!(ids.len(), 1);
    assert!(
        !traces(&fixture, &ids).is_empty(),
        "the test would see traces"
    );
    assert!(child.wait().unwrap().success());
    assert_gone(&fixture, &ids);
}

#[test]
#[ignore = "needs root"]
fn ctrl_c_and_its_kin() {
    for (name, number) in [(Signal::INT, 2), (Signal::TERM, 15), (Signal::HUP, 1)] {
        let fixture = Fixture::new();
        let mut child = waiting(&fixture, "echo here; sleep 1000");
        becomes(&child, "sleep");
        let ids = fixture.runs();
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(128 + number));
        assert_gone(&fixture, &ids);
    }
}

#[test]
#[ignore = "needs root"]
fn a_container_may_handle_a_signal_and_end_as_it_likes() {
    let fixture = Fixture::new();
    let mut child = waiting(
        &fixture,
        "trap 'exit 5' TERM; echo here; while :; do sleep 0.05; done",
    );
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_gone(&fixture, &[]);
}

#[test]
#[ignore = "needs root"]
fn a_container_may_ignore_a_signal() {
    let fixture = Fixture::new();
    let mut child = waiting(&fixture, "trap '' TERM; echo here; sleep 0.5; exit 6");
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(6));
    assert_gone(&fixture, &[]);
}

#[test]
#[ignore = "needs root"]
fn processes_in_the_background_end_with_the_first_one() {
    let fixture = Fixture::new();
    let mut child = waiting(&fixture, "sleep 1000 & sleep 1000 & echo here");
    let ids = fixture.runs();
    assert!(child.wait().unwrap().success());
    assert_gone(&fixture, &ids);
}

#[test]
#[ignore = "needs root"]
fn what_a_killed_engine_leaves_the_next_one_clears_away() {
    let fixture = Fixture::new();
    let mut child = waiting(&fixture, "echo here; sleep 1000");
    let ids = fixture.runs();
    child.kill().unwrap();
    child.wait().unwrap();
    // The container dies with its engine, and its mount with it.
    let deadline = Instant::now() + Duration::from_secs(20);
    let id = &ids[0];
    while pids_in(id) > 0 {
        assert!(
            Instant::now() < deadline,
            "the container outlived its engine"
        );
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(fixture.runs(), ids, "the test would see leftovers");
    assert!(fixture.sh(&[], "true").status.success());
    assert_gone(&fixture, &ids);
}

fn pids_in(id: &str) -> usize {
    let groups = groups()
        .into_iter()
        .filter(|path| path.to_string_lossy().contains(id));
    groups
        .map(|path| {
            fs::read_to_string(path.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
                .count()
        })
        .max()
        .unwrap_or(0)
}

#[test]
#[ignore = "needs root"]
fn a_signal_while_an_image_is_unpacked() {
    let fixture = Fixture::new();
    // Again and again at another moment, from before the first file to after the start.
    for milliseconds in (0..120).step_by(5) {
        let mut child = fixture
            .run(&[])
            .arg(fixture.image())
            .args(["sleep", "1000"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        // Before it catches signals it has nothing to clean up, and simply ends.
        signal(&child, Signal::TERM);
        let status = child.wait().unwrap();
        assert!(!status.success(), "{status} after {milliseconds} ms");
        assert_gone(&fixture, &[]);
    }
}

#[test]
#[ignore = "needs root"]
fn many_at_once() {
    let fixture = Fixture::new();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..3 {
                    let output = fixture.sh(&["--memory", "32M", "--pids", "16"], "echo fine");
                    assert_eq!(
                        fixture::stdout(&output),
                        "fine\n",
                        "{}",
                        fixture::stderr(&output)
                    );
                }
            });
        }
    });
    assert_gone(&fixture, &[]);
}

#[test]
#[ignore = "needs root"]
fn a_reader_that_goes_away_ends_the_container() {
    let fixture = Fixture::new();
    let mut child = fixture
        .run(&[])
        .arg(fixture.image())
        .args(["sh", "-c", "while echo line; do :; done"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let head = Command::new("head")
        .arg("-n1")
        .stdin(child.stdout.take().unwrap())
        .output()
        .unwrap();
    assert_eq!(head.stdout, b"line\n");
    // PID 1 is told by an error, not by a signal; either way the loop ends.
    child.wait().unwrap();
    assert_gone(&fixture, &[]);
}
