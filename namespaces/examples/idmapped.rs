//! A directory with other owners: `cargo run --example idmapped -- DIRECTORY UID`, as root.
//!
//! Files of root in DIRECTORY are shown as files of UID, and files that UID makes there are
//! root's: an idmapped mount shifts ids, nothing on the disk is changed. Linux 5.12.
#![forbid(unsafe_code)]

use namespaces::{Command, IdMap, Mount, Namespace, UserMapping, user_namespace};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [directory, uid] = args.as_slice() else {
        eprintln!("usage: idmapped DIRECTORY UID");
        std::process::exit(2);
    };
    let map = IdMap::single(0, uid.parse()?);
    let ids = user_namespace(UserMapping::Exact {
        uids: map.clone(),
        gids: map,
    })?;
    let mut command = Command::new("ls");
    command
        .args(["-ln", directory])
        .unshare([Namespace::Mount])
        .mount(Mount::bind(directory, directory).idmapped(&ids)?);
    let status = command.status()?;
    eprintln!("{status}");
    Ok(())
}
