//! The command line: what a person or an engine types, parsed into types. Names, short forms and
//! meanings are runc's.

mod checkpoint;
mod exec;
mod update;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

pub(crate) use checkpoint::{Checkpoint, Images, Restore};
pub(crate) use exec::Exec;
pub(crate) use update::Update;

use crate::id::ContainerId;

/// Run containers from OCI bundles.
///
/// A bundle is a directory with a root filesystem and a `config.json`, which says what to run and
/// in which isolation (opencontainers.org, runtime-spec). To try it:
///
///   mkdir -p box/rootfs/bin && cp /bin/busybox box/rootfs/bin
///   cofferdam-runtime spec --bundle box
///   sed -i 's:"sh":"/bin/busybox", "sh":' box/config.json
///   sudo cofferdam-runtime run --bundle box my-container
#[derive(Debug, Parser)]
#[command(
    name = "cofferdam-runtime",
    version = VERSION,
    about,
    verbatim_doc_comment,
    disable_version_flag = true
)]
pub(crate) struct Cli {
    /// Print the version.
    #[arg(short, short_alias = 'V', long, action = ArgAction::Version)]
    version: Option<bool>,

    #[command(flatten)]
    pub(crate) global: Global,

    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// As runc prints it: engines look for the lines that begin with `commit:` and `spec:`.
const VERSION: &str = concat!(
    "version ",
    env!("CARGO_PKG_VERSION"),
    "\ncommit: v",
    env!("CARGO_PKG_VERSION"),
    "\nspec: 1.3.0"
);

/// What stands before the subcommand.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Directory for the state of containers [default: /run/cofferdam-runtime, or below
    /// XDG_RUNTIME_DIR for an ordinary user].
    #[arg(long, value_name = "DIR", global = true)]
    pub(crate) root: Option<PathBuf>,

    /// File to write warnings and errors to, in place of standard error.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) log: Option<PathBuf>,

    /// How they are written there.
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value = "text",
        global = true
    )]
    pub(crate) log_format: LogFormat,

    /// Write more to the log.
    #[arg(long, global = true)]
    pub(crate) debug: bool,

    /// Let systemd make the control groups: linux.cgroupsPath is SLICE:PREFIX:NAME.
    #[arg(long, global = true)]
    pub(crate) systemd_cgroup: bool,

    /// Whether an ordinary user's rules hold, who may have no control groups.
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto")]
    pub(crate) rootless: Rootless,

    /// Program for checkpoints; found in PATH.
    #[arg(long, value_name = "PATH", default_value = "criu", global = true)]
    pub(crate) criu: PathBuf,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// A line for a person.
    Text,
    /// An object in each line: `level`, `msg`, `time`.
    Json,
}

/// Whether an ordinary user's rules hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rootless {
    Auto,
    True,
    False,
}

impl Rootless {
    pub(crate) fn asked(self) -> Option<bool> {
        match self {
            Self::Auto => None,
            Self::True => Some(true),
            Self::False => Some(false),
        }
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Create(Create),
    /// Let a created container's program run.
    Start(Id),
    Run(Run),
    /// Print the state of a container as JSON.
    State(Id),
    Kill(Kill),
    Delete(Delete),
    List(List),
    Ps(Ps),
    Exec(Box<Exec>),
    /// Stop every process of a container, until `resume`.
    Pause(Id),
    /// Let the processes of a paused container go on.
    Resume(Id),
    Update(Box<Update>),
    Events(Events),
    Checkpoint(Checkpoint),
    Restore(Restore),
    Spec(Spec),
    /// Print as JSON what a config.json may ask for (the runtime-spec's features.md).
    ///
    /// What is not listed is refused, with its place in config.json.
    Features,
    Completions(Completions),
    Man(Man),
}

/// Write a config.json to begin with.
///
/// It runs `sh` as root of the container without a terminal, with few capabilities, a read-only
/// root filesystem in `rootfs`, and no network but its own loopback. A config.json that exists is
/// never overwritten.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cofferdam-runtime spec                  ./config.json
  cofferdam-runtime spec --bundle box     box/config.json")]
pub(crate) struct Spec {
    /// Directory to write config.json into.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,

    /// For an ordinary user: in a user namespace in which the user is root, and without a control
    /// group or network of its own.
    #[arg(long)]
    pub(crate) rootless: bool,
}

/// What `create`, `run` and `restore` share.
#[derive(Debug, Args)]
pub(crate) struct Making {
    /// Directory with config.json.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,

    /// Socket that the other end of the container's terminal is sent to; for process.terminal.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,

    /// File to write the process's number to, as this machine sees it.
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Socket that a pidfd of the process is sent to.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,

    /// Pass descriptors 3 to N+2 of this command on to the process.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u16,

    /// Refused: without pivot_root a container can reach the machine's root filesystem.
    #[arg(long)]
    pub(crate) no_pivot: bool,

    /// Leave the process in the session keyring of this command.
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
}

/// Make a container and leave it waiting: `start` lets its program run.
///
/// Everything but the program is there then: namespaces, mounts, limits. The command ends, and the
/// container waits for as long as it takes.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cofferdam-runtime create --bundle /srv/box my-container
  cofferdam-runtime start my-container")]
pub(crate) struct Create {
    #[command(flatten)]
    pub(crate) making: Making,

