//! Making a container: everything up to its program.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use namespaces::{Barrier, Child, Command, Error, Process, Starting};

use crate::cli::{Create, Global, Making};
use crate::config::Config;
use crate::files::write_whole;
use crate::group::{Group, Plan};
use crate::hooks::{self, Point};
use crate::id::ContainerId;
use crate::mounts::Mounts;
use crate::state::{Init, State, Status};
use crate::store::{Locked, Store};
use crate::{
    container, load, network, place, resctrl, rootless, seccomp, shared_root, terminal, warn,
};

/// A container whose process has everything but its program.
pub(crate) struct Made {
    locked: Locked,
    pub(crate) state: State,
    pub(crate) config: Config,
    starting: Starting,
    pub(crate) process: Process,
    /// The other end of its terminal, unless somebody else has it.
    terminal: Option<OwnedFd>,
    group: Group,
    // Holds what the process was planned with.
    _command: Command,
}

/// `create`.
pub(crate) fn create(global: &Global, store: &Store, options: &Create) -> Result<()> {
    let config = read(&options.making)?;
    let made = make(
        global,
        store,
        &options.making,
        &options.id,
        &config,
        Life::Own,
    )?;
    made.finish(&options.making, Starting::leave).map(drop)
}

/// Whether the process lives for itself, or together with this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// It waits for `start`.
    Own,
    /// It is run at once, and goes on when this process has ended.
    Detached,
    /// It is run at once, and ends with this process.
    Tied,
}

/// A configuration with its text.
pub(crate) struct Read {
    text: String,
    config: Config,
    bundle: std::path::PathBuf,
}

/// Reads the bundle, and checks what needs nothing to be made.
pub(crate) fn read(making: &Making) -> Result<Read> {
    if making.no_pivot {
        bail!(
            "--no-pivot is refused: with chroot alone a container can reach the machine's root filesystem; run from a root filesystem that can be pivoted, not from an initramfs"
        );
    }
    let bundle = std::fs::canonicalize(&making.bundle)
        .with_context(|| format!("cannot find the bundle {}", making.bundle.display()))?;
    let (text, config) = load::load(&bundle)?;
    Ok(Read {
        text,
        config,
        bundle,
    })
}

