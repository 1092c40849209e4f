//! The settings of a [`Command`] that are about its namespaces.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use crate::command::{Command, Join};
use crate::{Namespace, TimeOffset, UserMapping};

impl Command {
    /// Gives the program new namespaces.
    ///
    /// Without privilege [`Namespace::User`] must be among them; see
    /// [`user_namespace`](Self::user_namespace) for its ids.
    #[doc(alias = "clone3")]
    pub fn unshare(&mut self, namespaces: impl IntoIterator<Item = Namespace>) -> &mut Self {
        for namespace in namespaces {
            if !self.new.contains(&namespace) {
                self.new.push(namespace);
            }
        }
        self
    }

    /// Joins an existing namespace: `namespace` is an fd of `/proc/PID/ns/…` or a pidfd of a
    /// process in it (Linux 5.8).
    #[doc(alias = "setns")]
    pub fn join(&mut self, kind: Namespace, namespace: impl AsFd) -> &mut Self {
        match self.duplicate(namespace) {
            Some(fd) => self.joined.insert(kind, Join::Fd(fd)),
            None => None,
        };
        self
    }

    /// Joins an existing namespace by the path of its file: `/proc/PID/ns/…` or where it is
    /// bind-mounted.
    ///
    /// With a joined mount namespace, [`root`](Self::root) and mounts are made in it: for everybody
    /// who is in it, with paths as they are seen there.
    pub fn join_path(&mut self, kind: Namespace, path: impl AsRef<Path>) -> &mut Self {
        self.joined
            .insert(kind, Join::Path(path.as_ref().to_owned()));
        self
    }

    /// Starts the program where another process is: in all its namespaces that are not those of
    /// this process already, and with its root directory. `process` is a pidfd, as a
    /// [`Child`](crate::Child), a [`Process`](crate::Process) or a [`Starting`](crate::Starting)
    /// lends one. This is what `docker exec` does.
    ///
    /// A kind that is [new](Self::unshare) or [joined](Self::join) is not taken from the process.
    /// In its user namespace the program is root unless [`uid`](Self::uid) says otherwise. Of a
    /// process that waits at [`Barrier::Mounted`](crate::Barrier::Mounted) the root directory still
    /// is the old one, so that a program of the host can be run among the new mounts.
    ///
    /// The namespaces are entered in one system call. Linux 5.8.
    #[doc(alias = "setns")]
    #[doc(alias = "nsenter")]
    pub fn enter(&mut self, process: impl AsFd) -> &mut Self {
        self.entered = self.duplicate(process);
        self
    }

    /// Gives the program a new user namespace with these ids. The program is root in it unless
    /// [`uid`](Self::uid) says otherwise.
    pub fn user_namespace(&mut self, mapping: UserMapping) -> &mut Self {
        self.user_mapping = Some(mapping);
        self.unshare([Namespace::User])
    }

    /// How far the monotonic and the boot-time clock of a new [`Namespace::Time`] are ahead of
    /// the caller's.
    #[doc(alias = "timens_offsets")]
    pub fn time_offsets(&mut self, monotonic: TimeOffset, boottime: TimeOffset) -> &mut Self {
        self.time_offsets = [Some(monotonic), Some(boottime)];
        self
    }

    /// Brings `lo` up in the network namespace.
    #[doc(alias = "IFF_UP")]
    pub fn loopback_up(&mut self, up: bool) -> &mut Self {
        self.loopback_up = up;
        self
    }

    /// The hostname; needs [`Namespace::Uts`]. At most 64 bytes.
    #[doc(alias = "sethostname")]
    pub fn hostname(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.hostname = Some(name.as_ref().to_owned());
        self
    }

    /// The NIS domain name; needs [`Namespace::Uts`]. At most 64 bytes.
    #[doc(alias = "setdomainname")]
    pub fn domainname(&mut self, name: impl AsRef<OsStr>) -> &mut Self {
        self.domainname = Some(name.as_ref().to_owned());
        self
    }

    /// Sets a kernel parameter of the new namespaces, such as `net.ipv4.ip_forward`. Slashes
    /// separate where a name has dots in it.
    ///
    /// It is written through a `/proc` that nobody else sees, whatever is mounted there
    /// (CVE-2019-16884).
    #[doc(alias = "/proc/sys")]
    pub fn sysctl(&mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> &mut Self {
        self.sysctls
            .insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }
}
