//! `exec`: another program in a running container.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use cgroups::{Cgroup, Controller, Version};
use namespaces::{Command, Namespace, NamespaceId, Process};
use rustix::fs::{Mode, OFlags};
use rustix::thread::CpuSet;

use crate::cli::Exec;
use crate::config::{self, Config};
use crate::files::write_whole;
use crate::group;
use crate::make::{preserve, said};
use crate::signals::Signals;
use crate::state::{State, Status};
use crate::store::Store;
use crate::supervise::{self, exit_code};
use crate::{attributes, load, process, seccomp, terminal};

/// Runs another program in a container.
pub(crate) fn exec(store: &Store, options: &Exec) -> Result<ExitCode> {
    let mut signals = if options.detach {
        None
    } else {
        Some(Signals::catch().context("cannot catch signals")?)
    };
    let entry = store.open(&options.id)?;
    let state = entry.state()?;
    match state.status(&entry)? {
        Status::Stopped => bail!(
            "cannot exec in a stopped container: container not running: {}",
            state.id
        ),
        Status::Paused if !options.ignore_paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        Status::Creating => bail!("cannot exec in a container that is creating"),
        _ => {}
    }
    let config = entry.config()?;
    let asked = asked(options, &config)?;
    let init = state.running_process()?;
    if asked.terminal && options.detach && options.console_socket.is_none() {
        bail!(
            "--tty: somebody has to hold the terminal's other end; name a socket with --console-socket"
        );
    }
    if !asked.terminal && options.console_socket.is_some() {
        bail!("--console-socket: there is no terminal; ask for one with --tty");
    }
    let mut command = command(&asked, &config, &init)?;
    preserve(&mut command, options.preserve_fds)?;
    let groups = enter_groups(&mut command, &state, options)?;

    let mut starting = command.start().map_err(|error| said(error, &config))?;
    for group in &groups {
        group.attach(starting.pid())?;
    }
    if let Some(resctrl) = &state.resctrl {
        resctrl.join(starting.pid())?;
    }
    starting
        .advance(namespaces::Barrier::Ready)
        .map_err(|error| said(error, &config))?;
    if let Some(listener) = starting.take_seccomp_listener() {
        seccomp::pass_listener(&config, &state, &listener)?;
    }
    let mut master = starting.take_terminal();
    if let (Some(terminal), Some(socket)) = (&master, &options.console_socket) {
        terminal::hand_over(terminal, socket)?;
        master = None;
    }
    let pid = starting.pid();
    if options.pidfd_socket.is_some()
        && let Some(process) = Process::open(pid)?
    {
        crate::make::tell(None, options.pidfd_socket.as_deref(), &process)?;
    }
    if let Some(file) = &options.pid_file {
        write_whole(file, &pid.to_string())
            .with_context(|| format!("cannot write the pid file {}", file.display()))?;
    }
    let mut child = starting.exec().map_err(|error| said(error, &config))?;
    match &mut signals {
        None => Ok(ExitCode::SUCCESS),
        Some(signals) => {
            let status = supervise::wait(&mut child, signals, master)?;
            Ok(ExitCode::from(exit_code(status)))
        }
    }
}

/// The process that is asked for: the one in the file, or the container's own as options say.
fn asked(options: &Exec, config: &Config) -> Result<config::Process> {
    let mut process = if let Some(file) = &options.process {
        let text = fs::read_to_string(file)
            .with_context(|| format!("--process: cannot read {}", file.display()))?;
        let mut process = load::process(&text).with_context(|| file.display().to_string())?;
        if !options.args.is_empty() {
            process.args.clone_from(&options.args);
        }
        process
    } else {
        let Some(own) = &config.process else {
            bail!("the container has no process; name one with --process");
        };
        if options.args.is_empty() {
            bail!("COMMAND is missing; write what to run, or name a file with --process");
        }
        config::Process {
            args: options.args.clone(),
            terminal: false,
            console_size: None,
            ..own.clone()
        }
    };
    if let Some(cwd) = &options.cwd {
        process.cwd = Some(cwd.clone());
    }
    process.terminal |= options.tty;
    process.env.extend(options.env.iter().cloned());
    process.no_new_privileges |= options.no_new_privs;
    if let Some(label) = &options.process_label {
        process.selinux_label = Some(label.clone());
    }
    if let Some(profile) = &options.apparmor {
        process.apparmor_profile = Some(profile.clone());
    }
    let sets = &mut process.capabilities;
    for capability in &options.cap {
        for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
            set.push(capability.clone());
        }
    }
    if let Some(user) = &options.user {
        let (uid, gid) = match user.split_once(':') {
            Some((uid, gid)) => (uid, Some(gid)),
            None => (user.as_str(), None),
        };
        let number = |text: &str| {
            text.parse()
                .with_context(|| format!("--user: `{text}` is no number; write UID or UID:GID"))
        };
        process.user.uid = number(uid)?;
        if let Some(gid) = gid {
            process.user.gid = number(gid)?;
        }
    }
    process
        .user
        .additional_gids
        .extend(&options.additional_gids);
    Ok(process)
}

