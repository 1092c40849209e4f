//! What the fuzzer calls: takes anything, and panics where something does not hold.
#![allow(clippy::missing_panics_doc, reason = "that is what they are for")]

use std::path::Path;
use std::sync::Once;

use anyhow::{Context as _, Result};

use crate::cli::{Global, LogFormat, Rootless};
use crate::config::{Config, Root};
use crate::mount_options::Options;
use crate::{container, devices, hooks, load, log, network, resctrl, resources, seccomp};

/// The properties at the top of a configuration that this runtime reads.
const TOP: [&str; 8] = [
    "ociVersion",
    "process",
    "root",
    "hostname",
    "domainname",
    "mounts",
    "hooks",
    "linux",
];

/// A configuration, as far as it can be understood without making anything: what is refused is
/// refused with its place, and a filter is one that the kernel takes.
pub fn config(text: &str) {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        log::open(&Global {
            root: None,
            log: Some("/dev/null".into()),
            log_format: LogFormat::Text,
            debug: false,
            systemd_cgroup: false,
            rootless: Rootless::Auto,
            criu: "criu".into(),
        });
    });
    let _ = load::process(text);
    let _ = load::resources(text);
    let Ok((mut config, _)) = load::parse(text) else {
        return;
    };
    // Not just any directory of this machine.
    config.root = Some(Root {
        path: Some("/".into()),
        readonly: false,
    });
    if let Err(error) = understand(&config) {
        let message = format!("{error:#}");
        let place = message.split([':', '.', '[']).next().unwrap_or_default();
        assert!(TOP.contains(&place), "without a place: {message}");
    }
}

fn understand(config: &Config) -> Result<()> {
    hooks::check(config)?;
    container::command(config, Path::new("/"))?;
    for (index, mount) in config.mounts.iter().enumerate() {
        Options::parse(&mount.options, &format!("mounts[{index}]"))?;
    }
    if let Some(asked) = &config.linux.seccomp
        && let Some(filter) = seccomp::filter(asked)?
    {
        check(&filter.program);
    }
    network::Devices::of(config)?;
    let id = "fuzz".parse().map_err(anyhow::Error::msg);
    resctrl::Plan::of(config, &id.context("process")?)?;
    resources::Resources::of(&config.linux.resources)?;
    devices::Rules::of(config).map(drop)
}

/// What the kernel checks of a filter: every jump leads to an instruction, and the last one returns.
fn check(program: &[u8]) {
    const JUMP: u16 = 5;
    const JUMP_ALWAYS: u16 = 0x05;
    const RETURN: u16 = 6;
    let (instructions, rest) = program.as_chunks::<8>();
    assert!(rest.is_empty() && instructions.len() <= 4096);
    for (at, [a, b, if_true, if_false, k @ ..]) in instructions.iter().enumerate() {
        let code = u16::from_ne_bytes([*a, *b]);
        if code & 7 != JUMP {
            continue;
        }
        let distances = if code == JUMP_ALWAYS {
            [u32::from_ne_bytes(*k); 2]
        } else {
            [*if_true, *if_false].map(u32::from)
        };
        for distance in distances {
            let target = usize::try_from(distance).unwrap_or(usize::MAX);
            let target = target.saturating_add(at + 1);
            assert!(target < instructions.len(), "{at} jumps to {target}");
        }
    }
    let last = instructions.last().expect("a filter has instructions");
    assert_eq!(u16::from_ne_bytes([last[0], last[1]]) & 7, RETURN);
}
