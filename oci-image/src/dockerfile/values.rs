//! Values of instructions: variables, paths, ports, signals, addresses.

pub(super) fn variable<'e>(env: &'e [String], name: &str) -> Option<&'e str> {
    env.iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// Changes a variable where it stands, or puts it at the end.
pub(super) fn set_variable(env: &mut Vec<String>, name: &str, value: &str) {
    let entry = format!("{name}={value}");
    let same = |known: &&mut String| {
        known
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('='))
    };
    match env.iter_mut().find(same) {
        Some(known) => *known = entry,
        None => env.push(entry),
    }
}

/// `path` as seen from `directory`, without `.`, `..` and empty parts.
pub(super) fn absolute(directory: &str, path: &str, keep_slash: bool) -> String {
    let joined = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{directory}/{path}")
    };
    let mut parts: Vec<&str> = Vec::new();
    for part in joined.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    let is_directory = path.ends_with('/') || path.ends_with("/.") || path == ".";
    let mut text = format!("/{}", parts.join("/"));
    if keep_slash && is_directory && !parts.is_empty() {
        text.push('/');
    }
    text
}

/// The ports of `80`, `80/udp`, `8000-8010/tcp`, each with its protocol.
pub(super) fn ports(text: &str) -> Result<Vec<String>, String> {
    let bad = || format!("{text:?} is no port; write it as 80, 80/udp or 8000-8010/tcp");
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "" => "tcp".to_owned(),
        known @ ("tcp" | "udp" | "sctp") => known.to_owned(),
        other => {
            return Err(format!(
                "there is no protocol {other:?} for a port; there are tcp, udp and sctp"
            ));
        }
    };
    // A port of the host before it says nothing in an image.
    let numbers = numbers.rsplit(':').next().unwrap_or(numbers);
    let number = |text: &str| text.parse::<u16>().map_err(|_| bad());
    let (first, last) = match numbers.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(numbers)?, number(numbers)?),
    };
    if first > last {
        return Err(format!("the range of ports {text:?} ends before it starts"));
    }
    Ok((first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

pub(super) fn is_signal(text: &str) -> bool {
    const NAMES: [&str; 35] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV",
        "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CLD", "CONT", "STOP", "TSTP", "TTIN",
        "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "POLL", "PWR", "SYS",
        "UNUSED",
    ];
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = name
        .strip_prefix("RTMIN")
        .or_else(|| name.strip_prefix("RTMAX"))
        .is_some_and(|rest| {
            rest.is_empty()
                || rest
                    .strip_prefix(['+', '-'])
                    .is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n <= 15))
        });
    NAMES.contains(&name) || real_time
}

pub(super) fn is_url(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

/// An address that Git understands.
pub(super) fn is_git(text: &str) -> bool {
    let address = text.split(['#', '?']).next().unwrap_or(text);
    text.starts_with("git://")
        || text.starts_with("ssh://")
        || text.starts_with("git@")
        || text.starts_with("github.com/")
        || is_url(text)
            && std::path::Path::new(address)
                .extension()
                .is_some_and(|extension| extension == "git")
}
