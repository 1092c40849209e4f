//! The command line: what a person or an engine types, parsed into types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

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
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// As runc prints it: engines look for the line that begins with `spec:`.
const VERSION: &str = concat!("version ", env!("CARGO_PKG_VERSION"), "\nspec: 1.3.0");

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Spec(Spec),
    Run(Run),
    /// Print as JSON what a config.json may ask for (the runtime-spec's features.md).
    ///
    /// What is not listed is refused by `run`, with its place in config.json.
    Features,
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
}

/// Run a container, and wait until it has ended.
///
/// The process gets the standard input, output and error of this command, and the signals sent to
/// it. Afterwards nothing is left: the control group is removed, and every mount and namespace goes
/// with the last process.
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
  cofferdam-runtime run --pid-file /run/box.pid my-container")]
pub(crate) struct Run {
    /// Directory with config.json.
    #[arg(short, long, value_name = "DIR", default_value = ".")]
    pub(crate) bundle: PathBuf,

    /// File to write the process's number to, as this machine sees it, before the process runs.
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// Refused: without pivot_root a container can reach the machine's root filesystem.
    #[arg(long)]
    pub(crate) no_pivot: bool,

    /// Name of the container: letters, digits, and `_ + - .`
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
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
}
