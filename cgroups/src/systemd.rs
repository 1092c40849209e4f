//! systemd as the one who makes groups.

use std::path::Path;
use std::time::Duration;

use zbus::{OwnedObjectPath, Variant};

use crate::error::{Error, Result};
use crate::group::Cgroup;
use crate::hierarchy::Hierarchy;
use crate::limits::Limits;
use crate::systemd_bus::{Bus, Request, converse, to_dbus};
use crate::systemd_properties::of_limits;
use crate::systemd_unit::TransientUnit;

/// The extra units of `StartTransientUnit`, of which there are none.
type NoUnits = Vec<(&'static str, Vec<(&'static str, Variant<'static>)>)>;

/// systemd, which owns the groups of a machine where it is process 1, and those of a user where
/// it is their manager. There, groups are its units: it makes a scope or a slice, keeps its
/// limits, and shows it in `systemctl` and `systemd-cgls`.
///
/// What it has no word for is set in the unit's group directly, and what it silently left out
/// is noticed: [`Systemd::start`] gives a group that has all its limits, or none. Of these direct
/// settings `memory.oom.group` lasts until the next `systemctl daemon-reload` only, because
/// systemd takes it from the unit's `OOMPolicy`: with systemd 253 set that to `kill` as well, by
/// [`TransientUnit::property`].
///
/// Every call has a connection to D-Bus of its own, and the calling thread does all the work.
/// Behind the feature `systemd`. Tested with systemd 252, as the machine's and as a user's; 244
/// knows every property that is used.
///
/// ```no_run
/// use cgroups::{Bytes, Limits, Systemd, TransientUnit};
///
/// let mut child = std::process::Command::new("sleep").arg("60").spawn()?;
/// let unit = TransientUnit::scope("example.scope", child.id())?
///     .limits(Limits::new().memory_max(Bytes::mib(64)))
///     .delegate();
/// let systemd = Systemd::system();
/// let group = systemd.start(&unit)?;
/// println!("{} holds {:?}", group.path().display(), group.processes()?);
/// systemd.stop("example.scope")?;
/// child.wait()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Manual: `org.freedesktop.systemd1(5)`.
#[derive(Debug, Clone)]
pub struct Systemd {
    addresses: Vec<String>,
    patience: Duration,
}

impl Systemd {
    /// The machine's systemd. Nothing is opened yet.
    pub fn system() -> Self {
        let address = std::env::var("DBUS_SYSTEM_BUS_ADDRESS")
            .unwrap_or_else(|_| "unix:path=/run/dbus/system_bus_socket".to_owned());
        Self::at(vec![address])
    }

    /// The manager of the user who runs this, found by `DBUS_SESSION_BUS_ADDRESS` or
    /// `XDG_RUNTIME_DIR`. Nothing is opened yet.
    ///
    /// It runs while the user is logged in, or always after `loginctl enable-linger`. It can limit
    /// by the controllers that the machine's systemd passes on to users, which are cpu, memory and
    /// pids unless configured otherwise; and it moves processes of this user only.
    pub fn user() -> Self {
        let runtime_dir = std::env::var("XDG_RUNTIME_DIR");
        let addresses = [
            std::env::var("DBUS_SESSION_BUS_ADDRESS").ok(),
            runtime_dir.ok().map(|dir| format!("unix:path={dir}/bus")),
        ];
        Self::at(addresses.into_iter().flatten().collect())
    }

    fn at(addresses: Vec<String>) -> Self {
        Self {
            addresses,
            patience: Duration::from_secs(30),
        }
    }

    /// How long to wait for an answer; otherwise 30 s. To stop a unit takes as long as its
    /// processes take, up to its `TimeoutStopUSec`.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Its version, as `252.39-1~deb12u2`. This also shows whether one is there.
    ///
    /// # Errors
    ///
    /// [`Error::NoSystemd`], [`Error::Timeout`].
    pub fn version(&self) -> Result<String> {
        let request = Request {
            operation: "tell its version",
            unit: "systemd",
        };
        self.converse(request, async |bus| {
            let path = "/org/freedesktop/systemd1";
            let manager = "org.freedesktop.systemd1.Manager";
            bus.text_property(request, path, manager, "Version").await
        })
    }

    /// Makes a scope or a slice and gives its group, with all its limits. When one of them cannot
    /// be had, the processes go back to where they were and the unit is stopped.
    ///
    /// # Errors
    ///
    /// [`Error::NoSystemd`], [`Error::AlreadyExists`], [`Error::NotDelegated`] when this user may
    /// not, [`Error::UnitRefused`], [`Error::UnitJob`], [`Error::Timeout`]; those of
    /// [`Cgroup::apply`] for limits.
    pub fn start(&self, unit: &TransientUnit) -> Result<Cgroup> {
        let request = Request {
            operation: "start",
            unit: unit.name(),
        };
        let hierarchy = Hierarchy::detect()?;
        let before = unit
            .processes()
            .iter()
            .map(|&pid| Ok((pid, hierarchy.of_process(pid)?)))
            .collect::<Result<Vec<_>>>()?;
        let control_group = self.converse(request, async |bus| {
            let properties = to_dbus(unit.properties());
            let body = (unit.name(), "fail", properties, NoUnits::new());
            bus.job(request, "StartTransientUnit", &body).await?;
            control_group(bus, request).await
        })?;
        let started = open(&hierarchy, &control_group, unit.name()).and_then(|group| {
            group.apply(unit.wanted_limits())?;
            Ok(group)
        });
        started.map_err(|cause| {
            let back = before
                .iter()
                .filter_map(|(pid, group)| match group.attach(*pid) {
                    Err(Error::NoSuchProcess { .. }) | Ok(()) => None,
                    Err(error) => Some(error),
                });
            let mut failures: Vec<_> = back.collect();
            // Stopping would kill whoever is still inside.
            if failures.is_empty()
                && let Err(error) = self.stop(unit.name())
                && !matches!(error, Error::NotFound { .. })
            {
                failures.push(error);
            }
            if failures.is_empty() {
                cause
            } else {
                Error::Rollback {
                    cause: Box::new(cause),
                    failures,
                }
            }
        })
    }

    /// Changes the limits of a unit until it is stopped. What `limits` leave open stays as it is.
    ///
    /// systemd is told first, so that it does not put its own values back later, then the group.
    ///
    /// # Errors
    ///
    /// As [`Systemd::start`]; [`Error::NotFound`] when there is no such unit.
    pub fn update(&self, unit: &str, limits: &Limits) -> Result<()> {
        let request = Request {
            operation: "change",
            unit,
        };
        let group = self.cgroup(unit)?;
        let previous = group.limits()?;
        let set = |limits: &Limits| {
            self.converse(request, async |bus| {
                let body = (unit, true, to_dbus(of_limits(limits)));
                bus.manager(request, "SetUnitProperties", &body).await
            })
        };
        set(limits)?;
        group.apply(limits).map_err(|cause| {
            let mut back = previous;
            for knob in back.knobs().collect::<Vec<_>>() {
                if !limits.knobs().any(|wanted| wanted == knob) {
                    back.unset(knob);
                }
            }
            match set(&back) {
                Ok(_) => cause,
                Err(failure) => Error::Rollback {
                    cause: Box::new(cause),
                    failures: vec![failure],
                },
            }
        })
    }

    /// Stops a unit: its processes get SIGTERM and, after its `TimeoutStopUSec` (90 s unless it
    /// says otherwise), SIGKILL. Returns when it is gone; to be quick, [`Cgroup::kill`] first.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such unit (it may have ended by itself),
    /// [`Error::Timeout`], [`Error::NotDelegated`], [`Error::UnitJob`].
    pub fn stop(&self, unit: &str) -> Result<()> {
        let request = Request {
            operation: "stop",
            unit,
        };
        self.converse(request, async |bus| {
            bus.job(request, "StopUnit", &(unit, "replace")).await
        })
    }

    /// The group of a running unit, of whatever kind.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when there is no such unit, or it has no group at the moment.
    pub fn cgroup(&self, unit: &str) -> Result<Cgroup> {
        let request = Request {
            operation: "find the group of",
            unit,
        };
        let control_group =
            self.converse(request, async |bus| control_group(bus, request).await)?;
        open(&Hierarchy::detect()?, &control_group, unit)
    }

    fn converse<T>(
        &self,
        request: Request<'_>,
        conversation: impl AsyncFnOnce(&Bus) -> Result<T>,
    ) -> Result<T> {
        converse(&self.addresses, request, self.patience, conversation)
    }
}

/// The property `ControlGroup` of a unit.
async fn control_group(bus: &Bus, request: Request<'_>) -> Result<String> {
    let answer = bus.manager(request, "GetUnit", &(request.unit,)).await?;
    let body = answer.body();
    let unit: OwnedObjectPath = body.deserialize().map_err(|_| Error::NotFound {
        group: request.unit.into(),
    })?;
    // Each kind of unit has an interface of its own.
    let interface = match request.unit.rsplit_once('.') {
        Some((_, "scope")) => "org.freedesktop.systemd1.Scope",
        Some((_, "slice")) => "org.freedesktop.systemd1.Slice",
        _ => "org.freedesktop.systemd1.Service",
    };
    bus.text_property(request, unit.as_str(), interface, "ControlGroup")
        .await
}

fn open(hierarchy: &Hierarchy, control_group: &str, unit: &str) -> Result<Cgroup> {
    match control_group.strip_prefix('/') {
        None => Err(Error::NotFound { group: unit.into() }),
        Some("") => hierarchy.root(),
        Some(path) => hierarchy.open(Path::new(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_nobody_listens_is_said() {
        let nobody = Systemd::at(vec!["unix:path=/nonexistent/socket".to_owned()]);
        let error = nobody.version().expect_err("there is no such socket");
        let message = error.to_string();
        assert!(matches!(error, Error::NoSystemd { .. }), "{message}");
        assert!(message.contains("/nonexistent/socket"), "{message}");

        let error = Systemd::at(Vec::new()).version().expect_err("nowhere");
        assert!(error.to_string().contains("XDG_RUNTIME_DIR"), "{error}");
    }

    #[test]
    fn who_does_not_answer_is_not_waited_for_longer_than_said() {
        let dir = std::env::temp_dir().join(format!("cofferdam-systemd-{}", std::process::id()));
        let _listener = std::os::unix::net::UnixListener::bind(&dir).expect("a socket");
        let silent = Systemd::at(vec![format!("unix:path={}", dir.display())])
            .patience(Duration::from_millis(50));
        let error = silent.version().expect_err("nobody speaks");
        std::fs::remove_file(&dir).expect("removed");
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
}
