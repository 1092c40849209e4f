//! Which files limits are written to, in which order and how.

use std::borrow::Cow;
use std::fmt::Display;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::bytes::Bytes;
use crate::dir::Dir;
use crate::error::{ParseError, Result};
use crate::group::Cgroup;
use crate::knob::Knob;
use crate::limits::Limits;
use crate::max::Max;

/// One write.
pub(crate) struct Step<'a> {
    pub(crate) knob: Knob,
    pub(crate) file: Rc<Setting<'a>>,
    pub(crate) value: String,
    /// The value as a person would write it.
    pub(crate) shown: String,
    pub(crate) restore: Restore,
}

/// A file with a setting, open for the old value and the new one.
pub(crate) struct Setting<'a> {
    pub(crate) dir: &'a Dir,
    pub(crate) name: Cow<'static, str>,
    pub(crate) fd: OwnedFd,
}

impl Setting<'_> {
    pub(crate) fn read(&self) -> Result<String> {
        self.dir.read_open(&self.name, self.fd.as_fd())
    }

    pub(crate) fn number(&self) -> Result<u64> {
        let text = self.read()?;
        parse_number(self.dir, &self.name, &text)
    }
}

/// How to make the text that puts a file back.
pub(crate) enum Restore {
    /// The content can be written as it is.
    Whole,
    /// The content without the reason that may follow it.
    Word,
    /// Of several lines the one with this key; where there is none, this text.
    Line { key: String, absent: String },
}

impl Restore {
    pub(crate) fn text(&self, previous: &str) -> String {
        match self {
            Self::Whole => previous.trim_end().to_owned(),
            Self::Word => previous
                .split_ascii_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            Self::Line { key, absent } => previous
                .lines()
                .find(|line| line.split_ascii_whitespace().next() == Some(key))
                .unwrap_or(absent)
                .to_owned(),
        }
    }
}

/// From here on a limit of v1 is no limit. v1 shows the largest whole number of pages, or of huge
/// pages, that fits a signed 64-bit number; the largest huge pages have 16 GiB.
const V1_UNLIMITED: u64 = (1 << 63) - (1 << 34);

/// The kernel's text for a limit in bytes.
pub(crate) fn bytes_text(limit: Max<Bytes>, unlimited: &str) -> String {
    match limit {
        Max::At(bytes) => bytes.get().to_string(),
        Max::Unlimited => unlimited.to_owned(),
    }
}

/// The writes for `limits`, in an order that can succeed.
pub(crate) fn steps<'a>(group: &'a Cgroup, limits: &Limits) -> Result<Vec<Step<'a>>> {
    let mut plan = Plan {
        group,
        files: Vec::new(),
        steps: Vec::new(),
    };
    plan.cpu(limits)?;
    plan.cpuset(limits)?;
    plan.memory(limits)?;
    plan.pids(limits)?;
    plan.io(limits)?;
    plan.hugetlb(limits)?;
    plan.rdma(limits)?;
    plan.misc(limits)?;
    plan.net(limits)?;
    Ok(plan.steps)
}

pub(crate) struct Plan<'a> {
    pub(crate) group: &'a Cgroup,
    files: Vec<Rc<Setting<'a>>>,
    steps: Vec<Step<'a>>,
}

impl<'a> Plan<'a> {
    /// Adds a write of a file that holds one value.
    pub(crate) fn push(
        &mut self,
        knob: Knob,
        dir: &'a Dir,
        file: &'static str,
        value: &dyn Display,
        shown: &dyn Display,
    ) -> Result<()> {
        let value = value.to_string();
        self.push_with(knob, dir, file.into(), value, shown, Restore::Whole)
    }

    pub(crate) fn push_with(
        &mut self,
        knob: Knob,
        dir: &'a Dir,
        file: Cow<'static, str>,
        value: String,
        shown: &dyn Display,
        restore: Restore,
    ) -> Result<()> {
        let file = self.open(knob, dir, file)?;
        self.steps.push(Step {
            knob,
            file,
            value,
            shown: shown.to_string(),
            restore,
        });
        Ok(())
    }

    /// Opens a file once, before the first write: what is missing or forbidden is known before
    /// anything has happened.
    pub(crate) fn open(
        &mut self,
        knob: Knob,
        dir: &'a Dir,
        name: impl Into<Cow<'static, str>>,
    ) -> Result<Rc<Setting<'a>>> {
        let name = name.into();
        match self.try_open(dir, name.clone())? {
            Some(file) => Ok(file),
            None if dir.is_alive() => Err(self.group.unsupported(knob)),
            None => Err(dir.error("open", &name, Errno::NODEV)),
        }
    }

    pub(crate) fn try_open(
        &mut self,
        dir: &'a Dir,
        name: impl Into<Cow<'static, str>>,
    ) -> Result<Option<Rc<Setting<'a>>>> {
        let name = name.into();
        let is_same = |file: &&Rc<Setting<'_>>| std::ptr::eq(file.dir, dir) && file.name == name;
        if let Some(file) = self.files.iter().find(is_same) {
            return Ok(Some(Rc::clone(file)));
        }
        match openat(dir, &*name, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fd) => {
                let file = Rc::new(Setting { dir, name, fd });
                self.files.push(Rc::clone(&file));
                Ok(Some(file))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(dir.error("open", &name, errno)),
        }
    }

    fn pids(&mut self, limits: &Limits) -> Result<()> {
        if let Some(max) = limits.pids_max {
            let knob = Knob::PidsMax;
            let (_, dir) = self.group.dir_of(knob.controller())?;
            self.push(knob, dir, knob.name(), &max, &max)?;
        }
        Ok(())
    }
}

/// Reads a file that holds a number.
pub(crate) fn number(dir: &Dir, file: &str) -> Result<u64> {
    let text = dir.read(file)?;
    parse_number(dir, file, &text)
}

fn parse_number(dir: &Dir, file: &str, text: &str) -> Result<u64> {
    text.trim()
        .parse()
        .map_err(|_| dir.unforeseen(file, ParseError::new("a number", text)))
}

/// A limit of v1's memory controller.
pub(crate) fn v1_limit(number: u64) -> Max<Bytes> {
    if number >= V1_UNLIMITED {
        Max::Unlimited
    } else {
        Max::At(Bytes::new(number))
    }
}

/// The limit on swap alone that v1's two limits amount to.
pub(crate) fn v1_swap(memory: Max<Bytes>, sum: Max<Bytes>) -> Max<Bytes> {
    match (memory, sum) {
        (Max::At(memory), Max::At(sum)) => Max::At(sum.saturating_sub(memory)),
        _ => Max::Unlimited,
    }
}
