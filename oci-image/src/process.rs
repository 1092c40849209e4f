//! From an image's configuration to what a process needs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::config::ContainerConfig;
use crate::error::{Error, Result, excerpt};
use crate::user::UserSpec;

/// How a container of an image is run, as plain values.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Process {
    /// The command line; never empty.
    pub args: Vec<String>,
    /// The environment in the image's order; names are not empty and are there once.
    pub env: Vec<(String, String)>,
    /// The working directory, absolute.
    pub cwd: PathBuf,
    /// Whose process it is; to be resolved in the root by [`UserSpec::resolve`].
    pub user: UserSpec,
    /// The number of the signal that asks it to end; 15 (`SIGTERM`) unless the image says otherwise.
    pub stop_signal: i32,
    /// Ports that the image offers.
    pub ports: Vec<Port>,
    /// Directories that hold data to be kept, absolute.
    pub volumes: Vec<PathBuf>,
    /// Notes by key.
    pub labels: BTreeMap<String, String>,
}

/// A port that an image offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port {
    /// The first port; never 0.
    pub first: u16,
    /// The last port, the first one itself for a single port.
    pub last: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Process {
    /// What `config` asks for; `command`, if not empty, takes the place of the image's `Cmd` (the entrypoint stays,
    /// as with `docker run IMAGE COMMAND…`).
    ///
    /// # Errors
    ///
    /// [`Error::NoCommand`] when there is nothing to run, [`Error::BadValue`] and [`Error::IdOutOfRange`] when a
    /// field cannot be understood.
    pub fn new(config: &ContainerConfig, command: &[String]) -> Result<Process> {
        let mut args = config.entrypoint.clone();
        args.extend_from_slice(if command.is_empty() {
            &config.cmd
        } else {
            command
        });
        if args.is_empty() {
            return Err(Error::NoCommand);
        }
        for arg in &args {
            no_zero("argument", arg)?;
        }
        Ok(Process {
            args,
            env: environment(&config.env)?,
            cwd: directory("working directory", &config.working_dir)?,
            user: config.user.parse()?,
            stop_signal: stop_signal(&config.stop_signal)?,
            ports: config
                .exposed_ports
                .keys()
                .map(|text| port(text))
                .collect::<Result<_>>()?,
            volumes: config
                .volumes
                .keys()
                .map(|text| directory("volume", text))
                .collect::<Result<_>>()?,
            labels: config.labels.clone(),
        })
    }
}

fn no_zero(what: &'static str, text: &str) -> Result<()> {
    if text.contains('\0') {
        return Err(bad(
            what,
            text,
            "it holds a zero byte, which no process can be given",
        ));
    }
    Ok(())
}

fn bad(what: &'static str, text: &str, reason: &'static str) -> Error {
    Error::BadValue {
        what,
        text: excerpt(text),
        reason,
    }
}

/// Later values take the place of earlier ones; a name without `=` means "as the caller has it" and is left out,
/// because an image must not learn the caller's environment.
fn environment(lines: &[String]) -> Result<Vec<(String, String)>> {
    let mut env: Vec<(String, String)> = Vec::with_capacity(lines.len());
    for line in lines {
        no_zero("environment variable", line)?;
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        if name.is_empty() {
            return Err(bad(
                "environment variable",
                line,
                "it has no name; write NAME=value",
            ));
        }
        match env.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => env.push((name.to_owned(), value.to_owned())),
        }
    }
    Ok(env)
}

fn directory(what: &'static str, text: &str) -> Result<PathBuf> {
    no_zero(what, text)?;
    match text {
        "" => Ok(PathBuf::from("/")),
        text if text.starts_with('/') => Ok(PathBuf::from(text)),
        // Some builders write `app` where they mean `/app`; Docker reads it so.
        text => Ok(PathBuf::from(format!("/{text}"))),
    }
}

fn port(text: &str) -> Result<Port> {
    let wrong = || {
        bad(
            "exposed port",
            text,
            "write it as 80, 80/tcp or 8000-8010/udp",
        )
    };
    let (numbers, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return Err(wrong()),
    };
    let (first, last) = numbers.split_once('-').unwrap_or((numbers, numbers));
    let (first, last) = (
        first.parse::<u16>().map_err(|_| wrong())?,
        last.parse::<u16>().map_err(|_| wrong())?,
    );
    if first == 0 || last < first {
        return Err(wrong());
    }
    Ok(Port {
        first,
        last,
        protocol,
    })
}

/// Numbers that are the same on every Linux architecture but MIPS, SPARC, Alpha and PA-RISC.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
    "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
    "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];
const RT_MIN: i32 = 34;
const RT_MAX: i32 = 64;

