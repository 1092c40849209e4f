//! What the specification knows for other systems, and this runtime cannot honour: an error that
//! names the place.

use anyhow::{Result, bail};
use serde_json::Value;

use crate::config::{Config, Process, Refused};

/// Refuses a configuration that asks for something that would not be done.
pub(crate) fn what_cannot_be_honoured(config: &Config) -> Result<()> {
    for (place, value) in places(config) {
        if value.as_ref().is_some_and(asks_for_something) {
            bail!("{place}: this runtime makes containers of Linux only; remove it");
        }
    }
    if let Some(process) = &config.process {
        in_process(process)?;
    }
    Ok(())
}

/// The same for a process by itself.
pub(crate) fn in_process(process: &Process) -> Result<()> {
    for (place, value) in [
        ("process.commandLine", &process.command_line),
        ("process.user.username", &process.user.username),
    ] {
        if value.as_ref().is_some_and(asks_for_something) {
            bail!("{place}: has no meaning on Linux; remove it");
        }
    }
    Ok(())
}

/// An empty object, list or name asks for nothing.
fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(values) => !values.is_empty(),
        Value::Object(properties) => properties.values().any(asks_for_something),
        Value::Bool(_) | Value::Number(_) => true,
    }
}

fn places(config: &Config) -> [(&'static str, &Refused); 5] {
    [
        ("windows", &config.windows),
        ("solaris", &config.solaris),
        ("freebsd", &config.freebsd),
        ("vm", &config.vm),
        ("zos", &config.zos),
    ]
}

#[cfg(test)]
mod tests {
    use crate::load::parse;

    #[test]
    fn each_is_named() {
        for (property, place) in [
            (r#""windows": {"layerFolders": ["x"]}"#, "windows"),
            (r#""vm": {"kernel": {"path": "/x"}}"#, "vm"),
            (r#""process": {"commandLine": "x"}"#, "process.commandLine"),
            (
                r#""process": {"user": {"uid": 0, "gid": 0, "username": "x"}}"#,
                "process.user.username",
            ),
        ] {
            let text = format!(r#"{{"ociVersion": "1.0.2", {property}}}"#);
            let message = parse(&text).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{place}: ")), "{message}");
        }
    }

    #[test]
    fn what_asks_for_nothing_is_no_reason_to_refuse() {
        parse(
            r#"{"ociVersion": "1.0.2", "hooks": {"prestart": []}, "process": {"selinuxLabel": ""},
                "windows": {}, "linux": {"resources": {"blockIO": {}, "network": {"priorities": null}}}}"#,
        )
        .unwrap();
    }
}
