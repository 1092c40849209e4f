//! A shell in a container, as root: `cargo run --example shell -- ROOTFS [COMMAND…]`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::exit;

use namespaces::{Capabilities, Command, Mount, Namespace as N};

fn main() {
    let mut args = std::env::args_os().skip(1);
    let Some(rootfs) = args.next().map(PathBuf::from) else {
        eprintln!("usage: shell ROOTFS [COMMAND…]");
        exit(2);
    };
    let mut command = Command::new(args.next().unwrap_or_else(|| "/bin/sh".into()));
    command
        .args(args)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .unshare([N::Pid, N::Mount, N::Uts, N::Ipc, N::Net, N::Cgroup])
        .root(rootfs)
        .mounts(Mount::standard())
        .hostname("cofferdam")
        .capabilities(Capabilities::container_default())
        .init(true);
    let code = match command.status() {
        Ok(status) => status.code(),
        Err(error) => {
            eprintln!("shell: {error}");
            error.shell_status().map(i32::from)
        }
    };
    exit(code.unwrap_or(125));
}
