//! A running vCPU is stopped by other threads and by deadlines, and no exit is lost or doubled.
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::{CODE, machine, real};
use kvm_vcpu::{Exit, Mode, VcpuHandle};

/// jmp $
const FOREVER: [u8; 2] = [0xeb, 0xfe];

#[test]
#[ignore = "needs kvm"]
fn a_kick_before_the_run_stops_the_run() {
    let mut vcpu = real(&FOREVER);
    let handle = vcpu.handle().unwrap();
    handle.kick();
    handle.clone().kick();
    assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
    // Two kicks before one exit make one.
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(vcpu.run_until(deadline).unwrap(), Exit::TimedOut);
}

#[test]
#[ignore = "needs kvm"]
fn a_kick_from_another_thread_stops_a_guest_that_never_exits() {
    let mut vcpu = real(&FOREVER);
    let handle = vcpu.handle().unwrap();
    let kicker = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        let before = Instant::now();
        handle.kick();
        before
    });
    let exit = run_through_signals(|| vcpu.run().unwrap());
    let after = Instant::now();
    assert_eq!(exit, Exit::Kicked);
    let latency = after - kicker.join().unwrap();
    assert!(latency < Duration::from_secs(1), "{latency:?}");
}

#[test]
#[ignore = "needs kvm"]
fn a_handle_outlives_its_vcpu() {
    let vcpu = real(&FOREVER);
    let handle = vcpu.handle().unwrap();
    drop(vcpu);
    handle.kick();
}

#[test]
#[ignore = "needs kvm"]
fn deadlines_hold_one_after_another_and_on_another_thread() {
    let mut vcpu = real(&FOREVER);
    let mut times_out = || {
        for ms in [1, 20, 5] {
            let deadline = Instant::now() + Duration::from_millis(ms);
            let exit = run_through_signals(|| vcpu.run_until(deadline).unwrap());
            assert_eq!(exit, Exit::TimedOut);
            assert!(Instant::now() >= deadline);
        }
        // One that has passed already.
        let past = Instant::now();
        assert_eq!(vcpu.run_until(past).unwrap(), Exit::TimedOut);
    };
    times_out();
    thread::scope(|s| {
        s.spawn(times_out);
    });
}

#[test]
#[ignore = "needs kvm"]
fn one_deadline_covers_many_exits() {
    // out 0x80, al; jmp back
    let mut vcpu = real(&[0xe6, 0x80, 0xeb, 0xfc]);
    let deadline = Instant::now() + Duration::from_millis(50);
    let mut writes = 0;
    loop {
        match vcpu.run_until(deadline).unwrap() {
            Exit::PortOut(_) => writes += 1,
            Exit::Interrupted => {}
            Exit::TimedOut => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(writes > 10, "{writes}");
    // And what was set for it does not reach into runs without a deadline.
    for _ in 0..10 {
        assert!(matches!(vcpu.run().unwrap(), Exit::PortOut(_)));
    }
}

/// Kicks one vCPU `rounds` times at varying moments while it counts through a port, or as often as there
/// is time for; returns how often.
fn count_and_kick(rounds: u64, enough: Option<Instant>, id: u32, vm: &kvm_vcpu::Vm) -> u64 {
    let mut vcpu = vm.create_vcpu(id, &Mode::real(0, CODE as u16)).unwrap();
    let handle: VcpuHandle = vcpu.handle().unwrap();
    // Whether there is a kick that no run has returned.
    let expected = &AtomicBool::new(false);
    thread::scope(|scope| {
        let (returned, returns) = mpsc::channel();
        let kicker = scope.spawn(move || {
            for round in 0..rounds {
                if round >= 300 && enough.is_some_and(|enough| Instant::now() >= enough) {
                    return round;
                }
                // Somewhere between at once and a few exits later.
                for _ in 0..(round * 7919) % 1500 {
                    std::hint::spin_loop();
                }
                expected.store(true, Ordering::SeqCst);
                handle.kick();
                // A lost kick would wait here for ever.
                returns
                    .recv_timeout(Duration::from_mins(1))
                    .unwrap_or_else(|e| panic!("kick {round} was lost: {e}"));
            }
            rounds
        });
        let mut count = 0u32;
        let mut check = |exit| match exit {
            Exit::PortOut(out) => {
                count = count.wrapping_add(1);
                assert_eq!(out.value(), count, "an exit was lost or doubled");
            }
            Exit::Kicked => {
                let was_expected = expected.swap(false, Ordering::SeqCst);
                assert!(was_expected, "a kick was doubled");
                returned.send(()).unwrap();
            }
            Exit::Interrupted => {}
            other => panic!("{other:?}"),
        };
        while !kicker.is_finished() {
            check(vcpu.run().unwrap());
        }
        // None is left over.
        let deadline = Instant::now() + Duration::from_millis(5);
        loop {
            match vcpu.run_until(deadline).unwrap() {
                Exit::TimedOut => break,
                exit => check(exit),
            }
        }
        kicker.join().unwrap()
    })
}

#[test]
#[ignore = "needs kvm"]
fn kicks_at_any_moment_lose_and_double_nothing() {
    let (all, patience) = depth();
    for vcpus in 1..=4 {
        let vm = machine();
        // inc eax; out 0x80, eax; jmp back
        vm.write(CODE, &[0x66, 0x40, 0x66, 0xe7, 0x80, 0xeb, 0xf9])
            .unwrap();
        let rounds = all.div_ceil(4 * vcpus);
        let enough = patience.map(|patience| Instant::now() + patience);
        let kicks: u64 = thread::scope(|scope| {
            let vm = &vm;
            let run = |id| scope.spawn(move || count_and_kick(rounds, enough, id as u32, vm));
            let running: Vec<_> = (0..vcpus).map(run).collect();
            running.into_iter().map(|run| run.join().unwrap()).sum()
        });
        println!("{kicks} kicks of {vcpus} vCPUs");
    }
}

/// How many kicks the stress runs make together, and how long each of them may take.
///
/// With `PROPTEST_CASES` a thousand for each case, whatever time that takes. Else a hundred thousand, of
/// which a slow host makes as many as it comes to.
fn depth() -> (u64, Option<Duration>) {
    let cases = std::env::var("PROPTEST_CASES").ok();
    match cases.and_then(|n| n.parse::<u64>().ok()) {
        Some(cases) => (cases.saturating_mul(1000).clamp(4000, 1_000_000), None),
        None => (100_000, Some(Duration::from_secs(9))),
    }
}

/// A run may end for a signal that has nothing to do with us.
fn run_through_signals(mut run: impl FnMut() -> Exit) -> Exit {
    loop {
        match run() {
            Exit::Interrupted => {}
            exit => return exit,
        }
    }
}
