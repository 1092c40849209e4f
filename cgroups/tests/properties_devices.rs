//! Device rules, decided by the kernel for real processes.

mod support;

use std::process::{Command, Stdio};

use cgroups::{
    Access, Controller, DeviceKind, DeviceNumber, DeviceRule, DeviceRules, Devices, Error,
    Hierarchy,
};
use proptest::prelude::*;
use support::{Scratch, shell};

/// Devices that every machine has and that nothing happens to.
const NODES: [(&str, u32); 4] = [
    ("/dev/null", 3),
    ("/dev/zero", 5),
    ("/dev/full", 7),
    ("/dev/urandom", 9),
];

/// Nodes that are made, which takes a program each. Nobody need drive them.
const MADE: [(DeviceKind, DeviceNumber); 4] = [
    (DeviceKind::Char, DeviceNumber::new(1, 5)),
    (DeviceKind::Char, DeviceNumber::new(60, 3)),
    (DeviceKind::Block, DeviceNumber::new(60, 3)),
    (DeviceKind::Block, DeviceNumber::new(1, 7)),
];

/// Tries everything from inside the group. A letter for each node and kind of access.
fn try_all(scratch: &Scratch) -> Vec<bool> {
    let directory = std::env::temp_dir().join(support::unique());
    std::fs::create_dir(&directory).expect("created");
    let mut script = String::from("exec 2>&-\n");
    for (path, _) in NODES {
        // Redirections of `true`, a builtin, cost no process.
        script.push_str(&answer(&format!("true < {path}")));
        script.push_str(&answer(&format!("true > {path}")));
    }
    for (index, (kind, number)) in MADE.into_iter().enumerate() {
        let node = directory.join(index.to_string());
        let kind = if kind == DeviceKind::Char { 'c' } else { 'b' };
        let (major, minor) = (number.major, number.minor);
        script.push_str(&answer(&format!(
            "mknod {} {kind} {major} {minor}",
            node.display()
        )));
    }
    let mut command = shell(&script);
    command.stdout(Stdio::piped());
    let child = scratch.spawn(command).expect("started");
    let output = child.wait_with_output().expect("waited");
    std::fs::remove_dir_all(&directory).expect("removed");
    let text = String::from_utf8(output.stdout).expect("letters");
    text.lines().map(|line| line == "y").collect()
}

fn answer(attempt: &str) -> String {
    format!("{attempt} && echo y || echo n\n")
}

fn expected(rules: &DeviceRules) -> Vec<bool> {
    let opened = NODES.into_iter().flat_map(|(_, minor)| {
        [Access::READ, Access::WRITE]
            .map(|access| (DeviceKind::Char, DeviceNumber::new(1, minor), access))
    });
    let made = MADE.map(|(kind, number)| (kind, number, Access::MKNOD));
    opened
        .chain(made)
        .map(|(kind, number, access)| rules.permits(kind, number, access))
        .collect()
}

fn rule() -> impl Strategy<Value = DeviceRule> {
    let kind = prop_oneof![
        1 => Just(None),
        2 => Just(Some(DeviceKind::Block)),
        6 => Just(Some(DeviceKind::Char))
    ];
    let minor = prop::option::weighted(0.8, prop::sample::select(vec![3_u32, 5, 7, 9]));
    let access = prop::sample::select(vec![
        Access::READ,
        Access::WRITE,
        Access::MKNOD,
        Access::READ | Access::WRITE,
        Access::ALL,
    ]);
    let major = prop::option::weighted(0.9, prop::sample::select(vec![1_u32, 1, 2, 60]));
    (any::<bool>(), kind, major, minor, access).prop_map(|(allow, kind, major, minor, access)| {
        DeviceRule {
            allow,
            devices: Devices { kind, major, minor },
            access,
        }
    })
}

fn config() -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 10;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    #[ignore = "needs root"]
    fn the_kernel_decides_as_the_rules_do(
        lists in prop::collection::vec((any::<bool>(), prop::collection::vec(rule(), 0..6)), 1..3),
    ) {
        let scratch = Scratch::new();
        // One after another in the same group: each replaces the one before.
        for (allow, list) in lists {
            let mut rules = if allow {
                DeviceRules::allow_all()
            } else {
                DeviceRules::deny_all()
            };
            rules.extend(list);
            match scratch.set_devices(&rules) {
                Ok(()) => prop_assert_eq!(try_all(&scratch), expected(&rules), "{:?}", rules),
                Err(Error::InexpressibleRule { rule, .. }) => {
                    prop_assert!(rules.rules().contains(&rule));
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
    }
}

#[test]
#[ignore = "needs root"]
fn an_update_replaces_and_a_child_gets_no_more() {
    let scratch = Scratch::new();
    let null = Devices::char(DeviceNumber::new(1, 3));
    let only_null = DeviceRules::deny_all().allow(null, Access::READ | Access::WRITE);
    // More often than the kernel admits programs in one group.
    for _ in 0..70 {
        scratch.set_devices(&only_null).expect("set");
    }
    assert_eq!(try_all(&scratch), expected(&only_null));
    let child = Scratch::within(&scratch, "child");
    let everything = DeviceRules::allow_all();
    match child.set_devices(&everything) {
        // v2 takes it, and both programs must agree; v1 refuses, or takes it as a copy.
        Ok(()) => assert_eq!(try_all(&child), expected(&only_null)),
        Err(error) => assert!(matches!(error, Error::Refused { .. }), "{error}"),
    }
    // v1 changes no default above a child; nothing has happened then, so nothing is put back.
    match scratch.set_devices(&DeviceRules::deny_all()) {
        Ok(()) => assert!(!try_all(&scratch).contains(&true)),
        Err(error) => {
            assert!(matches!(error, Error::Refused { .. }), "{error}");
            assert_eq!(try_all(&scratch), expected(&only_null));
        }
    }
}

/// On a machine with v1's devices controller the same once more, without it.
#[test]
#[ignore = "needs root"]
fn the_program_of_v2_decides_as_the_rules_do() {
    let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
    let prepare = match hierarchy.mount_point_of(Controller::Devices) {
        Some(v1) => format!("umount {}", v1.display()),
        None => String::from("true"),
    };
    let script = format!(
        "{prepare} && exec \"$0\" --exact the_kernel_decides_as_the_rules_do --include-ignored"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(std::env::current_exe().expect("this program"))
        .output()
        .expect("unshare(1) runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}