    /// Name of the container: letters, digits, and `_ + - .`
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}

/// Run a container, and wait until it has ended.
///
/// The process gets the standard input, output and error of this command, or with
/// process.terminal a terminal joined to this one, and the signals sent to it. Afterwards nothing
/// is left: the control group is removed, and every mount and namespace goes with the last process.
///
/// A process that is PID 1 of its container gets only those signals that it has a handler for
/// (pid_namespaces(7)), under every runtime. SIGKILL of this command ends the container too.
///
/// Exit status: the process's own; 128+N if signal N ended it; 1 if the container could not be run,
/// with the reason on standard error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cofferdam-runtime run my-container                          the bundle in this directory
  cofferdam-runtime run --bundle /srv/box my-container
  cofferdam-runtime run --detach --pid-file /run/box.pid my-container")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) making: Making,

    /// Do not wait; `delete` removes the container when it has ended.
    #[arg(short, long)]
    pub(crate) detach: bool,

    /// Keep the container's state and control group when it has ended, for `delete`.
    #[arg(long)]
    pub(crate) keep: bool,

    /// For runc's command lines: orphans of the container are never taken over by this command.
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,

    /// Name of the container: letters, digits, and `_ + - .`
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}

/// The one argument of most commands.
#[derive(Debug, Args)]
pub(crate) struct Id {
    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}

/// Send a signal to a container's first process.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cofferdam-runtime kill my-container           SIGTERM
  cofferdam-runtime kill my-container KILL
  cofferdam-runtime kill --all my-container 15  every process of it")]
pub(crate) struct Kill {
    /// Every process of the container.
    #[arg(short, long)]
    pub(crate) all: bool,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,

    /// The signal by name or number.
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub(crate) signal: String,
}

/// Remove what is left of a container that has ended.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// End it first if it runs. No error if there is none.
    #[arg(short, long)]
    pub(crate) force: bool,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}

/// List the containers.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// A table for a person, or JSON.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) format: Format,

    /// Only the names.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// How lists are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Json,
}

/// List the processes of a container.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// The table of ps(1), or the numbers as JSON.
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) format: Format,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,

    /// Options for ps(1).
    #[arg(
        value_name = "OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        default_value = "-ef"
    )]
    pub(crate) options: Vec<String>,
}

/// Print what a container uses, as a line of JSON every few seconds, and when memory runs out.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Seconds between two lines.
    #[arg(long, value_name = "SECONDS", default_value = "5s", value_parser = seconds)]
    pub(crate) interval: f64,

    /// One line, and no more.
    #[arg(long)]
    pub(crate) stats: bool,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}

/// Seconds, with or without runc's unit.
fn seconds(text: &str) -> Result<f64, String> {
    let (number, factor) = if let Some(number) = text.strip_suffix("ms") {
        (number, 0.001)
    } else if let Some(number) = text.strip_suffix('m') {
        (number, 60.0)
    } else {
        (text.strip_suffix('s').unwrap_or(text), 1.0)
    };
    match number.parse::<f64>() {
        Ok(number) if number > 0.0 && number < 1e9 => Ok(number * factor),
        _ => Err("a time such as 5, 5s, 500ms or 1m, more than 0".to_owned()),
    }
}

/// Print a script that completes this program's command line in a shell.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  cofferdam-runtime completions bash > /etc/bash_completion.d/cofferdam-runtime
  cofferdam-runtime completions zsh > /usr/share/zsh/site-functions/_cofferdam-runtime")]
pub(crate) struct Completions {
    /// The shell.
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

/// Write the manual pages of this program and of its subcommands.
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Directory to write them into.
    #[arg(value_name = "DIR")]
    pub(crate) directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn the_version_tells_that_of_the_spec_on_its_own_line() {
        let spec = VERSION.lines().find_map(|line| line.strip_prefix("spec: "));
        assert_eq!(spec, Some(crate::spec::OCI_VERSION));
    }

    #[test]
    fn what_engines_type_is_understood() {
        for line in [
            // containerd
            "--root /r --log /l/log.json --log-format json create --bundle /b --pid-file /b/init.pid --console-socket /c my-id",
            "--root /r --log /l --log-format json --systemd-cgroup start my-id",
            "--root /r --log /l --log-format json kill --all my-id 9",
            "--root /r --log /l --log-format json exec --process /p --console-socket /c --detach --pid-file /f my-id",
            "--root /r delete --force my-id",
            "--root /r events --stats my-id",
            "--root /r ps --format json my-id",
            "--root /r update --resources - my-id",
            // conmon and Podman
            "create --bundle /b --pid-file /f my-id",
            "--log-format=json --log /l create --bundle /b --pid-file /f --no-pivot my-id",
            "exec --pid-file /f --process /p --detach --tty --console-socket /c my-id",
            "exec --preserve-fds 2 --pid-file /f --process /p my-id",
            "events --interval 1s my-id",
            "restore --bundle /b --detach --image-path /i --work-path /w my-id",
            // containerd
            "checkpoint --image-path /i --work-path /w --empty-ns network --manage-cgroups-mode soft my-id",
            "restore --image-path /i --work-path /w --empty-ns network --bundle /b --detach --pid-file /f --no-subreaper my-id",
            "exec --cgroup pids,cpu:/sub --cgroup /other my-id true",
            "ps my-id -o pid,comm",
            "update --cpu-quota -1 --memory -1 my-id",
        ] {
            let words = ["cofferdam-runtime"].into_iter().chain(line.split(' '));
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }
}
