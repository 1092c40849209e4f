//! Containers that criu writes to disk and makes again.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Bundle, create, stderr, unique};
use serde_json::json;

/// Counts in a file of its root filesystem.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i > /count.new; \
                       busybox mv /count.new /count; sleep 0.1; done";

fn bundle() -> Bundle {
    let mut bundle = Bundle::new(&["/bin/sh", "-c", COUNTER]);
    bundle
        .set("/root/readonly", json!(false))
        .set("/linux/cgroupsPath", json!(format!("/{}", unique())))
        .set("/linux/resources/pids", json!({"limit": 50}));
    // What is shared with this machine is not saved.
    bundle.set(
        "/mounts/-",
        json!({"destination": "/srv", "source": "/etc", "options": ["rbind", "ro"]}),
    );
    bundle
}

fn count(bundle: &Bundle) -> u32 {
    let text = fs::read_to_string(bundle.rootfs().join("count"));
    text.ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn counts_beyond(bundle: &Bundle, number: u32) {
    let begin = Instant::now();
    while count(bundle) <= number {
        assert!(
            begin.elapsed() < Duration::from_mins(2),
            "never beyond {number}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What criu has said, for a test that fails.
fn logs(directory: &Path) -> String {
    ["dump.log", "restore.log"]
        .iter()
        .filter_map(|name| fs::read_to_string(directory.join(name)).ok())
        .collect()
}

#[test]
#[ignore = "needs lab"]
fn a_counter_goes_on_where_it_was() {
    let bundle = bundle();
    let path = bundle.path().to_str().unwrap().to_owned();
    let id = unique();
    create(&bundle, &id, &[]);
    bundle.done(&["start", &id]);
    counts_beyond(&bundle, 3);

    let images = bundle.path().join("images");
    let dir = images.to_str().unwrap();
    let before = bundle.path().join("before");
    // First the memory while it runs, then what has changed since.
    let steps = [
        vec!["--image-path", before.to_str().unwrap(), "--pre-dump"],
        vec![
            "--image-path",
            dir,
            "--parent-path",
            "../before",
            "--leave-running",
        ],
        // Its network is only the loopback interface.
        vec!["--image-path", dir, "--empty-ns", "network"],
    ];
    for step in steps {
        let mut line = vec!["checkpoint"];
        line.extend(&step);
        line.push(&id);
        let saved = bundle.ours(&line);
        assert!(
            saved.status.success(),
            "{step:?}: {}\n{}",
            stderr(&saved),
            logs(&images)
        );
        let there = bundle.ours(&["state", &id]).status.success();
        let stays = ["--pre-dump", "--leave-running"];
        assert_eq!(
            there,
            step.iter().any(|word| stays.contains(word)),
            "{step:?}"
        );
    }
    let saved = count(&bundle);

    let pid_file = bundle.path().join("pid");
    // In place of the file that the container's output went to.
    let said = bundle.path().join("said");
    let output = fs::File::create(&said).unwrap();
    let restored = bundle
        .command_of(&[
            "restore",
            "--detach",
            "--bundle",
            &path,
            "--image-path",
            dir,
            "--empty-ns",
            "network",
            "--no-subreaper",
            "--pid-file",
            pid_file.to_str().unwrap(),
            &id,
        ])
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .status()
        .unwrap();
    assert!(
        restored.success(),
        "{}\n{}",
        fs::read_to_string(said).unwrap(),
        logs(&images)
    );
    counts_beyond(&bundle, saved + 3);
    let state: serde_json::Value = serde_json::from_str(&bundle.done(&["state", &id])).unwrap();
    assert_eq!(state["status"], "running");
    let pid = fs::read_to_string(&pid_file).unwrap();
    assert_eq!(state["pid"].to_string(), pid.trim());
    // It has its limits again, and can be entered.
    let group = bundle.config["linux"]["cgroupsPath"].as_str().unwrap();
    let limit = fs::read_to_string(format!("/sys/fs/cgroup{group}/pids.max")).unwrap();
    assert_eq!(limit.trim(), "50");
    let procs = fs::read_to_string(format!("/sys/fs/cgroup{group}/cgroup.procs")).unwrap();
    assert!(procs.lines().any(|line| line == pid.trim()), "{procs}");
    assert_eq!(bundle.done(&["exec", &id, "echo", "in"]), "in\n");
    bundle.done(&["delete", "--force", &id]);
    assert!(!Path::new(&format!("/sys/fs/cgroup{group}")).exists());
}

#[test]
#[ignore = "needs lab"]
fn what_cannot_be_saved_is_told() {
    let mut bundle = bundle();
    let id = unique();
    bundle.set("/hooks", json!({"prestart": [{"path": "/bin/true"}]}));
    bundle.write();
    let path = bundle.path().to_str().unwrap().to_owned();
    let refused = bundle.ours(&["restore", "--bundle", &path, &id]);
    assert!(stderr(&refused).contains("hooks.prestart: "), "{refused:?}");
    let mode = bundle.ours(&["checkpoint", "--manage-cgroups-mode", "some", &id]);
    assert!(
        stderr(&mode).contains("container does not exist"),
        "{mode:?}"
    );
    bundle.set("/hooks", json!({}));
    bundle.write();
    let empty = bundle.path().join("empty");
    let nothing = bundle.ours(&[
        "restore",
        "--bundle",
        &path,
        "--image-path",
        empty.to_str().unwrap(),
        &id,
    ]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(
        stderr(&nothing).contains("criu restore failed"),
        "{nothing:?}"
    );
    // Nothing of it is left.
    assert!(!bundle.ours(&["state", &id]).status.success());
    let group = bundle.config["linux"]["cgroupsPath"].as_str().unwrap();
    assert!(!Path::new(&format!("/sys/fs/cgroup{group}")).exists());
}
