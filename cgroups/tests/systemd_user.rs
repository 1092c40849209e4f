//! Scopes of a user, made by their own manager without any privilege.

#![cfg(feature = "systemd")]

mod support;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use cgroups::{Bytes, Error, Limits, Max, Systemd, TransientUnit, Weight};
use support::{NOBODY, Running, as_nobody, shell, unique};

/// The user's manager, as logging in starts it; it ends with the test.
struct Manager(String);

impl Manager {
    fn start() -> Self {
        let manager = Self(format!("user@{NOBODY}.service"));
        assert!(manager.systemctl("start"), "{} does not start", manager.0);
        manager
    }

    fn systemctl(&self, verb: &str) -> bool {
        let status = Command::new("systemctl").args([verb, &self.0]).status();
        status.is_ok_and(|status| status.success())
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        let stopped = self.systemctl("stop");
        assert!(
            stopped || std::thread::panicking(),
            "{} does not stop",
            self.0
        );
    }
}

/// Runs one test of this program again, with only these addresses of D-Bus to go by.
fn again(test: &str, addresses: &[(&str, &str)]) -> Output {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .env_remove("XDG_RUNTIME_DIR")
        .envs(addresses.iter().copied())
        .env(INSIDE, test)
        .output()
        .expect("this program starts")
}

const INSIDE: &str = "COFFERDAM_TEST_INSIDE";

fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn assert_passed(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{errors}"
    );
}

#[test]
#[ignore = "needs systemd"]
fn a_user_makes_a_scope_of_their_own_and_works_in_it() {
    if !is_inside() {
        let _manager = Manager::start();
        let runtime_dir = format!("/run/user/{NOBODY}");
        let output = again(
            "a_user_makes_a_scope_of_their_own_and_works_in_it",
            &[("XDG_RUNTIME_DIR", &runtime_dir)],
        );
        assert_passed(&output);
        return;
    }
    let name = format!("{}.scope", unique());
    let process = Running(
        shell("exec sleep 100")
            .uid(NOBODY)
            .gid(NOBODY)
            .spawn()
            .expect("started"),
    );
    let pid = process.pid();
    as_nobody(|| {
        let systemd = Systemd::user();
        let limits = Limits::new()
            .cpu_weight(Weight::new(55).expect("in range"))
            .memory_max(Bytes::mib(64))
            .memory_oom_group(true)
            .pids_max(44);
        let unit = TransientUnit::scope(&name, pid)
            .expect("a good name")
            .limits(limits.clone())
            .delegate();
        let group = systemd.start(&unit).expect("one's own manager does it");
        let manager = format!("user.slice/user-{NOBODY}.slice/user@{NOBODY}.service");
        assert_eq!(
            group.path(),
            Path::new(&manager).join("app.slice").join(&name)
        );
        assert_eq!(group.processes().expect("read"), [pid]);
        let read = group.limits().expect("read");
        assert_eq!(read.cpu_weight, limits.cpu_weight);
        assert_eq!(read.memory_max, limits.memory_max);
        assert_eq!(read.memory_oom_group, limits.memory_oom_group);
        assert_eq!(read.pids_max, limits.pids_max);

        systemd
            .update(&name, &Limits::new().pids_max(22))
            .expect("changed");
        assert_eq!(
            group.limits().expect("read").pids_max,
            Some(Max::At(22)),
            "by the user's manager"
        );

        // What was delegated is the user's.
        let leaf = group.create("leaf").expect("created");
        leaf.attach(pid).expect("moved");
        leaf.apply(&Limits::new().pids_max(7)).expect("applied");
        assert_eq!(leaf.limits().expect("read").pids_max, Some(Max::At(7)));

        // To the machine's systemd this unit is unknown, and a scope of its own it refuses.
        let error = Systemd::system().cgroup(&name).expect_err("another's unit");
        assert!(matches!(error, Error::NotFound { .. }), "{error}");

        systemd.stop(&name).expect("stopped");
        assert!(!group.exists());
        let error = systemd.stop(&name).expect_err("gone");
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    });
}

#[test]
fn without_a_manager_the_error_says_what_to_do() {
    if !is_inside() {
        let nowhere = ("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent/bus");
        let output = again("without_a_manager_the_error_says_what_to_do", &[nowhere]);
        assert_passed(&output);
        return;
    }
    let error = Systemd::user().version().expect_err("no address");
    let message = error.to_string();
    assert!(matches!(error, Error::NoSystemd { .. }), "{message}");
    for hint in ["XDG_RUNTIME_DIR", "loginctl enable-linger"] {
        assert!(message.contains(hint), "{message}");
    }
    let error = Systemd::system().version().expect_err("no such socket");
    let message = error.to_string();
    assert!(matches!(error, Error::NoSystemd { .. }), "{message}");
    assert!(message.contains("/nonexistent/bus"), "{message}");
}
