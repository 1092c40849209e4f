//! Giving device rules to a group.

use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::controller::Controller;
use crate::devices::{DeviceRules, Devices};
use crate::devices_v1::{Exceptions, exceptions};
use crate::devices_v2::compile;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::group::Cgroup;
use crate::knob::Knob;
use crate::procfs::Version;
use crate::sys;

/// By this name programs of this crate are found again.
const PROGRAM_NAME: &[u8; 16] = b"cofferdam_dev\0\0\0";

impl Cgroup {
    /// Lets the processes of the group and of those below it use only the device nodes that
    /// `rules` permit. An ancestor may permit less.
    ///
    /// On v2 (Linux 5.6, `CAP_BPF` or root) the rules are compiled to an eBPF program, which
    /// replaces one that this crate has attached before in one step; programs of others, such as
    /// systemd's, stay and must agree. On v1 the default is set first and then the exceptions,
    /// so a running process may for a moment be denied what it will be allowed.
    ///
    /// # Errors
    ///
    /// [`Error::InexpressibleRule`] when v1 cannot express a rule; [`Error::Unsupported`];
    /// [`Error::Refused`] on v1 when an ancestor denies what is to be allowed, or when groups
    /// below exist; [`Error::NotDelegated`].
    #[doc(alias = "devices.allow")]
    #[doc(alias = "BPF_PROG_TYPE_CGROUP_DEVICE")]
    pub fn set_devices(&self, rules: &DeviceRules) -> Result<()> {
        match self.dir_of(Controller::Devices) {
            Ok((Version::V1, dir)) => {
                let wanted = exceptions(rules).map_err(|rule| Error::InexpressibleRule {
                    rule,
                    group: dir.path().to_owned(),
                })?;
                set_v1(dir, &wanted)
            }
            _ => match self.unified() {
                Some(dir) => self.set_v2(dir, rules),
                None => Err(self.unsupported(Knob::Devices)),
            },
        }
    }

    fn set_v2(&self, dir: &Dir, rules: &DeviceRules) -> Result<()> {
        let explain = |errno| match errno {
            Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => self.unsupported(Knob::Devices),
            _ => dir.error("attach a device program to", "", errno),
        };
        let program = sys::load_device_program(&compile(rules), *PROGRAM_NAME).map_err(explain)?;
        let mut previous = None;
        for id in sys::device_programs(dir.as_fd()).map_err(explain)? {
            let other = match sys::program_by_id(id) {
                // Detached meanwhile.
                Err(Errno::NOENT) => continue,
                other => other.map_err(explain)?,
            };
            if sys::program_name(other.as_fd()).map_err(explain)? == *PROGRAM_NAME {
                previous = Some(other);
            }
        }
        let previous = previous.as_ref().map(AsFd::as_fd);
        sys::attach_device_program(dir.as_fd(), program.as_fd(), previous).map_err(explain)
    }
}

fn set_v1(dir: &Dir, wanted: &Exceptions) -> Result<()> {
    const ALLOW: &str = "devices.allow";
    const DENY: &str = "devices.deny";
    let before = dir.read("devices.list")?;
    let write = |file: &'static str, value: &str| {
        dir.write_raw(file, value).map_err(|errno| match errno {
            // EPERM is an ancestor's refusal if the file itself could be opened, which only its
            // owner can.
            Errno::PERM | Errno::INVAL => Error::Refused {
                knob: Knob::Devices,
                path: dir.file(file),
                value: value.to_owned(),
                source: errno.into(),
            },
            _ => dir.error("write", file, errno),
        })
    };
    let apply = || {
        let (default, exception) = if wanted.default_allow {
            (ALLOW, DENY)
        } else {
            (DENY, ALLOW)
        };
        write(default, "a")?;
        for (devices, access) in &wanted.entries {
            write(exception, &format!("{devices} {access}"))?;
        }
        Ok(())
    };
    let Err(cause) = apply() else { return Ok(()) };
    // The list shows a default of allowing as everything, and its exceptions not at all.
    let everything = format!("{} ", Devices::ALL);
    let restored = if before.starts_with(&everything) {
        write(ALLOW, "a")
    } else {
        write(DENY, "a").and_then(|()| before.lines().try_for_each(|line| write(ALLOW, line)))
    };
    match restored {
        Ok(()) => Err(cause),
        Err(failure) => Err(Error::Rollback {
            cause: Box::new(cause),
            failures: vec![failure],
        }),
    }
}
