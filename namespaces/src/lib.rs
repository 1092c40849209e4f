#![doc = include_str!("../README.md")]

mod attach;
mod attributes;
mod capability;
mod child;
mod command;
mod command_filesystem;
mod command_namespaces;
mod command_process;
mod compile;
mod compile_check;
mod compile_fds;
mod compile_filesystem;
mod compile_joins;
mod compile_process;
mod copy_up;
pub mod detached;
mod devices;
mod error;
mod execute;
mod execute_process;
mod execute_program;
mod explain;
mod fallback;
mod filesystem;
mod identity;
mod idmap;
mod init;
mod inside;
mod mount;
mod namespace;
mod new_root;
mod own_executable;
mod plan;
mod private_proc;
mod process;
mod protocol;
mod rlimit;
mod starting;
mod stdio;
mod subid;
// System calls need unsafe; everything else in this crate does without.
#[allow(unsafe_code)]
mod sys;

pub use attributes::{
    Device, DeviceKind, IoPriority, MemoryPolicy, Scheduler, SecurityLabel, TerminalSize,
    TimeOffset,
};
pub use capability::{Capabilities, Capability, CapabilitySet, UnknownCapability};
pub use child::{Change, Child, ResourceUsage};
pub use command::Command;
pub use error::{Error, Origin, Step, StepError};
pub use fallback::Fallbacks;
pub use identity::{NamespaceId, persist, user_namespace};
pub use idmap::{Degradation, IdMap, IdMapping, IdRange, UserMapping};
pub use mount::{Mount, MountAttributes, Propagation, Root};
pub use namespace::Namespace;
pub use own_executable::protect_own_executable;
pub use process::Process;
pub use rlimit::{Limit, Resource};
pub use starting::{Barrier, Starting};
pub use stdio::Stdio;
