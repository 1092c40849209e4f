//! Owning a group.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Result;
use crate::group::Cgroup;

/// How long dropping a guard waits for processes that are just ending.
const GRACE: Duration = Duration::from_millis(100);

/// Removes its group, and all groups below it, when it is dropped.
///
/// It kills nobody: [`Cgroup::kill`] is for that. Dropping waits 100 ms for processes that are
/// just ending; a group that cannot be removed then stays. [`Guard::close`] waits longer and
/// reports.
///
/// ```no_run
/// let hierarchy = cgroups::Hierarchy::detect()?;
/// let group = hierarchy.create("example")?.guard();
/// println!("{:?}", group.processes()?);
/// group.close()?;
/// # Ok::<(), cgroups::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "the group is removed when the guard is dropped"]
pub struct Guard {
    group: Cgroup,
    armed: bool,
}

impl Cgroup {
    /// Makes an owner of this handle, that removes the group when it is dropped.
    pub fn guard(self) -> Guard {
        Guard {
            group: self,
            armed: true,
        }
    }
}

impl Guard {
    /// Lets the group stay.
    pub fn keep(mut self) -> Cgroup {
        self.armed = false;
        let nothing = Cgroup::from_dirs(self.group.hierarchy().clone(), PathBuf::new(), Vec::new());
        std::mem::replace(&mut self.group, nothing)
    }

    /// Removes the group now.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::remove`]; the group then stays.
    pub fn close(mut self) -> Result<()> {
        self.armed = false;
        self.group.remove()
    }
}

impl Deref for Guard {
    type Target = Cgroup;

    fn deref(&self) -> &Cgroup {
        &self.group
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            // There is nobody to tell; `close` is for those who want to know.
            let _ = self.group.remove_within(GRACE);
        }
    }
}
