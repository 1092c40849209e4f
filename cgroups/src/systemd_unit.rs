//! A scope or slice for systemd to make.

use crate::controller::Controllers;
use crate::error::{Error, NameProblem, Result};
use crate::limits::Limits;
use crate::systemd_properties::{self, PropertyValue};

/// A transient scope or slice: a plain value that [`Systemd::start`] makes real.
///
/// A scope holds processes that someone else has started; a slice holds scopes and slices.
///
/// ```
/// use cgroups::{Bytes, Limits, TransientUnit};
///
/// let unit = TransientUnit::scope("example-1.scope", std::process::id())?
///     .description("an example")
///     .in_slice("system.slice")?
///     .limits(Limits::new().memory_max(Bytes::mib(64)))
///     .delegate();
/// assert_eq!(unit.name(), "example-1.scope");
/// # Ok::<(), cgroups::Error>(())
/// ```
///
/// Manual: `systemd.scope(5)`, `systemd.slice(5)`, `systemd.resource-control(5)`.
///
/// [`Systemd::start`]: crate::Systemd::start
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransientUnit {
    name: String,
    description: Option<String>,
    slice: Option<String>,
    limits: Limits,
    delegated: Option<Delegated>,
    processes: Vec<u32>,
    properties: Vec<(String, PropertyValue)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Delegated {
    All,
    Only(Controllers),
}

impl TransientUnit {
    /// A scope with a process to begin with, since systemd makes none without. The process is
    /// moved into the scope when it is started; a scope ends when its last process does.
    ///
    /// The number must not be used again meanwhile: take that of a child that has not been waited
    /// for, or your own.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] unless it ends in `.scope` and has only what systemd allows.
    pub fn scope(name: impl Into<String>, process: u32) -> Result<Self> {
        let mut unit = Self::new(name.into(), ".scope")?;
        unit.processes.push(process);
        Ok(unit)
    }

    /// A slice. Each `-` in its name stands for a level: `a-b.slice` is below `a.slice`.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`] unless it ends in `.slice` and has only what systemd allows.
    pub fn slice(name: impl Into<String>) -> Result<Self> {
        Self::new(name.into(), ".slice")
    }

    fn new(name: String, suffix: &str) -> Result<Self> {
        check_name(&name, suffix)?;
        Ok(Self {
            name,
            description: None,
            slice: None,
            limits: Limits::new(),
            delegated: None,
            processes: Vec::new(),
            properties: Vec::new(),
        })
    }

    /// The unit's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What `systemctl status` says that it is; otherwise its name.
    #[must_use]
    pub fn description(mut self, text: impl Into<String>) -> Self {
        self.description = Some(text.into());
        self
    }

    /// The slice that a scope is in, which systemd makes where it does not exist; otherwise
    /// `system.slice`, and `app.slice` or the top for a user's manager. The place of a slice is
    /// in its name.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidName`].
    pub fn in_slice(mut self, slice: impl Into<String>) -> Result<Self> {
        let slice = slice.into();
        check_name(&slice, ".slice")?;
        self.slice = Some(slice);
        Ok(self)
    }

    /// What it may use.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Leaves everything below the scope to the caller: systemd neither touches groups that are
    /// made there nor moves processes, and every controller is enabled for it.
    #[doc(alias = "Delegate")]
    #[must_use]
    pub fn delegate(mut self) -> Self {
        self.delegated = Some(Delegated::All);
        self
    }

    /// As [`TransientUnit::delegate`], with these controllers only.
    #[doc(alias = "DelegateControllers")]
    #[must_use]
    pub fn delegate_controllers(mut self, controllers: impl Into<Controllers>) -> Self {
        self.delegated = Some(Delegated::Only(controllers.into()));
        self
    }

    /// Another process that is moved into the scope.
    #[must_use]
    pub fn process(mut self, pid: u32) -> Self {
        self.processes.push(pid);
        self
    }

    /// Another property, such as `TimeoutStopUSec`, as `org.freedesktop.systemd1(5)` has it. It
    /// comes last, so it may replace what the other settings say.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: PropertyValue) -> Self {
        self.properties.push((name.into(), value));
        self
    }

    pub(crate) fn processes(&self) -> &[u32] {
        &self.processes
    }

    pub(crate) fn wanted_limits(&self) -> &Limits {
        &self.limits
    }

    /// What systemd is told.
    pub(crate) fn properties(&self) -> Vec<(&str, PropertyValue)> {
        let text = |text: &str| PropertyValue::String(text.to_owned());
        let is_scope = !self.processes.is_empty();
        let mut all = vec![
            (
                "Description",
                text(self.description.as_deref().unwrap_or(&self.name)),
            ),
            // A unit that has failed goes away as one that has ended does: nobody will look at
            // it, and its name is free again.
            ("CollectMode", text("inactive-or-failed")),
            // Its end must not depend on the machine's: whoever started it ends it.
            ("DefaultDependencies", PropertyValue::Bool(false)),
        ];
        if is_scope {
            all.push(("PIDs", PropertyValue::U32s(self.processes.clone())));
        }
        if let Some(slice) = &self.slice {
            all.push(("Slice", text(slice)));
        }
        match self.delegated {
            Some(Delegated::All) => all.push(("Delegate", PropertyValue::Bool(true))),
            Some(Delegated::Only(controllers)) => {
                let names = controllers.iter().map(|c| c.name().to_owned());
                all.push((
                    "DelegateControllers",
                    PropertyValue::Strings(names.collect()),
                ));
            }
            None => {}
        }
        // Counting, which systemd leaves off unless it is told; on v2 it is also what makes it
        // enable the controllers.
        for counter in [
            "CPUAccounting",
            "MemoryAccounting",
            "TasksAccounting",
            "IOAccounting",
        ] {
            all.push((counter, PropertyValue::Bool(true)));
        }
        all.extend(systemd_properties::of_limits(&self.limits));
        let own = self.properties.iter();
        all.extend(own.map(|(name, value)| (name.as_str(), value.clone())));
        all
    }
}

/// Checks what systemd would refuse with less to say.
pub(crate) fn check_name(name: &str, suffix: &str) -> Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
    match name.strip_suffix(suffix) {
        Some(prefix) if !prefix.is_empty() && name.len() <= 255 && name.bytes().all(is_allowed) => {
            Ok(())
        }
        _ => Err(Error::InvalidName {
            name: name.into(),
            problem: NameProblem::NotAUnit,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_other_kinds_are_refused() {
        for name in [
            "",
            ".scope",
            "a.slice",
            "a/b.scope",
            "a b.scope",
            "a.scope\n",
            "é.scope",
        ] {
            let refused = TransientUnit::scope(name, 1).expect_err(name);
            assert!(matches!(
                refused,
                Error::InvalidName {
                    problem: NameProblem::NotAUnit,
                    ..
                }
            ));
        }
        assert!(TransientUnit::scope("a-b:c_1@\\x2d.scope", 1).is_ok());
        assert!(TransientUnit::slice("a-b.slice").is_ok());
        assert!(TransientUnit::slice(format!("{}.slice", "a".repeat(250))).is_err());
    }

    #[test]
    fn own_properties_come_last() {
        let unit = TransientUnit::slice("a.slice")
            .expect("valid")
            .property("Description", PropertyValue::String("mine".to_owned()));
        let (name, value) = unit.properties().pop().expect("not empty");
        assert_eq!(name, "Description");
        assert_eq!(value, PropertyValue::String("mine".to_owned()));
    }
}
