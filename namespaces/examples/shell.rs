//! A shell in a container, as root: `cargo run --example shell -- ROOTFS [COMMAND…]`.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use namespaces::{Capabilities, Command, Error, Mount, Namespace};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(rootfs) = args.next() else {
        eprintln!("usage: shell ROOTFS [COMMAND…]");
        return ExitCode::from(2);
    };
    match run(rootfs.into(), args.collect()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("shell: {error}");
            ExitCode::from(error.shell_status().unwrap_or(125))
        }
    }
}

fn run(rootfs: PathBuf, args: Vec<std::ffi::OsString>) -> Result<u8, Error> {
    let mut args = args.into_iter();
    let mut command = Command::new(args.next().unwrap_or_else(|| "/bin/sh".into()));
    let everything_but_user = Namespace::ALL
        .into_iter()
        .filter(|kind| *kind != Namespace::User);
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("TERM", std::env::var_os("TERM").unwrap_or_default())
        .unshare(everything_but_user)
        .root(rootfs)
        .mounts(Mount::standard())
        .hostname("cofferdam")
        .capabilities(Capabilities::container_default());
    let status = command.status()?;
    // Killed by a signal: 128 and its number, as shells do.
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    let code = status.code().or(signal.map(|signal| 128 + signal));
    Ok(code.and_then(|code| code.try_into().ok()).unwrap_or(125))
}
