//! Hands a group with limits to a user, who then makes groups of their own in it.
//!
//! As root: `cargo run --example delegate -- 65534`

use std::error::Error;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use cgroups::{Controller, Hierarchy, Limits};

fn main() -> ExitCode {
    run().unwrap_or_else(|error| {
        eprintln!("{error}");
        ExitCode::FAILURE
    })
}

fn run() -> Result<ExitCode, Box<dyn Error>> {
    let Some(uid) = std::env::args().nth(1) else {
        eprintln!("usage: delegate UID");
        return Ok(ExitCode::FAILURE);
    };
    let uid: u32 = uid.parse()?;

    let name = format!("delegate-{}", std::process::id());
    let group = Hierarchy::detect()?.create(name)?.guard();
    group.apply(&Limits::new().pids_max(20))?;
    let home = group.create("home")?;
    home.enable(Controller::Pids)?;
    home.delegate(uid, uid)?;

    // The user's shell: their own groups they may make, the limit above them they may not touch.
    let Some(inside) = home.directories().next() else {
        return Ok(ExitCode::FAILURE);
    };
    let script = "mkdir own && echo 'made a group' && rmdir own
        for limit in ../pids.max ../cgroup.max.depth; do
            test -e $limit && ! sh -c \"echo max > $limit\" 2>/dev/null && echo \"$limit is safe\"
        done; true";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script])
        .current_dir(inside)
        .uid(uid)
        .gid(uid);
    let status = group.create("shell")?.spawn(shell)?.wait()?;
    println!("{status}");

    group.kill()?;
    group.close()?;
    Ok(ExitCode::SUCCESS)
}
