//! What needs no container: `spec`, `features`, `--version`, and what is refused.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Bundle, OURS, stderr, stdout};
use serde_json::{Value, json};

fn ours(args: &[&str]) -> Output {
    Command::new(OURS).args(args).output().unwrap()
}

/// What `run` says of a configuration that it refuses.
fn refusal(change: impl FnOnce(&mut Bundle)) -> String {
    let mut bundle = Bundle::new(&["/bin/true"]);
    change(&mut bundle);
    let output = bundle.run();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let message = stderr(&output);
    let errors: Vec<&str> = message
        .lines()
        .filter(|line| !line.contains("warning"))
        .collect();
    assert_eq!(errors.len(), 1, "one line: {message}");
    errors[0].to_owned()
}

#[test]
fn spec_writes_a_configuration_and_never_over_one() {
    let directory = tempfile::tempdir().unwrap();
    let bundle = directory.path().to_str().unwrap();
    assert!(ours(&["spec", "--bundle", bundle]).status.success());
    let path = directory.path().join("config.json");
    let config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));

    fs::write(&path, "mine").unwrap();
    let again = ours(&["spec", "--bundle", bundle]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).contains("is not overwritten"),
        "{}",
        stderr(&again)
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");

    let nowhere = ours(&["spec", "--bundle", "/nonexistent"]);
    assert!(stderr(&nowhere).contains("/nonexistent/config.json"));
}

#[test]
fn the_version_is_told_as_engines_read_it() {
    let output = ours(&["--version"]);
    let text = stdout(&output);
    assert_eq!(stdout(&ours(&["-v"])), text);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("cofferdam-runtime version "), "{text}");
    assert!(lines[1].starts_with("commit: v"), "{text}");
    assert!(lines[2].starts_with("spec: 1."), "{text}");
}

#[test]
fn whoever_reads_may_have_enough() {
    for command in ["features", "list", "completions bash", "--help"] {
        let script = format!("{OURS} --root /nonexistent {command}; echo $? >&2");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(stderr(&output), "0\n", "{command}");
    }
}

