//! `hooks`: programs that are told of a container's life, with its state on their standard input.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use namespaces::{Child, Command, Process, Stdio};

use crate::config::{Config, Hook};
use crate::state::{State, Status};
use crate::warn;

/// When a hook is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// The namespaces are there; the old name of the next.
    Prestart,
    /// The namespaces are there, and everything is mounted.
    CreateRuntime,
    /// The same, run inside the container's namespaces with the machine's root.
    CreateContainer,
    /// Before the program is executed, inside.
    StartContainer,
    /// The program is executed.
    Poststart,
    /// The container is gone.
    Poststop,
}

/// The names of the points, for `features`.
pub(crate) const KNOWN: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

impl Point {
    const ALL: [Self; 6] = [
        Self::Prestart,
        Self::CreateRuntime,
        Self::CreateContainer,
        Self::StartContainer,
        Self::Poststart,
        Self::Poststop,
    ];

    pub(crate) fn name(self) -> &'static str {
        let [prestart, runtime, create, start, poststart, poststop] = KNOWN;
        match self {
            Self::Prestart => prestart,
            Self::CreateRuntime => runtime,
            Self::CreateContainer => create,
            Self::StartContainer => start,
            Self::Poststart => poststart,
            Self::Poststop => poststop,
        }
    }

    fn hooks(self, config: &Config) -> &[Hook] {
        let hooks = &config.hooks;
        match self {
            Self::Prestart => &hooks.prestart,
            Self::CreateRuntime => &hooks.create_runtime,
            Self::CreateContainer => &hooks.create_container,
            Self::StartContainer => &hooks.start_container,
            Self::Poststart => &hooks.poststart,
            Self::Poststop => &hooks.poststop,
        }
    }

    /// Whether the configuration has hooks of this point.
    pub(crate) fn is_used(self, config: &Config) -> bool {
        !self.hooks(config).is_empty()
    }

    fn is_inside(self) -> bool {
        matches!(self, Self::CreateContainer | Self::StartContainer)
    }
}

/// Refuses hooks that could not be run, before anything is made.
pub(crate) fn check(config: &Config) -> Result<()> {
    for point in Point::ALL {
        for (index, hook) in point.hooks(config).iter().enumerate() {
            let place = format!("hooks.{}[{index}]", point.name());
            match &hook.path {
                None => bail!("{place}.path: missing; write the program to run"),
                Some(path) if !path.is_absolute() => bail!(
                    "{place}.path: {} does not begin with /; give the whole path",
                    path.display()
                ),
                Some(_) => {}
            }
            for (number, variable) in hook.env.iter().enumerate() {
                if variable.find('=').is_none_or(|at| at == 0) {
                    bail!("{place}.env[{number}]: `{variable}` is not NAME=VALUE");
                }
            }
            if hook.timeout.is_some_and(|timeout| timeout <= 0) {
                bail!("{place}.timeout: must be more than 0 seconds; leave it out for none");
            }
        }
    }
    Ok(())
}

/// Runs the hooks of a point, in order. `inside` is the process whose namespaces those of the
/// container run in. The first that fails ends it; of those that come when nothing can be undone
/// any more (`poststart`, `poststop`) each is run, and failures are told.
pub(crate) fn run(
    point: Point,
    config: &Config,
    state: &State,
    status: Status,
    inside: Option<&Process>,
) -> Result<()> {
    let hooks = point.hooks(config);
    if hooks.is_empty() {
        return Ok(());
    }
    let told = serde_json::to_vec(&state.told(status)).context("cannot write the state as JSON")?;
    for (index, hook) in hooks.iter().enumerate() {
        let result = run_one(point, hook, &told, state, inside)
            .with_context(|| format!("hooks.{}[{index}]", point.name()));
        match result {
            Err(error) if point == Point::Poststop => warn(&crate::one_line(&error)),
            other => other?,
        }
    }
    Ok(())
}

fn run_one(
    point: Point,
    hook: &Hook,
    told: &[u8],
    state: &State,
    inside: Option<&Process>,
) -> Result<()> {
    let path = hook.path.as_deref().unwrap_or(Path::new("/"));
    let mut command = Command::new(path);
    let mut args = hook.args.iter();
    if let Some(name) = args.next() {
        command.arg0(name);
    }
    command.args(args).env_clear();
    for variable in &hook.env {
        if let Some((name, value)) = variable.split_once('=') {
            command.env(name, value);
        }
    }
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    match inside.filter(|_| point.is_inside()) {
        Some(process) => {
            // Of createContainer the root still is the machine's: the process has not switched to
            // the container's yet.
            command.enter(process);
            command.current_dir("/");
        }
        None => {
            command.current_dir(&state.bundle);
        }
    }
    let mut child = command.spawn().context("cannot run it")?;
    if let Some(mut input) = child.stdin.take() {
        // A hook need not read what it is told.
        match input.write_all(told) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(error).context("cannot tell it the container's state");
            }
            _ => {}
        }
    }
    wait(child, hook.timeout)
}

fn wait(mut child: Child, timeout: Option<i64>) -> Result<()> {
    // What it says is kept for the message, and cannot block it.
    let reader = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            use std::io::Read as _;
            let mut text = Vec::new();
            let _ = (&mut stderr).take(1 << 16).read_to_end(&mut text);
            let _ = std::io::copy(&mut stderr, &mut std::io::sink());
            text
        })
    });
    let status = match timeout.and_then(|seconds| u64::try_from(seconds).ok()) {
        None => child.wait()?,
        Some(seconds) => {
            let Some(status) = child.wait_timeout(Duration::from_secs(seconds))? else {
                child.kill()?;
                child.wait()?;
                bail!("killed: it ran longer than its timeout of {seconds} s");
            };
            status
        }
    };
    if status.success() {
        return Ok(());
    }
    // A process that it left behind may hold the stream.
    let deadline = std::time::Instant::now() + Duration::from_millis(200);
    let mut said = String::new();
    if let Some(reader) = reader {
        while !reader.is_finished() && std::time::Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if reader.is_finished()
            && let Ok(text) = reader.join()
        {
            String::from_utf8_lossy(&text)
                .trim_end()
                .clone_into(&mut said);
        }
    }
    if said.is_empty() {
        bail!("{status}");
    }
    bail!("{status}, and said: {said}")
}
