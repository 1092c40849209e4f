//! A guest that is always busy is saved, restored and goes on as if nothing had been.

mod common;

use common::{Running, Scratch, busy, counts, run};

fn boot<'a>(kernel: &'a str, store: &'a str) -> Vec<&'a str> {
    vec![
        "boot",
        "--kernel",
        kernel,
        "--memory",
        "16",
        "--log-changes",
        "--snapshots",
        store,
    ]
}

/// A directory for snapshots, and the guest's file.
fn set_up(dir: &Scratch) -> (String, String) {
    let store = dir.path("store");
    std::fs::create_dir(&store).unwrap();
    (busy(dir), store)
}

#[test]
#[ignore = "needs kvm"]
fn it_goes_on_a_hundred_times() {
    let dir = Scratch::new();
    let (kernel, store) = set_up(&dir);
    let from = format!("{store}/s");
    let mut machine = Running::start(&dir, "0", &boot(&kernel, &store));
    let mut last = 0;
    for round in 1..=100 {
        machine.wait_for(|out| counts(out).last() > Some(&last));
        // All of the memory, or what changed since the snapshot that it was restored from.
        let written = machine.save("s");
        assert_eq!(
            written.get("changed_pages").is_some(),
            round > 1,
            "{written}"
        );
        last = *counts(&machine.out()).last().unwrap();
        machine.shut_down();
        let args = ["restore", &from, "--snapshots", &store];
        machine = Running::start(&dir, &round.to_string(), &args);
        machine.wait_for(|out| counts(out).len() > 1);
        // Between the snapshot and the end it may have counted on; what was not saved did not happen.
        let first = counts(&machine.out())[0];
        assert!(first <= last + 2, "{first} after {last}");
    }
    machine.shut_down();
}

#[test]
#[ignore = "needs kvm"]
fn one_that_is_not_finished_leaves_the_one_before() {
    let dir = Scratch::new();
    let (kernel, store) = set_up(&dir);
    let from = format!("{store}/s");
    let mut args = boot(&kernel, &store);
    args.push("--no-jail");
    let mut machine = Running::start(&dir, "first", &args);
    machine.wait_for(|out| counts(out).len() > 1);
    machine.save("s");
    for round in 0..20u64 {
        // Killed at another moment each time.
        let asked = machine.begin("PUT /snapshot", "{\"to\":\"s\"}");
        std::thread::sleep(std::time::Duration::from_micros(round * 700));
        machine.kill();
        drop(asked);
        let name = format!("again{round}");
        let args = ["restore", &from, "--snapshots", &store, "--no-jail"];
        machine = Running::start(&dir, &name, &args);
        machine.wait_for(|out| counts(out).len() > 1);
    }
    machine.save("s");
    machine.shut_down();
}

#[test]
#[ignore = "needs kvm"]
fn one_is_restored_many_times_at_once() {
    let dir = Scratch::new();
    let (kernel, store) = set_up(&dir);
    let from = format!("{store}/s");
    let mut machine = Running::start(&dir, "first", &boot(&kernel, &store));
    machine.wait_for(|out| counts(out).len() > 3);
    machine.save("s");
    let names: Vec<String> = (0..8).map(|n| format!("copy{n}")).collect();
    let mut copies: Vec<Running> = names
        .iter()
        .map(|name| Running::start(&dir, name, &["restore", &from]))
        .collect();
    for copy in &mut copies {
        copy.wait_for(|out| counts(out).len() > 3);
    }
    let firsts: Vec<u32> = copies.iter().map(|c| counts(&c.out())[0]).collect();
    assert!(firsts.iter().all(|f| *f == firsts[0]), "{firsts:?}");
    copies.into_iter().for_each(Running::shut_down);
    // The one that was saved has never stopped.
    let now = counts(&machine.out()).len();
    machine.wait_for(|out| counts(out).len() > now);
    machine.shut_down();
}

#[test]
#[ignore = "needs kvm"]
fn what_is_no_snapshot_is_refused() {
    let dir = Scratch::new();
    let (kernel, store) = set_up(&dir);
    let from = format!("{store}/s");
    let mut machine = Running::start(&dir, "first", &boot(&kernel, &store));
    machine.wait_for(|out| counts(out).len() > 1);
    // Only names, only in the directory that was given, and nothing else is replaced.
    std::fs::create_dir(format!("{store}/mine")).unwrap();
    std::fs::write(format!("{store}/mine/letter"), "dear").unwrap();
    for (to, problem) in [
        ("../s", "give a name"),
        ("/tmp/s", "give a name"),
        ("mine", "no snapshot"),
    ] {
        let (status, body) = machine.ask("PUT /snapshot", &format!("{{\"to\":\"{to}\"}}"));
        assert_eq!(status, 500, "{body}");
        assert!(body["error"].as_str().unwrap().contains(problem), "{body}");
    }
    machine.save("s");
    machine.shut_down();
    for (file, content) in [
        ("machine", "{\"version\":99}"),
        ("state", "nonsense"),
        ("memory", ""),
    ] {
        let path = format!("{from}/{file}");
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, content).unwrap();
        let ran = run(&["restore", &from, "--timeout", "5"]);
        assert!(
            [4, 6].contains(&ran.status),
            "{file}: {} {}",
            ran.status,
            ran.err
        );
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        std::fs::write(&path, before).unwrap();
    }
    let ran = run(&["restore", &from, "--timeout", "0.5"]);
    assert_eq!(ran.status, 10, "{}", ran.err);
}

#[test]
#[ignore = "needs kvm"]
fn the_log_tells_what_happened() {
    let dir = Scratch::new();
    let (kernel, store) = set_up(&dir);
    let log = dir.path("log");
    let mut args = boot(&kernel, &store);
    args.extend(["--log", &log]);
    let mut machine = Running::start(&dir, "0", &args);
    machine.wait_for(|out| counts(out).len() > 1);
    machine.save("s");
    machine.shut_down();
    let log = std::fs::read_to_string(log).unwrap();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let messages: Vec<_> = lines
        .iter()
        .map(|l| l["message"].as_str().unwrap())
        .collect();
    assert_eq!(messages, ["starting", "control", "ended"], "{log}");
    assert_eq!(lines[0]["memory_mib"], 16, "{log}");
    assert_eq!(lines[1]["status"], 200, "{log}");
    assert_eq!(lines[2]["status"], 16, "{log}");
    assert!(lines.iter().all(|l| l["timestamp"].is_string()), "{log}");
}
