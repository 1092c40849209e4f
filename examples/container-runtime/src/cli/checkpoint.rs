//! The command lines of `checkpoint` and `restore`.

use std::path::PathBuf;

use clap::Args;

use super::Making;
use crate::id::ContainerId;

/// What `checkpoint` and `restore` share.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub(crate) struct Images {
    /// Directory of the checkpoint.
    #[arg(long, value_name = "DIR", default_value = "checkpoint")]
    pub(crate) image_path: PathBuf,

    /// Directory for criu's log and temporary files.
    #[arg(long, value_name = "DIR")]
    pub(crate) work_path: Option<PathBuf>,

    /// Take TCP connections along.
    #[arg(long)]
    pub(crate) tcp_established: bool,

    /// Allow connections to unix sockets outside.
    #[arg(long)]
    pub(crate) ext_unix_sk: bool,

    /// Allow a terminal that is shared with the outside.
    #[arg(long)]
    pub(crate) shell_job: bool,

    /// Take file locks along.
    #[arg(long)]
    pub(crate) file_locks: bool,

    /// How control groups are handled: soft, full, strict or ignore.
    #[arg(long, value_name = "MODE")]
    pub(crate) manage_cgroups_mode: Option<String>,
}

/// Save a running container to disk, with criu(8).
#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    #[command(flatten)]
    pub(crate) images: Images,

    /// Leave it running.
    #[arg(long)]
    pub(crate) leave_running: bool,

    /// Directory of an earlier checkpoint, relative to this one.
    #[arg(long, value_name = "DIR")]
    pub(crate) parent_path: Option<PathBuf>,

    /// Only the memory; the container runs on.
    #[arg(long)]
    pub(crate) pre_dump: bool,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}

/// Run a container from a checkpoint, with criu(8).
#[derive(Debug, Args)]
pub(crate) struct Restore {
    #[command(flatten)]
    pub(crate) making: Making,

    #[command(flatten)]
    pub(crate) images: Images,

    /// Do not wait.
    #[arg(short, long)]
    pub(crate) detach: bool,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}
