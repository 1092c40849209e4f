//! Shows how much time a program loses to waiting while it runs with little processor time.
//!
//! As root: `cargo run --example watch_pressure -- 0.2 sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done'`

use std::error::Error;
use std::process::{Command, ExitCode};
use std::time::Duration;

use cgroups::{CpuQuota, Error as GroupError, Hierarchy, Limits, Resource, Threshold};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let cpus = arguments.next().and_then(|cpus| cpus.into_string().ok());
    let (Some(cpus), Some(program)) = (cpus, arguments.next()) else {
        eprintln!("usage: watch_pressure CPUS PROGRAM [ARGUMENT…]");
        return Ok(ExitCode::FAILURE);
    };

    let name = format!("watch-pressure-{}", std::process::id());
    let group = Hierarchy::detect()?.create(name)?.guard();
    group.apply(&Limits::new().cpu_max(CpuQuota::cpus(cpus.parse()?)?))?;
    let trigger = group.pressure_trigger(
        Resource::Cpu,
        Threshold {
            full: false,
            stall: Duration::from_millis(200),
            window: Duration::from_secs(2),
        },
    );
    let trigger = match trigger {
        Err(error @ GroupError::NeedsCapability { .. }) => {
            eprintln!("only the totals, because {error}");
            None
        }
        other => Some(other?),
    };

    let mut command = Command::new(program);
    command.args(arguments);
    let mut child = group.spawn(command)?;
    while child.try_wait()?.is_none() {
        let pause = Duration::from_millis(250);
        match &trigger {
            Some(trigger) => {
                if trigger.wait(pause)? {
                    println!("more than 200 ms lost within 2 s");
                }
            }
            None => std::thread::sleep(pause),
        }
    }

    let pressure = group.pressure(Resource::Cpu)?;
    if let Some(some) = pressure.and_then(|pressure| pressure.some) {
        println!("lost in all: {:?}", some.total);
    }
    group.kill()?;
    group.close()?;
    Ok(ExitCode::SUCCESS)
}