#[test]
fn features_are_told_as_json() {
    let features: Value = serde_json::from_str(&stdout(&ours(&["features"]))).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    let options = features["mountOptions"].as_array().unwrap();
    assert!(options.contains(&json!("rbind")) && options.contains(&json!("rro")));
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_place() {
    let cases = [
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_NOTHING"}),
            "linux.seccomp.defaultAction: ",
        ),
        (
            "/linux/sysctl",
            json!({"vm.swappiness": "0"}),
            "linux.sysctl.vm.swappiness: ",
        ),
        (
            "/hooks",
            json!({"prestart": [{"path": "bin/true"}]}),
            "hooks.prestart[0].path: ",
        ),
        ("/windows", json!({"layerFolders": ["x"]}), "windows: "),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "d"}]),
            "linux.devices[0].type: ",
        ),
        (
            "/linux/personality",
            json!({"domain": "BSD"}),
            "linux.personality.domain: ",
        ),
        (
            "/linux/intelRdt",
            json!({"closID": "a/b"}),
            "linux.intelRdt.closID: ",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_NEVER"}),
            "process.scheduler.policy: ",
        ),
        (
            "/process/scheduler",
            json!({"policy": "SCHED_OTHER", "flags": ["SCHED_FLAG_UTIL_CLAMP_MIN"]}),
            "process.scheduler.flags[0]: ",
        ),
        (
            "/mounts/0/options",
            json!(["nosuid", "iversion"]),
            "mounts[0].options[1]: ",
        ),
        (
            "/hooks",
            json!({"poststop": [{"path": "/bin/true", "env": ["A=b", "C"]}]}),
            "hooks.poststop[0].env[1]: ",
        ),
        (
            "/process/execCPUAffinity",
            json!({"final": "two"}),
            "process.execCPUAffinity.final: ",
        ),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": 1}}),
            "linux.timeOffsets: ",
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/x", "type": "c", "major": 1}]),
            "linux.devices[0].minor: ",
        ),
        ("/linux/mountLabel", json!("a:b:c:d"), "linux.mountLabel: "),
        ("/process/args", json!([]), "process.args: "),
        ("/process/args/0", json!(1), "process.args[0]: "),
        ("/process/cwd", json!("relative"), "process.cwd: "),
        ("/process/env/0", json!("NOTHING"), "process.env[0]: "),
        (
            "/process/noNewPrivilege",
            json!(true),
            "process.noNewPrivilege: ",
        ),
        (
            "/process/rlimits/0/type",
            json!("RLIMIT_ALL"),
            "process.rlimits[0].type: ",
        ),
        (
            "/process/user",
            json!({"uid": "root"}),
            "process.user.uid: ",
        ),
        (
            "/mounts/0/options",
            json!(["remount", "tmpcopyup"]),
            "mounts[0].options: remount: ",
        ),
        ("/mounts/0/type", json!(""), "mounts[0].type: "),
        (
            "/mounts/-",
            json!({"destination": "/mnt", "source": "/nonexistent", "options": ["bind"]}),
            "mounts[7].source: ",
        ),
        (
            "/linux/namespaces/0/type",
            json!("network"),
            "linux.namespaces[1].type: ",
        ),
        (
            "/linux/namespaces/0/type",
            json!("pids"),
            "linux.namespaces[0].type: ",
        ),
        (
            "/linux/rootfsPropagation",
            json!("some"),
            "linux.rootfsPropagation: ",
        ),
        ("/linux/cgroupsPath", json!("../x"), "linux.cgroupsPath: "),
        (
            "/linux/resources/unified",
            json!({"cgroup.procs": "1"}),
            "linux.resources.unified.cgroup.procs: ",
        ),
        (
            "/linux/resources/memory",
            json!({"swap": 5}),
            "linux.resources.memory.swap: ",
        ),
        (
            "/linux/resources/cpu",
            json!({"cpus": "one"}),
            "linux.resources.cpu.cpus: ",
        ),
        (
            "/linux/resources/cpu",
            json!({"idle": 2}),
            "linux.resources.cpu.idle: ",
        ),
        ("/ociVersion", json!("2.0.0"), "ociVersion: "),
        ("/root/path", json!("nowhere"), "root.path: "),
        ("/root/path", json!("config.json"), "root.path: "),
    ];
    for (pointer, value, place) in cases {
        let message = refusal(|bundle| {
            bundle.set(pointer, value);
        });
        assert!(
            message.contains(&format!(" {place}")),
            "{pointer}: {message}"
        );
    }
}

#[test]
fn no_pivot_is_refused() {
    let output = ours(&["run", "--no-pivot", "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--no-pivot is refused"));
}

#[test]
fn a_bundle_without_a_configuration_is_told_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let output = ours(&["run", "--bundle", directory.path().to_str().unwrap(), "x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cofferdam-runtime spec"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn systemd_is_asked_only_where_it_has_the_groups() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    bundle.set("/linux/cgroupsPath", json!("/a/path"));
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    let refused = bundle.ours(&["--systemd-cgroup", "run", "--bundle", path, "x"]);
    assert_eq!(refused.status.code(), Some(1));
    let why = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "SLICE:PREFIX:NAME"
    } else {
        "this machine has control groups of v1"
    };
    assert!(stderr(&refused).contains(why), "{refused:?}");
}

#[test]
fn a_fifo_is_no_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.json");
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
    let mut child = Command::new(OURS)
        .args(["run", "--bundle"])
        .args([directory.path().as_os_str(), "x".as_ref()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begin.elapsed() > Duration::from_secs(30) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("it is not a file"), "{output:?}");
}

#[test]
fn a_name_that_leads_elsewhere_is_refused() {
    for id in ["../x", "a/b", ".."] {
        let output = ours(&["run", id]);
        assert_eq!(output.status.code(), Some(1), "{id}");
    }
}
