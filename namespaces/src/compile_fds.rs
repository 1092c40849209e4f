//! The file descriptors of a plan.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use crate::command::Join;
use crate::compile_joins::is_pidfd;
use crate::stdio::Kind;
use crate::sys::{self, PlanFd};
use crate::{Command, Error, Namespace, Origin};

/// The file descriptors of a plan: out of the way of the numbers at which the program sees any,
/// and known, so that all others can be closed.
pub(crate) struct Fds {
    /// The first number that the program is not given.
    floor: RawFd,
    pub(crate) channel: PlanFd,
    pub(crate) held: Vec<OwnedFd>,
    kept: Vec<RawFd>,
}

impl Fds {
    pub(crate) fn new(command: &Command, channel: OwnedFd) -> Result<Self, Error> {
        let floor = command
            .fds
            .keys()
            .next_back()
            .into_iter()
            .chain(command.kept.iter().next_back())
            .max()
            .map_or(3, |highest| highest.saturating_add(1));
        let mut fds = Self {
            floor,
            channel: PlanFd::of(&channel),
            held: Vec::new(),
            kept: vec![0, 1, 2],
        };
        for number in &command.kept {
            sys::is_inheritable(*number).map_err(Error::io("keep a file descriptor"))?;
            fds.kept.push(*number);
        }
        fds.channel = fds.take(channel)?;
        Ok(fds)
    }

    /// Plans with a descriptor of the caller.
    pub(crate) fn hold(&mut self, fd: BorrowedFd<'_>) -> Result<PlanFd, Error> {
        let fd =
            sys::dup_above(fd, self.floor).map_err(Error::io("duplicate a file descriptor"))?;
        self.take(fd)
    }

    /// Plans with a descriptor made for the plan.
    pub(crate) fn take(&mut self, fd: OwnedFd) -> Result<PlanFd, Error> {
        let planned = PlanFd::of(&fd);
        if planned.number() < self.floor {
            return self.hold(fd.as_fd());
        }
        self.kept.push(planned.number());
        self.held.push(fd);
        Ok(planned)
    }

    pub(crate) fn namespace(&mut self, kind: Namespace, join: &Join) -> Result<PlanFd, Error> {
        let (fd, origin) = match join {
            Join::Fd(fd) => (self.hold(fd.as_fd())?, Origin::Fd(PlanFd::of(fd).number())),
            Join::Path(path) => {
                let file = std::fs::File::open(path)
                    .map_err(Error::io_path("open the namespace", path))?;
                (self.take(file.into())?, Origin::Path(path.clone()))
            }
        };
        // The descriptor has just been put there.
        let Some(held) = self.held.last() else {
            return Ok(fd);
        };
        let found = match sys::namespace_type(held.as_fd()) {
            Ok(flag) => Namespace::from_flag(flag),
            Err(_) if is_pidfd(held.as_fd()) => Some(kind),
            Err(_) => None,
        };
        if found != Some(kind) {
            return Err(Error::NotThatNamespace {
                wanted: kind,
                origin,
                found,
            });
        }
        Ok(fd)
    }

    /// What goes where before `execve`, and the caller's ends of pipes.
    #[expect(clippy::type_complexity, reason = "one caller takes it apart at once")]
    pub(crate) fn stdio(
        &mut self,
        command: &Command,
    ) -> Result<(Vec<(PlanFd, RawFd)>, [Option<OwnedFd>; 3]), Error> {
        let mut placed = Vec::new();
        let mut pipes = [None, None, None];
        let streams = [&command.stdin, &command.stdout, &command.stderr];
        for ((number, stream), pipe) in (0..).zip(streams).zip(&mut pipes) {
            let fd = match stream.as_ref().map(|stream| &stream.0) {
                None | Some(Kind::Inherit) => continue,
                Some(Kind::Null) => {
                    let null = std::fs::File::options()
                        .read(true)
                        .write(true)
                        .open("/dev/null")
                        .map_err(Error::io_path("open", "/dev/null"))?;
                    self.take(null.into())?
                }
                Some(Kind::Piped) => {
                    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                        .map_err(|errno| Error::io("make a pipe")(errno.into()))?;
                    let (ours, theirs) = if number == 0 {
                        (write, read)
                    } else {
                        (read, write)
                    };
                    *pipe = Some(ours);
                    self.take(theirs)?
                }
                Some(Kind::Fd(fd)) => self.hold(fd.as_fd())?,
            };
            placed.push((fd, number));
        }
        for (number, fd) in &command.fds {
            placed.push((self.hold(fd.as_fd())?, *number));
        }
        Ok((placed, pipes))
    }

    /// All numbers between those of the plan.
    pub(crate) fn ranges_to_close(&self) -> Vec<(u32, u32)> {
        let mut kept: Vec<u32> = self
            .kept
            .iter()
            .filter_map(|fd| u32::try_from(*fd).ok())
            .collect();
        kept.sort_unstable();
        let mut ranges = Vec::new();
        let mut first = 0;
        for fd in kept {
            if fd > first {
                ranges.push((first, fd - 1));
            }
            first = fd + 1;
        }
        ranges.push((first, u32::MAX));
        ranges
    }
}
