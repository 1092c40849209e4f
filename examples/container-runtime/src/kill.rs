//! `kill`: sending a signal.

use anyhow::{Context as _, Result, bail};
use namespaces::Process;

use crate::cli::Kill;
use crate::group;
use crate::store::Store;

const SIGKILL: i32 = 9;

/// Sends a signal to a container.
pub(crate) fn kill(store: &Store, options: &Kill) -> Result<()> {
    let signal = number(&options.signal)?;
    let state = store.open(&options.id)?.state()?;
    if options.all {
        return kill_all(&state.cgroup, signal);
    }
    let process = state.running_process()?;
    let cannot = || format!("cannot send signal {signal} to the container");
    match process.signal(signal) {
        // It has ended since.
        Err(_) if process.has_ended()? => bail!("container not running: {}", state.id),
        sent => sent.with_context(cannot)?,
    }
    if signal == SIGKILL && group::is_frozen(&state.cgroup) {
        // On v1 a frozen process would keep the signal for later.
        group::open(&state.cgroup)?.thaw()?;
    }
    Ok(())
}

fn kill_all(place: &group::Place, signal: i32) -> Result<()> {
    let Some(group) = group::find(place)? else {
        // Nothing runs where there is no group.
        return Ok(());
    };
    if signal == SIGKILL {
        return Ok(group.kill()?);
    }
    for pid in group.processes()? {
        // Held before it is looked for again: its number may be another's by now.
        if let Some(process) = Process::open(pid)?
            && group.processes()?.contains(&pid)
        {
            match process.signal(signal) {
                Err(error) if !process.has_ended()? => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(())
}

/// The signals by name; the real-time ones are `RTMIN+N` and `RTMAX-N`.
const NAMES: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// The number of a signal that was given by name or number.
pub(crate) fn number(text: &str) -> Result<i32> {
    const RTMIN: i32 = 34;
    const RTMAX: i32 = 64;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name {
        "IOT" => Some(6),
        "CLD" => Some(17),
        "POLL" => Some(29),
        "RTMIN" => Some(RTMIN),
        "RTMAX" => Some(RTMAX),
        _ => (1..)
            .zip(NAMES)
            .find(|(_, known)| *known == name)
            .map(|(number, _)| number),
    };
    let distance = |prefix| name.strip_prefix(prefix)?.parse::<i32>().ok();
    let number = number
        .or_else(|| name.parse().ok())
        .or_else(|| Some(RTMIN.saturating_add(distance("RTMIN+")?)))
        .or_else(|| Some(RTMAX.saturating_sub(distance("RTMAX-")?)));
    match number {
        Some(number) if (0..=RTMAX).contains(&number) => Ok(number),
        _ => bail!("unknown signal `{text}`; give a name such as TERM, or a number up to 64"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, expected) in [
            ("TERM", 15),
            ("SIGTERM", 15),
            ("sigkill", 9),
            ("9", 9),
            ("0", 0),
            ("SYS", 31),
            ("WINCH", 28),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(number(text).unwrap(), expected, "{text}");
        }
        for wrong in [
            "",
            "SIG",
            "FOO",
            "65",
            "-1",
            "RTMIN+90",
            "RTMIN+99999999999",
        ] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }
}
