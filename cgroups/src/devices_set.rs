//! Giving device rules to a group.

use std::os::fd::{AsFd, OwnedFd};

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
    /// systemd's, stay and must agree. Of calls at the same time, also from several processes,
    /// the rules of one remain; until the last of them returns, the rules of others may apply as
    /// well.
    ///
    /// On v1 the default is set first and then the exceptions, so a running process may for a
    /// moment be denied what it will be allowed. Calls at the same time mix their exceptions there:
    /// let one follow the other. When an ancestor denies an exception, the group is put back as far
    /// as v1 shows what it was: what was denied in a group that allowed everything else it does not
    /// show, so that is allowed then unless an ancestor denies it.
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
        attach(dir, rules, || ()).map_err(|errno| match errno {
            Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP => self.unsupported(Knob::Devices),
            _ => dir.error("attach a device program to", "", errno),
        })
    }
}

/// Leaves one program of this crate attached to the group, whoever else does the same meanwhile.
///
/// There is no lock: whoever may read the directory could hold it for ever. Instead, calls at the
/// same time agree by the order of attachment, which the kernel keeps: a replacement takes the
/// place of what it replaces, everything else comes last. Only programs that have a later one are
/// detached, so there is always one. As each call looks after it has attached its own, the last of
/// them sees all, and a call that ended in between leaves what the next one takes away.
///
/// `meanwhile` happens between looking and attaching.
fn attach(dir: &Dir, rules: &DeviceRules, mut meanwhile: impl FnMut()) -> Result<(), Errno> {
    let program = sys::load_device_program(&compile(rules), *PROGRAM_NAME)?;
    loop {
        let attached = own_programs(dir)?;
        meanwhile();
        let previous = attached.last().map(AsFd::as_fd);
        match sys::attach_device_program(dir.as_fd(), program.as_fd(), previous) {
            // Another call has replaced it.
            Err(Errno::NOENT) if previous.is_some() => {}
            other => break other?,
        }
    }
    let mut superseded = own_programs(dir)?;
    superseded.pop();
    for program in superseded {
        match sys::detach_device_program(dir.as_fd(), program.as_fd()) {
            // Another call has detached or replaced it.
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// The programs that this crate has attached to the group, in the order of attachment.
fn own_programs(dir: &Dir) -> Result<Vec<OwnedFd>, Errno> {
    let open = |id| {
        let program = sys::program_by_id(id)?;
        let own = sys::program_name(program.as_fd())? == *PROGRAM_NAME;
        Ok(own.then_some(program))
    };
    loop {
        let ids = sys::device_programs(dir.as_fd())?;
        match ids.into_iter().map(open).collect::<Result<Vec<_>, _>>() {
            // One of them was detached or replaced meanwhile.
            Err(Errno::NOENT) => {}
            other => return Ok(other?.into_iter().flatten().collect()),
        }
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
    let (default, exception) = if wanted.default_allow {
        (ALLOW, DENY)
    } else {
        (DENY, ALLOW)
    };
    // When this is refused, nothing has happened.
    write(default, "a")?;
    let written = wanted
        .entries
        .iter()
        .try_for_each(|(devices, access)| write(exception, &format!("{devices} {access}")));
    let Err(cause) = written else { return Ok(()) };
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::path::{Path, PathBuf};
    use std::process::{Child, Command, Stdio};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::device::DeviceNumber;
    use crate::devices::Access;
    use crate::hierarchy::Hierarchy;

    /// A group on v2 only, whatever else is mounted.
    struct Group(PathBuf);

    impl Group {
        fn new(name: &str) -> Self {
            let hierarchy = Hierarchy::detect().expect("cgroups are mounted");
            let root = hierarchy.root().expect("there is a root");
            let root = root.unified().expect("v2 is mounted").path();
            let path = root.join(format!("cofferdam-devices-{name}-{}", std::process::id()));
            fs::create_dir(&path).expect("the root may create groups");
            Self(path)
        }

        fn dir(&self) -> Dir {
            Dir::open(&self.0).expect("it exists")
        }
    }

    impl Drop for Group {
        fn drop(&mut self) {
            let removed = fs::remove_dir(&self.0);
            if !std::thread::panicking() {
                removed.expect("nothing is in it");
            }
        }
    }

    fn rules(minor: u32) -> DeviceRules {
        let device = Devices::char(DeviceNumber::new(1, minor));
        DeviceRules::deny_all().allow(device, Access::ALL)
    }

    #[track_caller]
    fn assert_one_remains(dir: &Dir) {
        assert_eq!(sys::device_programs(dir.as_fd()).expect("asked").len(), 1);
        assert_eq!(own_programs(dir).expect("asked").len(), 1);
    }

    #[test]
    #[ignore = "needs root"]
    fn a_call_between_looking_and_attaching_is_noticed() {
        let group = Group::new("between");
        let dir = group.dir();
        // There is none to be replaced, and then there is one.
        for _ in 0..2 {
            let mut calls = 0;
            let other = || {
                calls += 1;
                if calls == 1 {
                    attach(&dir, &rules(5), || ()).expect("attached");
                }
            };
            attach(&dir, &rules(3), other).expect("attached");
            assert!(calls > 0);
            assert_one_remains(&dir);
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn of_calls_at_the_same_time_one_remains() {
        const THREADS: usize = 4;
        for _ in 0..25 {
            let group = Group::new("threads");
            let ready = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for minor in [3, 5, 7, 9] {
                    let (group, ready) = (&group, &ready);
                    scope.spawn(move || {
                        let dir = group.dir();
                        ready.fetch_add(1, Ordering::Relaxed);
                        while ready.load(Ordering::Relaxed) < THREADS {
                            std::thread::yield_now();
                        }
                        // The first calls find nothing, the later ones what others replace.
                        for _ in 0..5 {
                            attach(&dir, &rules(minor), || ()).expect("attached");
                        }
                    });
                }
            });
            assert_one_remains(&group.dir());
        }
    }

    /// A process that attaches when a byte comes and answers when it has.
    fn attach_when_told(group: &Path) {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned();
        let mut parent = UnixStream::from(stdin.expect("duplicated"));
        let mut byte = [0];
        while parent.read(&mut byte).expect("asked") == 1 {
            // A new one each time.
            let dir = Dir::open(group).expect("it exists");
            attach(&dir, &rules(3), || ()).expect("attached");
            parent.write_all(&byte).expect("answered");
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn of_processes_at_the_same_time_one_remains() {
        const NAME: &str = "COFFERDAM_TEST_DEVICES";
        if let Some(group) = std::env::var_os(NAME) {
            attach_when_told(Path::new(&group));
            return;
        }
        let mut group = Group::new("processes");
        let start = |_| -> (Child, UnixStream) {
            let (socket, theirs) = UnixStream::pair().expect("a pair");
            let child = Command::new(std::env::current_exe().expect("this program"))
                .args(["of_processes_at_the_same_time", "--include-ignored"])
                .env(NAME, &group.0)
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::null())
                .spawn()
                .expect("started");
            (child, socket)
        };
        let mut others: Vec<_> = (0..3).map(start).collect();
        for _ in 0..25 {
            for (_, socket) in &mut others {
                socket.write_all(&[0]).expect("told");
            }
            for (_, socket) in &mut others {
                socket.read_exact(&mut [0]).expect("attached");
            }
            assert_one_remains(&group.dir());
            // Of the same name, with nothing attached.
            drop(group);
            group = Group::new("processes");
        }
        for (mut child, socket) in others {
            drop(socket);
            assert!(child.wait().expect("waited").success());
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn what_ended_calls_have_left_is_taken_away() {
        let group = Group::new("left");
        let dir = group.dir();
        let load = |name| {
            let program = sys::load_device_program(&compile(&rules(3)), name).expect("loaded");
            sys::attach_device_program(dir.as_fd(), program.as_fd(), None).expect("attached");
        };
        load(*PROGRAM_NAME);
        load(*b"somebody_else\0\0\0");
        load(*PROGRAM_NAME);
        attach(&dir, &rules(5), || ()).expect("attached");
        assert_eq!(own_programs(&dir).expect("asked").len(), 1);
        let all = sys::device_programs(dir.as_fd()).expect("asked");
        assert_eq!(all.len(), 2, "another's program stays");
    }
}
