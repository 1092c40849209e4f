//! A machine that seems to have been up for a year: `cargo run --example clock`.
//!
//! A time namespace shifts the monotonic and the boot-time clock; a migrated container keeps its
//! clocks in this way. Linux 5.6.
#![forbid(unsafe_code)]

use namespaces::{Command, Error, Namespace, TimeOffset, UserMapping};

fn main() -> Result<(), Error> {
    let year = TimeOffset {
        seconds: 365 * 24 * 60 * 60,
        nanoseconds: 0,
    };
    for offset in [TimeOffset::default(), year] {
        let mut command = Command::new("cat");
        command
            .arg("/proc/uptime")
            .unshare([Namespace::Time])
            .user_namespace(UserMapping::CallerAsRoot)
            .time_offsets(offset, offset);
        command.status()?;
    }
    Ok(())
}
