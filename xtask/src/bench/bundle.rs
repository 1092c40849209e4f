//! The configurations of the containers that are measured.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// The profile that Podman gives every container; Docker's is much the same.
const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// What `runc spec` writes, with /bin/true for the command: the usual container.
pub(crate) fn usual(rootfs: &Path) -> Value {
    let capabilities = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    let mount = |kind: &str, at: &str, more: &[&str]| {
        let options = [&["nosuid", "noexec", "nodev"], more].concat();
        json!({ "type": kind, "source": kind, "destination": at, "options": options })
    };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["/bin/true"],
            "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024 }],
            "noNewPrivileges": true,
        },
        "root": { "path": rootfs, "readonly": false },
        "hostname": "bench",
        "mounts": [
            mount("proc", "/proc", &[]),
            {
                "type": "tmpfs", "source": "tmpfs", "destination": "/dev",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
            },
            {
                "type": "devpts", "source": "devpts", "destination": "/dev/pts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
            },
            mount("tmpfs", "/dev/shm", &["mode=1777", "size=65536k"]),
            mount("mqueue", "/dev/mqueue", &[]),
            mount("sysfs", "/sys", &["ro"]),
        ],
        "linux": {
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "namespaces": [
                { "type": "pid" }, { "type": "network" }, { "type": "ipc" },
                { "type": "uts" }, { "type": "mount" },
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    })
}

/// The same with limits, and with the seccomp profile of an engine.
pub(crate) fn limited(rootfs: &Path) -> Result<Value> {
    let mut config = usual(rootfs);
    let linux = &mut config["linux"];
    linux["resources"]["memory"] = json!({ "limit": 64 << 20 });
    linux["resources"]["cpu"] = json!({ "shares": 512, "quota": 50_000, "period": 100_000 });
    linux["resources"]["pids"] = json!({ "limit": 100 });
    linux["seccomp"] = profile()?;
    Ok(config)
}

/// The profile as the runtime-spec has it: what is conditional on capabilities and other
/// architectures left out.
fn profile() -> Result<Value> {
    let text = fs::read(PROFILE).with_context(|| format!("cannot read {PROFILE}"))?;
    let profile: Value =
        serde_json::from_slice(&text).with_context(|| format!("cannot understand {PROFILE}"))?;
    let here = |rule: &&Value| {
        let holds = |list: &Value| list.as_object().is_none_or(serde_json::Map::is_empty);
        let arches = rule["includes"]["arches"].as_array();
        holds(&rule["includes"]) && holds(&rule["excludes"])
            || arches.is_some_and(|arches| arches.contains(&json!("amd64")))
    };
    let rules = profile["syscalls"].as_array().context("it has no rules")?;
    let rules: Vec<Value> = rules
        .iter()
        .filter(here)
        .map(|rule| {
            let mut kept = json!({ "names": rule["names"], "action": rule["action"] });
            for key in ["args", "errnoRet"] {
                if !rule[key].is_null() {
                    kept[key] = rule[key].clone();
                }
            }
            kept
        })
        .collect();
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    }))
}
