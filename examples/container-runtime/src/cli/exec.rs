//! The command line of `exec`.

use std::path::PathBuf;

use clap::Args;

use crate::id::ContainerId;

/// Run another program in a running container.
///
/// It gets the namespaces, control group, seccomp filter, and unless options say otherwise the
/// environment, user, rights and directory of the container's own.
///
/// Exit status: the process's own; 128+N if signal N ended it; 255 if it could not be run.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
#[command(after_help = "\
Examples:
  cofferdam-runtime exec my-container ps
  cofferdam-runtime exec --tty --user 1000 my-container sh
  cofferdam-runtime exec --process process.json --detach --pid-file /run/x.pid my-container")]
pub(crate) struct Exec {
    /// Socket that the other end of the terminal is sent to.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) console_socket: Option<PathBuf>,

    /// Socket that a pidfd of the process is sent to.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) pidfd_socket: Option<PathBuf>,

    /// Working directory in the container.
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<PathBuf>,

    /// Environment variable, NAME=VALUE. May be given more than once.
    #[arg(short, long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,

    /// Give it a terminal.
    #[arg(short, long)]
    pub(crate) tty: bool,

    /// User, and group, by number.
    #[arg(short, long, value_name = "UID[:GID]")]
    pub(crate) user: Option<String>,

    /// Supplementary group by number. May be given more than once.
    #[arg(short = 'g', long, value_name = "GID")]
    pub(crate) additional_gids: Vec<u32>,

    /// File with what to run, as `process` of config.json.
    #[arg(short, long, value_name = "FILE")]
    pub(crate) process: Option<PathBuf>,

    /// Do not wait.
    #[arg(short, long)]
    pub(crate) detach: bool,

    /// File to write the process's number to, as this machine sees it.
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,

    /// SELinux label.
    #[arg(long, value_name = "LABEL")]
    pub(crate) process_label: Option<String>,

    /// AppArmor profile.
    #[arg(long, value_name = "PROFILE")]
    pub(crate) apparmor: Option<String>,

    /// No new privileges by set-user-id files.
    #[arg(long)]
    pub(crate) no_new_privs: bool,

    /// Capability to add. May be given more than once.
    #[arg(short, long, value_name = "CAPABILITY")]
    pub(crate) cap: Vec<String>,

    /// Pass descriptors 3 to N+2 of this command on to the process.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) preserve_fds: u16,

    /// A control group below the container's own; on v1 also of some controllers only, and more
    /// than once.
    #[arg(long, value_name = "[CONTROLLER,...:]PATH")]
    pub(crate) cgroup: Vec<String>,

    /// Also in a paused container: the program waits until it is resumed.
    #[arg(long)]
    pub(crate) ignore_paused: bool,

    /// For runc's command lines.
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,

    /// Program and its arguments.
    #[arg(
        value_name = "COMMAND",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) args: Vec<String>,
}
