//! Runs a program with little memory and reports whether the OOM killer ended it.
//!
//! As root: `cargo run --example limit_memory -- 16MiB tail /dev/zero`

use std::error::Error;
use std::process::{Command, ExitCode};

use cgroups::{Bytes, Error as GroupError, Hierarchy, Knob, Limits};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let size = arguments.next().and_then(|size| size.into_string().ok());
    let (Some(size), Some(program)) = (size, arguments.next()) else {
        eprintln!("usage: limit_memory SIZE PROGRAM [ARGUMENT…]");
        return Ok(ExitCode::FAILURE);
    };
    let size: Bytes = size.parse()?;

    let name = format!("limit-memory-{}", std::process::id());
    let group = Hierarchy::detect()?.create(name)?.guard();
    let mut limits = Limits::new().memory_max(size).memory_swap_max(Bytes::ZERO);
    match group.apply(&limits) {
        Err(GroupError::Unsupported {
            knob: knob @ Knob::MemorySwapMax,
            ..
        }) => {
            eprintln!("this kernel does not account for swap, which stays unlimited");
            limits.unset(knob);
            group.apply(&limits)?;
        }
        other => other?,
    }

    let mut command = Command::new(program);
    command.args(arguments);
    let status = group.spawn(command)?.wait()?;
    println!("{status}");
    if let Some(memory) = group.memory_stats()? {
        if let Some(peak) = memory.peak {
            println!("at most {peak} of {size} in use");
        }
        match memory.events.oom_kill {
            Some(0) => println!("the OOM killer had nothing to do"),
            Some(kills) => println!("processes ended by the OOM killer: {kills}"),
            None => println!("this kernel does not count OOM kills"),
        }
    }

    // The program may have left children behind.
    group.kill()?;
    group.close()?;
    Ok(ExitCode::SUCCESS)
}
