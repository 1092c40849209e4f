//! Runs a command inside the namespaces of a process: `cargo run --example join -- PID COMMAND…`.
//!
//! What `docker exec` and `nsenter` do. Without privilege it works for processes in a user
//! namespace of the caller's own.
#![forbid(unsafe_code)]

use namespaces::{Command, Error, Namespace, NamespaceId};

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (Some(Ok(pid)), [_, program, args @ ..]) =
        (args.first().map(|pid| pid.parse()), args.as_slice())
    else {
        eprintln!("usage: join PID COMMAND…");
        std::process::exit(2);
    };
    let mut command = Command::new(program);
    command.args(args);
    for kind in Namespace::ALL {
        let theirs = NamespaceId::of_process(pid, kind)?;
        // Only those that differ: one's own user namespace cannot be joined again.
        if theirs != NamespaceId::of_this_thread(kind)? {
            eprintln!("joining {theirs}");
            command.join_path(kind, format!("/proc/{pid}/ns/{}", kind.proc_name()));
        }
    }
    let status = command.status()?;
    eprintln!("{status}");
    Ok(())
}
