//! A container without privilege: `cargo run --example rootless -- ROOTFS COMMAND…`.
//!
//! Root inside is the caller. Other ids come from `/etc/subuid` and `/etc/subgid` where the
//! caller has a range there; without one the container has a single id, and says so.
#![forbid(unsafe_code)]

use std::path::Path;

use namespaces::{Command, Error, Mount, Namespace, UserMapping};

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [rootfs, program, args @ ..] = args.as_slice() else {
        eprintln!("usage: rootless ROOTFS COMMAND…");
        std::process::exit(2);
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .unshare(Namespace::ALL)
        .user_namespace(UserMapping::Subordinate)
        .root(Path::new(rootfs))
        .mounts(Mount::standard())
        .hostname("rootless");
    // The process exists in its namespaces, with its ids mapped, and waits.
    let starting = command.start()?;
    if let Some(ids) = starting.id_mapping() {
        for range in ids.uids.as_ranges() {
            let (inside, outside) = (range.inside, range.outside);
            eprintln!("{} ids from {inside} are {outside} outside", range.count);
        }
        if let Some(reason) = &ids.degraded {
            eprintln!("{reason}");
        }
    }
    let status = starting.exec()?.wait()?;
    eprintln!("{status}");
    Ok(())
}
