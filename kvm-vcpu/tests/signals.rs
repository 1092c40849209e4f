//! The signal that stops vCPUs is one that the program leaves to them.

mod common;

use std::env;
use std::process::Command;
use std::thread;
use std::time::Duration;

use common::real;
use kvm_vcpu::{Error, Exit, set_kick_signal};

/// Set in the process that ignores the signal which is the default.
const IGNORES: &str = "KVM_VCPU_TEST_IGNORES_SIGNAL";

/// jmp $
const FOREVER: [u8; 2] = [0xeb, 0xfe];

#[test]
#[ignore = "needs kvm"]
fn a_signal_that_the_program_uses_is_refused() {
    let default = libc::SIGRTMIN() + 4;
    if env::var_os(IGNORES).is_none() {
        // A signal that is ignored stays so in the program that a shell becomes.
        let output = Command::new("sh")
            .args(["-c", &format!("trap '' {default}; exec \"$0\" \"$@\"")])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "a_signal_that_the_program_uses_is_refused"])
            .args(["--ignored", "--nocapture"])
            .env(IGNORES, "1")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        assert!(text.contains("test result: ok. 1 passed"), "{text}");
        return;
    }
    let vcpu = real(&FOREVER);
    let e = vcpu.handle().unwrap_err();
    assert!(
        matches!(e, Error::SignalInUse { signal } if signal == default),
        "{e:?}"
    );
    assert!(e.to_string().contains("set_kick_signal"), "{e}");
    // Another one serves.
    set_kick_signal(default + 1).unwrap();
    vcpu.handle().unwrap();
}

#[test]
#[ignore = "needs kvm"]
fn the_signal_is_chosen_once_and_stops_vcpus() {
    // Tests share this process, and the other one uses none in it.
    let chosen = libc::SIGRTMAX() - 1;
    for signal in [0, libc::SIGUSR1, libc::SIGRTMAX() + 1, -1] {
        let e = set_kick_signal(signal).unwrap_err();
        assert!(matches!(e, Error::BadSignal { .. }), "{signal}: {e:?}");
    }
    set_kick_signal(libc::SIGRTMAX()).unwrap();
    set_kick_signal(chosen).unwrap();
    let mut vcpu = real(&FOREVER);
    let handle = vcpu.handle().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            handle.kick();
        });
        loop {
            match vcpu.run().unwrap() {
                Exit::Interrupted => {}
                exit => break assert_eq!(exit, Exit::Kicked),
            }
        }
    });
    // Handlers are installed: it stays.
    set_kick_signal(chosen).unwrap();
    let e = set_kick_signal(chosen - 1).unwrap_err();
    assert!(matches!(e, Error::BadSignal { .. }), "{e:?}");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
    assert_ne!(caught & 1 << (chosen - 1), 0, "{caught:x}");
    assert_eq!(caught & 1 << (libc::SIGRTMIN() + 3), 0, "{caught:x}");
}