fn stop_signal(text: &str) -> Result<i32> {
    let wrong = || {
        bad(
            "stop signal",
            text,
            "write a name such as SIGTERM or SIGRTMIN+3, or a number from 1 to 64",
        )
    };
    if text.is_empty() {
        return Ok(15);
    }
    if let Ok(number) = text.parse::<i32>() {
        return if (1..=RT_MAX).contains(&number) {
            Ok(number)
        } else {
            Err(wrong())
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(index) = SIGNALS.iter().position(|known| *known == name) {
        return i32::try_from(index + 1).map_err(|_| wrong());
    }
    let offset = |digits: &str| digits.parse::<u8>().map(i32::from).map_err(|_| wrong());
    let number = match name {
        "IOT" => 6,
        "CLD" => 17,
        "POLL" => 29,
        "RTMIN" => RT_MIN,
        "RTMAX" => RT_MAX,
        _ => {
            if let Some(digits) = name.strip_prefix("RTMIN+") {
                RT_MIN + offset(digits)?
            } else if let Some(digits) = name.strip_prefix("RTMAX-") {
                RT_MAX - offset(digits)?
            } else {
                return Err(wrong());
            }
        }
    };
    if name.starts_with("RT") && !(RT_MIN..=RT_MAX).contains(&number) {
        return Err(wrong());
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn a_command_takes_the_place_of_cmd_but_not_of_the_entrypoint() {
        let config = ContainerConfig {
            entrypoint: strings(&["/entry"]),
            cmd: strings(&["a"]),
            ..ContainerConfig::default()
        };
        assert_eq!(Process::new(&config, &[]).unwrap().args, ["/entry", "a"]);
        assert_eq!(
            Process::new(&config, &strings(&["b", "c"])).unwrap().args,
            ["/entry", "b", "c"]
        );
        assert!(matches!(
            Process::new(&ContainerConfig::default(), &[]),
            Err(Error::NoCommand)
        ));
    }

    #[test]
    fn all_fields_become_plain_values() {
        let config: ContainerConfig = serde_json::from_str(
            r#"{"User":"web:7","ExposedPorts":{"80/tcp":{},"53/udp":{}},"Env":["A=1"],"Cmd":["/run"],
                "Volumes":{"/data":{},"logs":{}},"WorkingDir":"srv","Labels":{"k":"v"},"StopSignal":"SIGQUIT"}"#,
        )
        .unwrap();
        let process = Process::new(&config, &[]).unwrap();
        assert_eq!(process.cwd, PathBuf::from("/srv"));
        assert_eq!(process.user, "web:7".parse().unwrap());
        assert_eq!(process.stop_signal, 3);
        assert_eq!(
            process.volumes,
            [PathBuf::from("/data"), PathBuf::from("/logs")]
        );
        assert_eq!(process.labels["k"], "v");
        let ports: Vec<_> = process
            .ports
            .iter()
            .map(|port| (port.first, port.protocol))
            .collect();
        assert_eq!(ports, [(53, Protocol::Udp), (80, Protocol::Tcp)]);
        for (field, value) in [
            ("StopSignal", r#""SIGNOPE""#),
            ("WorkingDir", r#""/a\u0000b""#),
            ("Volumes", r#"{"/a\u0000":{}}"#),
            ("ExposedPorts", r#"{"x/tcp":{}}"#),
            ("User", r#""a:b:c""#),
            ("Cmd", r#"["/run","\u0000"]"#),
        ] {
            let text = format!(r#"{{"Cmd":["/run"],"{field}":{value}}}"#).replacen(
                r#""Cmd":["/run"],"Cmd""#,
                r#""Cmd""#,
                1,
            );
            let config: ContainerConfig = serde_json::from_str(&text).unwrap();
            let error = Process::new(&config, &[]).unwrap_err();
            assert!(matches!(error, Error::BadValue { .. }), "{field}: {error}");
        }
    }

    #[test]
    fn the_last_value_of_a_variable_counts() {
        let env = environment(&strings(&["A=1", "B=x=y", "HOME", "A=2"])).unwrap();
        assert_eq!(
            env,
            [
                ("A".to_owned(), "2".to_owned()),
                ("B".to_owned(), "x=y".to_owned())
            ]
        );
        assert!(environment(&strings(&["=x"])).is_err());
        assert!(environment(&strings(&["A=\0"])).is_err());
    }

    #[test]
    fn signals_by_name_and_number() {
        for (text, number) in [
            ("", 15),
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("SIGSYS", 31),
            ("SIGQUIT", 3),
        ] {
            assert_eq!(stop_signal(text).unwrap(), number, "{text}");
        }
        for bad in ["0", "65", "-1", "SIGNOPE", "RTMIN+31", "RTMAX-200", "SIG"] {
            assert!(stop_signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_and_ranges() {
        assert_eq!(
            port("80").unwrap(),
            Port {
                first: 80,
                last: 80,
                protocol: Protocol::Tcp
            }
        );
        assert_eq!(
            port("1-3/udp").unwrap(),
            Port {
                first: 1,
                last: 3,
                protocol: Protocol::Udp
            }
        );
        for bad in ["", "0", "65536", "3-1", "80/icmp", "x"] {
            assert!(port(bad).is_err(), "{bad}");
        }
    }
}
