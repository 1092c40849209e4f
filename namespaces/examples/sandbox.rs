//! A build that can neither reach the network nor write outside its directory:
//! `cargo run --example sandbox -- DIRECTORY COMMAND…`.
//!
//! The machine's own files are all there, read-only; `/tmp` is empty and private. Needs no
//! privilege.
#![forbid(unsafe_code)]

use std::path::Path;

use namespaces::{Capabilities, Command, Error, Limit, Mount, Namespace, Resource, UserMapping};

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, program, args @ ..] = args.as_slice() else {
        eprintln!("usage: sandbox DIRECTORY COMMAND…");
        std::process::exit(2);
    };
    let directory = Path::new(directory);
    let mut command = Command::new(program);
    command
        .args(args)
        .unshare([
            Namespace::Mount,
            Namespace::Pid,
            Namespace::Net,
            Namespace::Ipc,
            Namespace::Uts,
        ])
        .user_namespace(UserMapping::CallerAsRoot)
        .root("/")
        .root_tree_read_only(true)
        .mount(Mount::proc("/proc"))
        .mount(Mount::tmpfs("/tmp"))
        .mount(Mount::bind(directory, "/tmp/build"))
        .current_dir("/tmp/build")
        .capabilities(Capabilities::none())
        .no_new_privs(true)
        .die_with_parent(true)
        .rlimit(
            Resource::OpenFiles,
            Limit {
                soft: Some(1024),
                hard: Some(1024),
            },
        );
    let status = command.status()?;
    eprintln!("{status}");
    Ok(())
}
