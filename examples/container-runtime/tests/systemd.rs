//! Containers in scopes of systemd, where it is process 1.

mod common;

use std::fs::{self, File};
use std::process::{Command, Stdio};

use common::{Bundle, OURS, stdout, unique};
use serde_json::json;

#[test]
#[ignore = "needs systemd"]
fn the_container_is_a_scope_with_its_limits() {
    let mut bundle = Bundle::new(&["sh", "-c", "sleep 1000"]);
    let name = unique();
    bundle
        .set(
            "/linux/cgroupsPath",
            json!(format!("system.slice:box:{name}")),
        )
        .set("/linux/resources/memory", json!({"limit": 64 << 20}))
        .set("/linux/resources/pids", json!({"limit": 33}));
    bundle.write();
    let path = bundle.path().to_str().unwrap();
    // The container keeps these open, so that a pipe would not end with the command.
    let said = File::create(bundle.path().join("said")).unwrap();
    let run = Command::new(OURS)
        .arg("--root")
        .arg(bundle.state())
        .args([
            "--systemd-cgroup",
            "run",
            "--detach",
            "--bundle",
            path,
            &name,
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .status()
        .unwrap();
    let said = fs::read_to_string(bundle.path().join("said")).unwrap();
    assert!(run.success(), "{said}");
    let unit = format!("box-{name}.scope");
    let shown = |property: &str| {
        let output = Command::new("systemctl")
            .args(["show", "--value", "--property", property, &unit])
            .output()
            .unwrap();
        stdout(&output).trim().to_owned()
    };
    assert_eq!(shown("ActiveState"), "active");
    assert_eq!(shown("MemoryMax"), (64 << 20).to_string());
    assert_eq!(shown("TasksMax"), "33");
    assert_eq!(shown("ControlGroup"), format!("/system.slice/{unit}"));
    // The container sees itself at the top.
    assert_eq!(
        bundle.done(&["exec", &name, "cat", "/proc/self/cgroup"]),
        "0::/\n"
    );
    bundle.done(&["update", "--memory", "32M", &name]);
    assert_eq!(shown("MemoryMax"), (32 << 20).to_string());
    bundle.done(&["pause", &name]);
    bundle.done(&["resume", &name]);
    bundle.done(&["delete", "--force", &name]);
    assert_ne!(shown("ActiveState"), "active");
}