impl Read {
    /// The state that a container of this configuration begins with.
    pub(crate) fn state(&self, id: &ContainerId, plan: &Plan) -> State {
        let root = self.config.root.as_ref().and_then(|root| root.path.clone());
        State {
            id: id.as_str().to_owned(),
            bundle: self.bundle.clone(),
            rootfs: self.bundle.join(root.unwrap_or_default()),
            created: format!("{:.9}", jiff::Timestamp::now()),
            owner: rustix::process::getuid().as_raw(),
            annotations: self.config.annotations.clone(),
            init: None,
            ready: false,
            cgroup: plan.place().clone(),
            resctrl: None,
            shared_root: None,
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

/// Makes a container; nothing of it is left when this fails.
pub(crate) fn make(
    global: &Global,
    store: &Store,
    making: &Making,
    id: &ContainerId,
    read: &Read,
    life: Life,
) -> Result<Made> {
    let Read { config, bundle, .. } = read;
    // Everything is understood before anything is made.
    hooks::check(config)?;
    let process = config.process.as_ref();
    let wants_terminal = process.is_some_and(|process| process.terminal);
    match (wants_terminal, &making.console_socket) {
        (true, None) if life != Life::Tied => bail!(
            "process.terminal: somebody has to hold its other end; name a socket with --console-socket"
        ),
        (false, Some(_)) => {
            bail!("--console-socket: process.terminal is not set; set it, or leave the option out")
        }
        _ => {}
    }
    let mut command = container::command(config, bundle)?;
    let filter = match &config.linux.seccomp {
        Some(seccomp) => seccomp::filter(seccomp)?,
        None => None,
    };
    if let Some(filter) = &filter {
        command
            .seccomp(filter.program.clone())
            .seccomp_flags(filter.flags)
            .seccomp_listener(filter.notifies);
    }
    if wants_terminal {
        let size = process.and_then(|process| process.console_size.as_ref());
        command.terminal(terminal::size(size));
    }
    if !making.no_new_keyring {
        command.session_keyring(format!("_ses.{}", id.as_str()));
    }
    preserve(&mut command, making.preserve_fds)?;
    let mounts = Mounts::of(config, bundle)?;
    let network = network::Devices::of(config)?;
    let resctrl = resctrl::Plan::of(config, id)?;
    let rootless = rootless::is_rootless(global.rootless.asked());
    let plan = Plan::of(config, id, global.systemd_cgroup, rootless)?;

    let mut state = read.state(id, &plan);
    let locked = store.create(id, &state, read.text())?;
    let build = || -> Result<(Starting, Process, Option<OwnedFd>, Group)> {
        if life == Life::Own {
            let fifo = File::options().read(true).write(true).open(locked.fifo());
            command.exec_gate(fifo.context("cannot open the FIFO to wait at")?);
        } else {
            std::fs::remove_file(locked.fifo()).context("cannot remove the FIFO")?;
        }
        command.die_with_parent(life == Life::Tied);
        let mut group = plan.create()?;
        let mounts = mounts.resolve(group.cgroup())?;
        command
            .mounts(mounts.mounts)
            .read_only_paths(mounts.read_only);
        if let Some(directory) = group.cgroup().and_then(cgroups::Cgroup::unified_directory) {
            command.cgroup(directory);
        }
        if !container::has_mounts_of_its_own(config) {
            shared_root::attach(&mut state, &locked)?;
        }
        let mut starting = command.start().map_err(|error| said(error, config))?;
        // It was born in the unified hierarchy's group; this adds those of v1.
        state.cgroup = plan.enter(&mut group, starting.pid())?;
        let Some(process) = Process::open(starting.pid())? else {
            bail!("the new process ended before it was set up; was it killed?");
        };
        state.init = Some(Init {
            pid: process.pid(),
            start_time: process.start_time(),
        });
        if let Some(resctrl) = &resctrl {
            state.resctrl = Some(resctrl.create(process.pid())?);
        }
        locked.save(&state)?;
        network.move_into(&process)?;

        let early = [
            Point::Prestart,
            Point::CreateRuntime,
            Point::CreateContainer,
        ];
        if early.iter().any(|point| point.is_used(config)) {
            starting
                .advance(Barrier::Mounted)
                .map_err(|error| said(error, config))?;
            for point in early {
                hooks::run(point, config, &state, Status::Creating, Some(&process))?;
            }
        }
        starting
            .advance(Barrier::Ready)
            .map_err(|error| said(error, config))?;
        if let Some(listener) = starting.take_seccomp_listener() {
            seccomp::pass_listener(config, &state, &listener)?;
        }
        let mut terminal = starting.take_terminal();
        if let (Some(master), Some(socket)) = (&terminal, &making.console_socket) {
            terminal::hand_over(master, socket)?;
            terminal = None;
        }
        Ok((starting, process, terminal, group))
    };
    match build() {
        Ok((starting, process, terminal, group)) => Ok(Made {
            locked,
            state,
            config: config.clone(),
            starting,
            process,
            terminal,
            group,
            _command: command,
        }),
        Err(error) => {
            undo(locked, &state, config);
            Err(error).with_context(|| format!("cannot make the container {}", id.as_str()))
        }
    }
}

/// Takes back what was made. The process and the group are gone already.
pub(crate) fn undo(locked: Locked, state: &State, config: &Config) {
    if let Some(resctrl) = &state.resctrl {
        let _ = resctrl.remove();
    }
    if state.init.is_some() {
        let _ = hooks::run(Point::Poststop, config, state, Status::Stopped, None);
    }
    if let Err(error) = shared_root::detach(state).and_then(|()| locked.remove()) {
        warn(&crate::one_line(&error));
    }
}

impl Made {
    /// Takes the container back.
    pub(crate) fn abort(self) {
        drop(self.starting);
        drop(self.group);
        undo(self.locked, &self.state, &self.config);
    }
}

/// A container that is there to stay.
pub(crate) struct Finished {
    pub(crate) locked: Locked,
    pub(crate) state: State,
    pub(crate) config: Config,
    pub(crate) child: Child,
    pub(crate) process: Process,
    pub(crate) terminal: Option<OwnedFd>,
}

impl Made {
    /// Lets the process go on, tells who wants to know, and notes that the container is there.
    pub(crate) fn finish(
        mut self,
        making: &Making,
        go: impl FnOnce(Starting) -> Result<Child, Error>,
    ) -> Result<Finished> {
        let told = tell(
            making.pid_file.as_deref(),
            making.pidfd_socket.as_deref(),
            &self.process,
        );
        self.state.ready = true;
        let gone = told
            .and_then(|()| self.locked.save(&self.state))
            .and_then(|()| go(self.starting).map_err(|error| said(error, &self.config)));
        match gone {
            Ok(child) => {
                self.group.keep();
                Ok(Finished {
                    locked: self.locked,
                    state: self.state,
                    config: self.config,
                    child,
                    process: self.process,
                    terminal: self.terminal,
                })
            }
            Err(error) => {
                drop(self.group);
                undo(self.locked, &self.state, &self.config);
                if let Some(file) = &making.pid_file {
                    let _ = std::fs::remove_file(file);
                }
                Err(error).with_context(|| format!("cannot make the container {}", self.state.id))
            }
        }
    }
}

/// Tells the number of a process, and passes its pidfd on.
pub(crate) fn tell(
    pid_file: Option<&Path>,
    pidfd_socket: Option<&Path>,
    process: &Process,
) -> Result<()> {
    if let Some(socket) = pidfd_socket {
        let text = process.pid().to_string();
        terminal::pass(socket, &[process.as_fd()], text.as_bytes()).context("--pidfd-socket")?;
    }
    if let Some(file) = pid_file {
        write_whole(file, &process.pid().to_string())
            .with_context(|| format!("cannot write the pid file {}", file.display()))?;
    }
    Ok(())
}

/// Passes on the descriptors that this program was given: as many as asked for, and those of
/// systemd's socket activation.
pub(crate) fn preserve(command: &mut Command, count: u16) -> Result<()> {
    let activated = match std::env::var("LISTEN_FDS") {
        Ok(number) => {
            command.env("LISTEN_FDS", &number).env("LISTEN_PID", "1");
            if let Ok(names) = std::env::var("LISTEN_FDNAMES") {
                command.env("LISTEN_FDNAMES", names);
            }
            number
                .parse::<u16>()
                .with_context(|| format!("LISTEN_FDS: `{number}` is no number"))?
        }
        Err(_) => 0,
    };
    for number in 3..3 + i32::from(count) + i32::from(activated) {
        command.keep_fd(number);
    }
    Ok(())
}

/// An error with its place in the configuration, and in the words that engines look for when a
/// program cannot be executed.
pub(crate) fn said(error: Error, config: &Config) -> anyhow::Error {
    let words = match &error {
        Error::NotFound {
            program, searched, ..
        } if !searched.is_empty() => {
            format!(
                "exec: \"{}\": executable file not found in $PATH",
                program.display()
            )
        }
        Error::NotFound { program, .. } => {
            let program = program.display();
            format!("exec: \"{program}\": stat {program}: no such file or directory")
        }
        Error::NotExecutable { program, source } => {
            let why = match source.raw_os_error() {
                Some(8) => "exec format error".to_owned(),
                Some(13) => "permission denied".to_owned(),
                _ => source.to_string(),
            };
            format!("exec: \"{}\": {why}", program.display())
        }
        _ => {
            return match place::of(&error, config) {
                Some(place) => anyhow::Error::from(error).context(place),
                None => error.into(),
            };
        }
    };
    // The rest would say the same once more.
    anyhow!(words)
}
