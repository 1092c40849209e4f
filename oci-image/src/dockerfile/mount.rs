//! `RUN --mount`.

use super::step::From;

/// Something that is there while one command runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mount {
    /// What it is.
    pub kind: MountKind,
    /// Where it is in the container; `None` for a secret or socket at its usual place.
    pub target: Option<String>,
    /// Whether nothing can be written to it.
    pub read_only: bool,
}

/// What a [`Mount`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MountKind {
    /// A part of the context, of a stage or of an image.
    Bind {
        /// Of what.
        from: From,
        /// Which part.
        source: String,
    },
    /// A directory that is kept from build to build.
    Cache {
        /// Tells caches apart; the target unless it is given.
        id: String,
        /// Who may use it at the same time.
        sharing: Sharing,
        /// What it is at first: nothing, or a part of a stage or an image.
        from: Option<From>,
        /// Which part.
        source: String,
        /// The mode of the directory when it is made.
        mode: u32,
        /// Its owner then.
        uid: u32,
        /// Its group then.
        gid: u32,
    },
    /// A directory in memory.
    Tmpfs {
        /// Its size in bytes, if it has a limit.
        size: Option<u64>,
    },
    /// A secret of who builds, as a file or an environment variable.
    Secret {
        /// Its name.
        id: String,
        /// Whether the build fails without it.
        required: bool,
        /// The variable that holds it.
        env: Option<String>,
        /// The file's mode.
        mode: u32,
        /// The file's owner.
        uid: u32,
        /// The file's group.
        gid: u32,
    },
    /// A socket of an agent for SSH.
    Ssh {
        /// Its name.
        id: String,
        /// Whether the build fails without it.
        required: bool,
        /// The socket's mode.
        mode: u32,
        /// The socket's owner.
        uid: u32,
        /// The socket's group.
        gid: u32,
    },
}

/// Who may use a cache at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Everybody.
    Shared,
    /// Everybody has one of their own.
    Private,
    /// One after the other.
    Locked,
}

const KEYS: [&str; 13] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "readwrite",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
];

