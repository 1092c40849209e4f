//! What can go wrong, and what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::controller::{Controller, Controllers};
use crate::devices::DeviceRule;
use crate::hierarchy::Layout;
use crate::knob::Knob;
use crate::pressure::Threshold;

/// A text that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    expected: &'static str,
    found: String,
}

impl ParseError {
    pub(crate) fn new(expected: &'static str, found: &str) -> Self {
        // Enough to recognise it; a hostile file must not make a message of megabytes.
        Self {
            expected,
            found: found.chars().take(120).collect(),
        }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {:?}", self.expected, self.found)
    }
}

impl std::error::Error for ParseError {}

/// Why a name cannot be that of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameProblem {
    /// It is empty, or has an empty component.
    Empty,
    /// A component is `.` or `..`.
    Dots,
    /// It begins with `/`.
    Absolute,
    /// It holds a NUL byte or a line break, which the kernel's files could not show.
    ControlCharacter,
    /// A component is longer than 255 bytes.
    TooLong,
    /// The kernel has, or may one day have, a file of that name in every group.
    Reserved,
    /// systemd would not take it for a unit of the kind that was asked for.
    NotAUnit,
}

impl fmt::Display for NameProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "a component is empty; give every component a name",
            Self::Dots => "`.` and `..` cannot name a group; write the path without them",
            Self::Absolute => "paths of groups are relative; leave the leading `/` out",
            Self::ControlCharacter => "it holds a NUL or a line break; remove it",
            Self::TooLong => "a component is longer than 255 bytes; shorten it",
            Self::Reserved => "the kernel reserves it for its files; put a prefix before it",
            Self::NotAUnit => {
                "a unit's name has up to 255 letters, digits and `:-_.\\@`, and ends in .scope or \
                 .slice, whichever it is"
            }
        })
    }
}

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No cgroup file system is mounted.
    #[error(
        "no cgroup file system is mounted here: mount one with \
         `mount -t cgroup2 none /sys/fs/cgroup`, or give this container access to its host's"
    )]
    NoCgroupfs,

    /// A name that cannot be a group's.
    #[error("{name:?} cannot name a control group: {problem}")]
    InvalidName {
        /// The whole name.
        name: PathBuf,
        /// What is wrong with it.
        problem: NameProblem,
    },

    /// A value outside the kernel's bounds.
    #[error("{value} is no possible {what}: choose one from {min} to {max}")]
    OutOfRange {
        /// What it was meant to be.
        what: &'static str,
        /// The value.
        value: String,
        /// The smallest possible value.
        min: &'static str,
        /// The largest possible value.
        max: &'static str,
    },

    /// A group that does not exist.
    #[error("there is no control group {}: create it first", .group.display())]
    NotFound {
        /// The group's path.
        group: PathBuf,
    },

    /// A group that exists already.
    #[error(
        "the control group {} exists already: choose another name, or open it and remove it",
        .group.display()
    )]
    AlreadyExists {
        /// The group's directory.
        group: PathBuf,
    },

    /// A group that was removed while it was in use.
    #[error(
        "the control group {} was removed by someone else: create it again",
        .group.display()
    )]
    Vanished {
        /// The group's directory.
        group: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The process may not change this part of the tree.
    #[error(
        "no permission for {}: run as root, or have this group delegated to the user \
         (for example `systemd-run --user --scope -p Delegate=yes …`)",
        .path.display()
    )]
    NotDelegated {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The cgroup file system is mounted read-only.
    #[error(
        "{} is on a cgroup file system that is mounted read-only: mount it read-write, \
         or run this container with writable cgroups",
        .path.display()
    )]
    ReadOnly {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// A setting that this machine cannot offer.
    #[error("{layout} of this machine cannot set {knob}: {}", .knob.hint())]
    Unsupported {
        /// The setting.
        knob: Knob,
        /// The layout.
        layout: Layout,
    },

    /// A controller that this group does not have.
    #[error(
        "the controller {controller} is not available to {}: enable it in the parents' \
         cgroup.subtree_control, or remove cgroup_disable={controller} from the kernel's command line",
        .group.display()
    )]
    ControllerUnavailable {
        /// The controller.
        controller: Controller,
        /// The group.
        group: PathBuf,
    },

    /// The rule of v2 that processes live in leaves only.
    #[error(
        "{controllers} cannot be enabled below {}, because processes run in it and v2 lets a \
         group either hold processes or distribute resources: move them into a child group first",
        .group.display()
    )]
    InternalProcesses {
        /// The group that holds processes.
        group: PathBuf,
        /// What was to be enabled for its children.
        controllers: Controllers,
        /// What the kernel said.
        source: io::Error,
    },

    /// A limit that the kernel refuses because more is in use.
    #[error(
        "{knob} cannot be lowered to {value} while {} uses more: free or end something first, \
         or choose a higher limit",
        .group.display()
    )]
    LimitBelowUse {
        /// The setting.
        knob: Knob,
        /// The value.
        value: String,
        /// The group.
        group: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// A value that the kernel refuses for another reason.
    #[error(
        "the kernel refused {value:?} for {}: check it against the limits of the parent and the \
         other settings of this group",
        .path.display()
    )]
    Refused {
        /// The setting.
        knob: Knob,
        /// The file.
        path: PathBuf,
        /// The value as it was written.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },

    /// A device that is not there, or not one that can be limited.
    #[error(
        "{knob} cannot be set to {value:?} for {}: there is no such whole device; \
         /sys/block lists them with their numbers in `dev`",
        .group.display()
    )]
    NoSuchDevice {
        /// The setting.
        knob: Knob,
        /// The value, with the device.
        value: String,
        /// The group.
        group: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// The name of a device or resource that could not be written.
    #[error("{key:?} is no name for {knob}: use one without spaces and control characters")]
    InvalidKey {
        /// The setting.
        knob: Knob,
        /// The name.
        key: String,
    },

    /// A rule that v1 has no words for.
    #[error(
        "the devices controller of v1 cannot express `{rule}` for {}, because it takes a part of a \
         wildcard back: name the devices of the wildcard one by one",
        .group.display()
    )]
    InexpressibleRule {
        /// The rule.
        rule: DeviceRule,
        /// The group.
        group: PathBuf,
    },

    /// Processors or memory nodes that the group cannot get.
    #[error(
        "{knob} cannot be {value}: choose from {available}, which is all that {} can be given",
        .group.display()
    )]
    NotInMachine {
        /// The setting.
        knob: Knob,
        /// The value.
        value: String,
        /// What the group could get.
        available: String,
        /// The group.
        group: PathBuf,
    },

    /// As many groups as an ancestor allows (`EAGAIN`), or as the memory controller can number
    /// (`ENOSPC`, newer kernels `EBUSY`).
    #[error(
        "there is no room for {}: an ancestor's cgroup.max.descendants or cgroup.max.depth is \
         reached, or there are 65535 groups with memory; remove groups or raise the bound",
        .group.display()
    )]
    TooManyGroups {
        /// The group that was to be, or whose children were to have memory limits.
        group: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// A process that is not there.
    #[error(
        "there is no process {pid}: it has ended, or its number is of another pid namespace; give \
         the number that it has in the pid namespace of this process's /proc"
    )]
    NoSuchProcess {
        /// The process.
        pid: u32,
    },

    /// A process that this user, or this kernel, will not move.
    #[error(
        "process {pid} cannot enter {}: give the group processors and memory nodes, a domain \
         type, and no subtree_control before processes",
        .group.display()
    )]
    CannotAttach {
        /// The process.
        pid: u32,
        /// The group.
        group: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// A threaded group, where something is done to whole processes.
    #[error(
        "{} is threaded, and whole processes belong to the nearest group above that is not: list or \
         kill them there",
        .group.display()
    )]
    Threaded {
        /// The group.
        group: PathBuf,
    },

    /// A group that still has processes or children.
    #[error(
        "{} still has processes or child groups: kill or move them, then try again",
        .group.display()
    )]
    Busy {
        /// The group.
        group: PathBuf,
    },

    /// Something that did not happen in time.
    #[error("{} was not {what} within {after:?}: wait longer, or kill its processes", .group.display())]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// The group.
        group: PathBuf,
        /// For how long.
        after: Duration,
    },

    /// A call for which a capability is missing.
    #[error("{} needs {capability}: grant it, or use Linux 6.5 and a window of 2s, 4s, 6s, 8s or 10s", .path.display())]
    NeedsCapability {
        /// Its name.
        capability: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// A threshold of pressure that the kernel does not accept.
    #[error(
        "{} cannot be watched for {:?} within {:?}: the window must be 500ms to 10s, a multiple of \
         2s without CAP_SYS_RESOURCE, and the stall shorter than it",
        .path.display(), .threshold.stall, .threshold.window
    )]
    BadThreshold {
        /// The threshold.
        threshold: Threshold,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },

    /// Nothing accounts for pressure.
    #[error(
        "nothing accounts for the pressure of {}: mount v2, boot with psi=1 and build the kernel \
         with CONFIG_PSI",
        .group.display()
    )]
    NoPressure {
        /// The group.
        group: PathBuf,
    },

    /// systemd does not answer.
    #[cfg(feature = "systemd")]
    #[error(
        "no systemd answers by D-Bus at {address} ({source}): systemd must be process 1 and \
         dbus.service run, for a user also their manager (`loginctl enable-linger`); without them, \
         create the group directly"
    )]
    NoSystemd {
        /// The last address that was tried.
        address: String,
        /// What went wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// systemd refused something.
    #[cfg(feature = "systemd")]
    #[error("systemd would not {operation} {unit}: {message} ({name}); its journal says more")]
    UnitRefused {
        /// What it was asked to do.
        operation: &'static str,
        /// The unit.
        unit: String,
        /// The name of its D-Bus error.
        name: String,
        /// Its explanation.
        message: String,
    },

    /// systemd accepted a job, and it did not succeed.
    #[cfg(feature = "systemd")]
    #[error(
        "systemd could not {operation} {unit}, its job ended as `{result}`: \
         see `systemctl status {unit}`"
    )]
    UnitJob {
        /// What it was asked to do.
        operation: &'static str,
        /// The unit.
        unit: String,
        /// The result of the job, as `JobRemoved` has it: `failed`, `canceled`, `timeout`, …
        result: String,
    },

    /// A change failed, and so did putting back what had been changed.
    #[error(
        "{cause}; and {} of the earlier changes could not be put back (first: {}): \
         remove the group and make it anew",
        .failures.len(),
        .failures.first().map_or_else(String::new, ToString::to_string)
    )]
    Rollback {
        /// Why the change failed.
        #[source]
        cause: Box<Error>,
        /// What could not be put back.
        failures: Vec<Error>,
    },

    /// A file of the kernel that this crate does not understand.
    #[error("{} holds something unforeseen ({source}): report it with the kernel's version", .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: ParseError,
    },

    /// Another error of the operating system.
    #[error("{operation} {}: {source}", .path.display())]
    Io {
        /// The call.
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::{Access, Devices};

    /// One of every kind, with something in it to recognise.
    fn every() -> Vec<Error> {
        let group = || PathBuf::from("/sys/fs/cgroup/example");
        let path = || PathBuf::from("/sys/fs/cgroup/example/cpu.max");
        let source = || io::Error::from_raw_os_error(22);
        let value = || "value".to_owned();
        let knob = Knob::CpuMax;
        let rule = DeviceRule {
            allow: false,
            devices: Devices::ALL,
            access: Access::READ,
        };
        let threshold = Threshold {
            full: false,
            stall: Duration::from_millis(3),
            window: Duration::from_millis(7),
        };
        let what = "value";
        let (group, path) = (group(), path());
        let controller = Controller::Memory;
        let controllers = Controllers::from(controller);
        macro_rules! errors {
            ($($variant:ident { $($field:ident $(: $value:expr)?),* },)+) => {
                vec![$(Error::$variant { $($field: errors!(@ $field $($value)?)),* }),+]
            };
            (@ $field:ident $value:expr) => { $value };
            (@ source) => { source() };
            (@ value) => { value() };
            (@ $field:ident) => { $field.clone() };
        }
        let mut all = errors! {
            InvalidName { name: group.clone(), problem: NameProblem::Empty },
            OutOfRange { what, value, min: "1", max: "2" },
            NotFound { group },
            AlreadyExists { group },
            Vanished { group, source },
            NotDelegated { path, source },
            ReadOnly { path, source },
            Unsupported { knob, layout: Layout::Hybrid },
            ControllerUnavailable { controller, group },
            InternalProcesses { group, controllers, source },
            LimitBelowUse { knob, value, group, source },
            Refused { knob, path, value, source },
            NoSuchDevice { knob, value, group, source },
            InvalidKey { knob, key: value() },
            InexpressibleRule { rule, group },
            NotInMachine { knob, value, available: "0-1".to_owned(), group },
            TooManyGroups { group, source },
            NoSuchProcess { pid: 7 },
            CannotAttach { pid: 7, group, source },
            Threaded { group },
            Busy { group },
            Timeout { what, group, after: Duration::from_secs(1) },
            NeedsCapability { capability: "CAP_SYS_RESOURCE", path, source },
            BadThreshold { threshold, path, source },
            NoPressure { group },
            Parse { path, source: ParseError::new("a number", "x") },
        };
        all.push(Error::NoCgroupfs);
        all.push(Error::Rollback {
            cause: Box::new(Error::Busy {
                group: group.clone(),
            }),
            failures: vec![Error::Busy { group }],
        });
        all
    }

    #[test]
    fn every_message_says_what_to_do() {
        // The imperative or the condition that begins the advice.
        let advice = [
            "mount", "run", "write", "choose", "create", "enable", "leave", "move", "free",
            "check", "lists", "use", "name", "give", "remove", "kill", "wait", "grant", "must",
            "boot", "report",
        ];
        for error in every() {
            let message = error.to_string();
            assert!(!message.contains("  "), "{message:?} has a gap");
            assert!(!message.ends_with('.'), "{message:?} cannot be continued");
            let words = message.split_once([':', ';']).map_or("", |(_, rest)| rest);
            assert!(
                advice.iter().any(|word| words.contains(word)),
                "{message:?} leaves one alone"
            );
        }
        for knob in Knob::ALL {
            assert!(knob.hint().len() > 20, "{knob} has no hint");
        }
    }
}