fn command(asked: &config::Process, config: &Config, init: &Process) -> Result<Command> {
    let root = format!("/proc/{}/root", init.pid());
    let root = File::open(&root).with_context(|| format!("cannot open {root}"))?;
    let user = Namespace::User;
    let joins_user =
        NamespaceId::of_process(init.pid(), user)? != NamespaceId::of_this_thread(user)?;
    let mut command = process::command(asked, &root, joins_user)?;
    attributes::of_process(&mut command, asked)?;
    command.enter(init);
    if let Some(persona) = attributes::personality_of(&config.linux)? {
        command.personality(persona);
    }
    if let Some(asked) = &asked.exec_cpu_affinity {
        affinity(&mut command, asked)?;
    }
    if let Some(asked) = &config.linux.seccomp
        && let Some(filter) = seccomp::filter(asked)?
    {
        command
            .seccomp(filter.program)
            .seccomp_flags(filter.flags)
            .seccomp_listener(filter.notifies);
    }
    if asked.terminal {
        command.terminal(terminal::size(asked.console_size.as_ref()));
    }
    command
        .new_session(true)
        // An orphan of a command that was killed before the program ran would never end.
        .kill_on_drop(false);
    Ok(command)
}

/// The CPUs of the process: `initial` until it is in the container's control group, which is what
/// this program has from now on, and `final` from then on.
fn affinity(command: &mut Command, asked: &config::ExecCpuAffinity) -> Result<()> {
    let [initial, last] = attributes::affinity(asked)?;
    if let Some(initial) = &initial {
        let mut cpus = CpuSet::new();
        for cpu in initial.iter().filter_map(|cpu| usize::try_from(cpu).ok()) {
            cpus.set(cpu);
        }
        rustix::thread::sched_setaffinity(None, &cpus)
            .map_err(io::Error::from)
            .context("process.execCPUAffinity.initial: cannot run there; are the CPUs online?")?;
    }
    match last {
        Some(last) => command.cpu_affinity(last.iter()),
        // All that the group allows: the kernel takes those alone.
        None if initial.is_some() => command.cpu_affinity(0..1024),
        None => command,
    };
    Ok(())
}

/// A control group that the process is put into.
struct Entered {
    group: Cgroup,
    /// Only those of v1 that have these; all of them when there are none.
    controllers: Vec<Controller>,
}

impl Entered {
    fn attach(&self, pid: u32) -> Result<()> {
        if self.controllers.is_empty() {
            return Ok(self.group.attach(pid)?);
        }
        for controller in &self.controllers {
            let cannot = || format!("--cgroup: {controller}: {}", self.group.path().display());
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            let Some(directory) = self.group.directory_of(*controller) else {
                bail!("{}: there is no such control group", cannot());
            };
            rustix::fs::openat(directory, "cgroup.procs", flags, Mode::empty())
                .map_err(io::Error::from)
                .and_then(|file| File::from(file).write_all(pid.to_string().as_bytes()))
                .with_context(cannot)?;
        }
        Ok(())
    }
}

/// Lets the process be born in the container's group, or in those below it that are asked for.
fn enter_groups(command: &mut Command, state: &State, options: &Exec) -> Result<Vec<Entered>> {
    let Some(group) = group::find(&state.cgroup)? else {
        if !options.cgroup.is_empty() {
            bail!("--cgroup: the container has no control group");
        }
        return Ok(Vec::new());
    };
    let mut groups = Vec::new();
    for asked in &options.cgroup {
        let (controllers, path) = match asked.split_once(':') {
            Some((names, path)) => (names, path),
            None => ("", asked.as_str()),
        };
        let controllers = controllers.split(',').filter(|name| !name.is_empty());
        let controllers: Vec<Controller> = controllers
            .map(|name| {
                let unknown = || format!("--cgroup: {asked}");
                let controller: Controller = name.parse().with_context(unknown)?;
                if group.hierarchy().version_of(controller) != Some(Version::V1) {
                    bail!(
                        "--cgroup: {name} has no hierarchy of its own on this machine; write the path alone"
                    );
                }
                Ok(controller)
            })
            .collect::<Result<_>>()?;
        let path = Path::new(path);
        let path = path.strip_prefix("/").unwrap_or(path);
        if path.as_os_str().is_empty() {
            continue;
        }
        let below = group.open(path);
        let group = below.with_context(|| format!("--cgroup: {}", path.display()))?;
        groups.push(Entered { group, controllers });
    }
    if !groups.iter().any(|entered| entered.controllers.is_empty()) {
        // Those that are not named are the container's own.
        let controllers = Vec::new();
        groups.insert(0, Entered { group, controllers });
    }
    let whole = groups.iter().find(|entered| entered.controllers.is_empty());
    if let Some(directory) = whole.and_then(|entered| entered.group.unified_directory()) {
        command.cgroup(directory);
    }
    Ok(groups)
}
