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

    /// Leave out what a namespace of this kind has in it; only `network`.
    #[arg(long, value_name = "KIND")]
    pub(crate) empty_ns: Vec<String>,

    /// Drop pages of an earlier checkpoint that a later one has.
    #[arg(long)]
    pub(crate) auto_dedup: bool,

    /// Let memory be fetched when it is used, from `criu lazy-pages` (userfaultfd(2)).
    #[arg(long)]
    pub(crate) lazy_pages: bool,
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

    /// Write the memory to a `criu page-server`.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) page_server: Option<String>,

    /// Descriptor that criu writes a zero byte to when others can fetch the memory.
    #[arg(long, value_name = "FD", allow_hyphen_values = true)]
    pub(crate) status_fd: Option<i32>,

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

    /// For runc's command lines: orphans of the container are never taken over by this command.
    #[arg(long, hide = true)]
    pub(crate) no_subreaper: bool,

    /// Profile of the security module in place of the one that was saved.
    #[arg(long, value_name = "MODULE:NAME")]
    pub(crate) lsm_profile: Option<String>,

    /// Security context of the mounts in place of the one that was saved.
    #[arg(long, value_name = "CONTEXT")]
    pub(crate) lsm_mount_context: Option<String>,

    /// Name of the container.
    #[arg(value_name = "ID")]
    pub(crate) id: ContainerId,
}
