//! A shell in a container, as root: `cargo run --example shell -- ROOTFS [COMMAND…]`.
#![forbid(unsafe_code)]

use std::process::exit;

use namespaces::{Capabilities, Command, Mount, Namespace as N};

fn main() {
    let mut args = std::env::args_os().skip(1);
    let Some(rootfs) = args.next() else {
        eprintln!("usage: shell ROOTFS [COMMAND…]");
        exit(2);
    };
    let mut command = Command::new(args.next().unwrap_or_else(|| "/bin/sh".into()));
    command
        .args(args)
        .unshare([N::Pid, N::Mount, N::Uts, N::Ipc, N::Net, N::Cgroup])
        .root(rootfs)
        .mounts(Mount::standard())
        .hostname("cofferdam")
        .capabilities(Capabilities::container_default())
        .init(true);
    match command.status() {
        Ok(status) => exit(status.code().unwrap_or(1)),
        Err(error) => {
            eprintln!("shell: {error}");
            exit(error.shell_status().map_or(125, i32::from));
        }
    }
}
