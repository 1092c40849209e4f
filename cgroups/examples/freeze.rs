//! Stops a program in the middle, shows that it uses no time, and lets it go on.
//!
//! As root: `cargo run --example freeze`

use std::error::Error;
use std::process::{Command, ExitCode};
use std::time::Duration;

use cgroups::{Cgroup, Hierarchy};

fn used(group: &Cgroup) -> cgroups::Result<Duration> {
    Ok(group.cpu_stats()?.map_or(Duration::ZERO, |cpu| cpu.usage))
}

fn report(group: &Cgroup, what: &str) -> cgroups::Result<()> {
    let before = used(group)?;
    std::thread::sleep(Duration::from_millis(300));
    println!(
        "{what}: {:?} used in 300 ms",
        used(group)?.saturating_sub(before)
    );
    Ok(())
}

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let name = format!("freeze-{}", std::process::id());
    let group = Hierarchy::detect()?.create(name)?.guard();
    let mut busy = Command::new("sh");
    busy.args(["-c", "while :; do :; done"]);
    let mut child = group.spawn(busy)?;
    let patience = Duration::from_secs(10);

    report(&group, "running")?;
    group.freeze()?;
    group.wait_frozen(patience)?;
    report(&group, "frozen")?;
    group.thaw()?;
    group.wait_thawed(patience)?;
    report(&group, "thawed")?;

    group.kill()?;
    group.wait_empty(patience)?;
    child.wait()?;
    group.close()?;
    Ok(ExitCode::SUCCESS)
}
