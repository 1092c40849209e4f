//! vCPUs on threads of their own: paused, resumed, bound to CPUs, and given back.
#![allow(clippy::cast_possible_truncation)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{CODE, real};
use kvm_vcpu::{Error, Exit, GuestMemory, Vcpu, VcpuThread, VcpuThreadBuilder};
use rustix::thread::sched_getcpu;

/// inc dword [0x2000]; jmp back
const COUNT: [u8; 7] = [0x66, 0xff, 0x06, 0x00, 0x20, 0xeb, 0xf9];
/// inc eax; out 0x80, eax; jmp back
const TELL: [u8; 7] = [0x66, 0x40, 0x66, 0xe7, 0x80, 0xeb, 0xf9];

fn count(memory: &GuestMemory) -> u32 {
    memory.read_value(0x2000).unwrap()
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "it does not come");
        thread::sleep(Duration::from_millis(1));
    }
}

fn spawn(vcpu: Vcpu) -> VcpuThread<Exit> {
    VcpuThreadBuilder::new()
        .spawn(vcpu, |_, exit| ControlFlow::Break(exit))
        .unwrap()
}

#[test]
#[ignore = "needs kvm"]
fn a_paused_guest_executes_nothing_until_it_is_resumed() {
    let vcpu = real(&COUNT);
    let memory = vcpu.memory().clone();
    let thread = spawn(vcpu);
    for _ in 0..20 {
        let before = count(&memory);
        wait_until(|| count(&memory) != before);
        thread.handle().pause();
        thread.handle().pause();
        assert!(thread.handle().is_paused());
        let then = count(&memory);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(count(&memory), then);
        thread.handle().resume();
    }
    // Stopped while it is paused, and run again from there.
    thread.handle().pause();
    let then = count(&memory);
    let (mut vcpu, ended) = thread.stop().unwrap();
    assert_eq!(ended, None);
    assert_eq!(vcpu.settle().unwrap(), None);
    vcpu.handle().unwrap().resume();
    // A machine that is busy may not come to an instruction in one go.
    wait_until(|| {
        let deadline = Instant::now() + Duration::from_millis(20);
        assert_eq!(vcpu.run_until(deadline).unwrap(), Exit::TimedOut);
        count(&memory) != then
    });
}

#[test]
#[ignore = "needs kvm"]
fn kicks_and_deadlines_end_the_wait_of_a_paused_run() {
    let mut vcpu = real(&COUNT);
    let handle = vcpu.handle().unwrap();
    handle.pause();
    let deadline = Instant::now() + Duration::from_millis(20);
    assert_eq!(vcpu.run_until(deadline).unwrap(), Exit::TimedOut);
    assert!(Instant::now() >= deadline);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(20));
            handle.kick();
        });
        assert_eq!(vcpu.run().unwrap(), Exit::Kicked);
    });
    assert_eq!(count(vcpu.memory()), 0);
}

#[test]
#[ignore = "needs kvm"]
fn no_exit_is_lost_or_doubled_by_pauses() {
    let mut last = 0;
    let told = Arc::new(AtomicUsize::new(0));
    let counter = told.clone();
    let thread = VcpuThreadBuilder::new()
        .spawn(real(&TELL), move |_, exit| match exit {
            Exit::PortOut(out) if out.value() == last + 1 => {
                last += 1;
                counter.store(last as usize, Ordering::SeqCst);
                ControlFlow::Continue(())
            }
            other => ControlFlow::Break(other),
        })
        .unwrap();
    for round in 0..2000u32 {
        for _ in 0..(round * 7919) % 900 {
            std::hint::spin_loop();
        }
        thread.handle().pause();
        thread.handle().resume();
    }
    assert!(!thread.is_finished());
    let (vcpu, wrong) = thread.stop().unwrap();
    assert_eq!(wrong, None);
    let counted = vcpu.registers().unwrap().rax as usize;
    // The last may not have been told yet.
    assert!((0..=1).contains(&(counted - told.load(Ordering::SeqCst))));
}

#[test]
#[ignore = "needs kvm"]
fn a_thread_runs_where_it_is_bound_and_says_when_it_cannot() {
    let cpu = sched_getcpu();
    let thread = VcpuThreadBuilder::new()
        .name("bound")
        .affinity([cpu])
        .spawn(real(&TELL), |_, _| {
            let name = thread::current().name().map(str::to_owned);
            ControlFlow::Break((sched_getcpu(), name))
        })
        .unwrap();
    let (_, ended) = thread.join().unwrap();
    assert_eq!(ended, Some((cpu, Some("bound".to_owned()))));
    for nowhere in [1023, 1 << 20] {
        let bad = VcpuThreadBuilder::new().affinity([nowhere]);
        let e = bad
            .spawn(real(&TELL), |_, exit| ControlFlow::Break(exit))
            .unwrap_err();
        assert!(matches!(&e, Error::Affinity { id: 0, .. }), "{e}");
    }
}

#[test]
#[ignore = "needs kvm"]
fn dropping_a_thread_stops_it() {
    let vcpu = real(&COUNT);
    let memory = vcpu.memory().clone();
    let thread = spawn(vcpu);
    wait_until(|| count(&memory) > 0);
    drop(thread);
    let then = count(&memory);
    thread::sleep(Duration::from_millis(5));
    assert_eq!(count(&memory), then);
}

#[test]
#[ignore = "needs kvm"]
fn a_stopped_vcpu_has_finished_its_instruction() {
    // in al, 0x40; mov [0x2000], al; jmp back
    let thread = VcpuThreadBuilder::new()
        .spawn(
            real(&[0xe4, 0x40, 0xa2, 0x00, 0x20, 0xeb, 0xf9]),
            |vcpu, exit| match exit {
                Exit::PortIn(read) => match vcpu.reply(read.reply(7)) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(e) => ControlFlow::Break(e.to_string()),
                },
                other => ControlFlow::Break(format!("{other:?}")),
            },
        )
        .unwrap();
    thread::sleep(Duration::from_millis(5));
    let (vcpu, ended) = thread.stop().unwrap();
    assert_eq!(ended, None);
    let regs = vcpu.registers().unwrap();
    assert!(
        [CODE, CODE + 2, CODE + 5].contains(&regs.rip),
        "{:#x}",
        regs.rip
    );
}