impl Mount {
    /// Reads `type=…,target=…`; `expand` expands the variables of a value, `from` says what a name means.
    pub(super) fn parse(
        text: &str,
        expand: &mut dyn FnMut(&str) -> Result<String, String>,
        from: &mut dyn FnMut(&str) -> Result<From, String>,
    ) -> Result<Mount, String> {
        let mut kind = "bind".to_owned();
        let (mut origin, mut source, mut target, mut id, mut env, mut sharing) =
            (None, None, None, None, None, None);
        let (mut read_only, mut required, mut size, mut mode, mut uid, mut gid) =
            (None, false, None, None, 0, 0);
        let mut given = Vec::new();
        for field in fields(text)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(expand(value)?)),
                None => (field.to_lowercase(), None),
            };
            let key = match key.as_str() {
                "src" => "source",
                "dst" | "destination" => "target",
                "ro" => "readonly",
                "rw" => "readwrite",
                other => other,
            }
            .to_owned();
            let flag = |value: &Option<String>| match value.as_deref() {
                None | Some("true" | "1") => Ok(true),
                Some("false" | "0") => Ok(false),
                Some(other) => Err(format!("{other:?} is neither `true` nor `false`")),
            };
            let text = |value: &Option<String>| {
                value
                    .clone()
                    .filter(|value| !value.is_empty())
                    .ok_or_else(|| format!("`{key}` of the mount has no value"))
            };
            let number = |value: &Option<String>, radix| {
                let value = text(value)?;
                u32::from_str_radix(&value, radix)
                    .map_err(|_| format!("{value:?} is no value of `{key}`"))
            };
            match key.as_str() {
                "type" => kind = text(&value)?.to_lowercase(),
                "from" => origin = Some(text(&value)?),
                "source" => source = Some(text(&value)?),
                "target" => target = Some(text(&value)?),
                "readonly" => read_only = Some(flag(&value)?),
                "readwrite" => read_only = Some(!flag(&value)?),
                "id" => id = Some(text(&value)?),
                "env" => env = Some(text(&value)?),
                "required" => required = flag(&value)?,
                "sharing" => {
                    sharing = Some(match text(&value)?.to_lowercase().as_str() {
                        "shared" => Sharing::Shared,
                        "private" => Sharing::Private,
                        "locked" => Sharing::Locked,
                        other => {
                            return Err(format!(
                                "{other:?} is no sharing; it is `shared`, `private` or `locked`"
                            ));
                        }
                    });
                }
                "size" => size = Some(bytes(&text(&value)?)?),
                "mode" => mode = Some(number(&value, 8)?),
                "uid" => uid = number(&value, 10)?,
                "gid" => gid = number(&value, 10)?,
                other => {
                    return Err(
                        match super::diagnostic::closest(other, KEYS.iter().copied()) {
                            Some(near) => {
                                format!("a mount has no `{other}`; did you mean `{near}`?")
                            }
                            None => format!("a mount has no `{other}`"),
                        },
                    );
                }
            }
            given.push(key);
        }
        let allowed: &[&str] = match kind.as_str() {
            "bind" => &["from", "source", "target", "readonly", "readwrite"],
            "cache" => &[
                "from",
                "source",
                "target",
                "readonly",
                "readwrite",
                "id",
                "sharing",
                "mode",
                "uid",
                "gid",
            ],
            "tmpfs" => &["target", "size"],
            "secret" => &[
                "id", "source", "target", "required", "env", "mode", "uid", "gid",
            ],
            "ssh" => &["id", "target", "required", "mode", "uid", "gid"],
            other => {
                return Err(format!(
                    "there is no mount of type {other:?}; there are bind, cache, tmpfs, secret and ssh"
                ));
            }
        };
        if let Some(key) = given
            .iter()
            .find(|key| *key != "type" && !allowed.contains(&key.as_str()))
        {
            return Err(format!("a mount of type {kind} has no `{key}`"));
        }
        if target.is_none() && matches!(kind.as_str(), "bind" | "cache" | "tmpfs") {
            return Err(format!("a mount of type {kind} needs a `target`"));
        }
        let origin = origin.map(|name| from(&name)).transpose()?;
        Ok(match kind.as_str() {
            "bind" => Mount {
                kind: MountKind::Bind {
                    from: origin.unwrap_or(From::Context),
                    source: source.unwrap_or_else(|| "/".to_owned()),
                },
                target,
                read_only: read_only.unwrap_or(true),
            },
            "cache" => Mount {
                kind: MountKind::Cache {
                    id: id.or_else(|| target.clone()).unwrap_or_default(),
                    sharing: sharing.unwrap_or(Sharing::Shared),
                    from: origin,
                    source: source.unwrap_or_else(|| "/".to_owned()),
                    mode: mode.unwrap_or(0o755),
                    uid,
                    gid,
                },
                target,
                read_only: read_only.unwrap_or(false),
            },
            "tmpfs" => Mount {
                kind: MountKind::Tmpfs { size },
                target,
                read_only: false,
            },
            "secret" => {
                let base = |path: &String| path.rsplit('/').next().unwrap_or(path).to_owned();
                let id = id
                    .or(source)
                    .or_else(|| target.as_ref().map(base))
                    .or_else(|| env.clone())
                    .ok_or("a mount of type secret needs an `id`, a `target` or an `env`")?;
                Mount {
                    kind: MountKind::Secret {
                        id,
                        required,
                        env,
                        mode: mode.unwrap_or(0o400),
                        uid,
                        gid,
                    },
                    target,
                    read_only: true,
                }
            }
            _ => Mount {
                kind: MountKind::Ssh {
                    id: id.unwrap_or_else(|| "default".to_owned()),
                    required,
                    mode: mode.unwrap_or(0o600),
                    uid,
                    gid,
                },
                target,
                read_only: false,
            },
        })
    }
}

/// The fields of a line of comma-separated values; one in double quotes may hold commas.
fn fields(text: &str) -> Result<Vec<String>, String> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                field.push('"');
            }
            '"' if quoted || field.is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            c => field.push(c),
        }
    }
    if quoted {
        return Err("a quoted field of the mount is not closed".to_owned());
    }
    fields.push(field);
    Ok(fields)
}

/// Bytes of `64m` and the like, in powers of 1024.
fn bytes(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no size; write it as 1048576 or 64m");
    let lower = text.to_lowercase();
    let end = lower
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(lower.len());
    let shift = match &lower[end..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(bad()),
    };
    let number: u64 = lower[..end].parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}
