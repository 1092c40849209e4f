//! Runs a command where another process is: `cargo run --example join -- PID COMMAND…`.
//!
//! What `docker exec` and `nsenter` do. Without privilege it works for processes in a user
//! namespace of the caller's own.
#![forbid(unsafe_code)]

use namespaces::{Command, Error, NamespaceId, Process};

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(Ok(pid)), [_, program, args @ ..]) =
        (args.first().map(|pid| pid.parse()), args.as_slice())
    else {
        eprintln!("usage: join PID COMMAND…");
        std::process::exit(2);
    };
    let Some(process) = Process::open(pid)? else {
        eprintln!("join: there is no process {pid}");
        std::process::exit(1);
    };
    for theirs in NamespaceId::all_of_process(pid)? {
        if theirs != NamespaceId::of_this_thread(theirs.kind())? {
            eprintln!("entering {theirs}");
        }
    }
    let status = Command::new(program).args(args).enter(&process).status()?;
    eprintln!("{status}");
    Ok(())
}
