use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use kvm_bindings::KVM_API_VERSION;

use crate::{Error, Region, Result, Vm, sys};

/// An open KVM device: where virtual machines come from.
///
/// What a machine may or may not be able to do is asked when it is needed, so that making one takes no
/// more calls than it must.
#[doc(alias = "/dev/kvm")]
#[derive(Debug)]
pub struct Kvm {
    pub(crate) fd: kvm_ioctls::Kvm,
    path: PathBuf,
}

impl Kvm {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    ///
    /// [`Error::NoDevice`], [`Error::PermissionDenied`] or [`Error::Open`] when it cannot be opened,
    /// and [`Error::NotKvm`] and [`Error::ApiVersion`] when what answers is not a KVM of version 12.
    pub fn open() -> Result<Self> {
        Self::open_at("/dev/kvm")
    }

    /// Opens the KVM device at another path, as some containers have it.
    ///
    /// # Errors
    ///
    /// As [`Kvm::open`].
    pub fn open_at(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound => Error::NoDevice { path: path.clone() },
                io::ErrorKind::PermissionDenied => Error::PermissionDenied { path: path.clone() },
                // The node outlives its module: opening it then says ENXIO or ENODEV.
                _ if matches!(source.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => {
                    Error::NoDevice { path: path.clone() }
                }
                _ => Error::Open {
                    path: path.clone(),
                    source,
                },
            })?;
        let kvm = Self {
            fd: sys::kvm_from_file(file),
            path,
        };
        let version = kvm.fd.get_api_version();
        if version < 0 {
            return Err(Error::NotKvm {
                path: kvm.path,
                source: io::Error::last_os_error(),
            });
        }
        check_version(version)?;
        Ok(kvm)
    }

    /// The path that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a virtual machine with these regions of memory and no vCPU yet.
    ///
    /// # Errors
    ///
    /// As [`Vm::new`].
    pub fn create_vm(&self, regions: &[Region]) -> Result<Vm> {
        Vm::new(self, regions)
    }

    /// How many vCPUs a virtual machine may have at most.
    #[doc(alias = "KVM_CAP_MAX_VCPUS")]
    pub fn max_vcpus(&self) -> usize {
        self.fd.get_max_vcpus()
    }

    /// How many regions of memory a virtual machine may have at most.
    #[doc(alias = "KVM_CAP_NR_MEMSLOTS")]
    pub fn max_regions(&self) -> usize {
        self.fd.get_nr_memslots()
    }
}

/// The interface has one version since Linux 2.6.22, and programs refuse any other.
fn check_version(found: i32) -> Result<()> {
    if u32::try_from(found) == Ok(KVM_API_VERSION) {
        Ok(())
    } else {
        Err(Error::ApiVersion { found })
    }
}

impl AsFd for Kvm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow_fd(self, self.fd.as_raw_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_of_the_interface_is_refused() {
        check_version(12).unwrap();
        for found in [0, 11, 13] {
            let e = check_version(found).unwrap_err();
            assert!(matches!(e, Error::ApiVersion { .. }), "{e:?}");
            let text = e.to_string();
            assert!(
                text.starts_with(&format!("KVM speaks API version {found}, "))
                    && text.contains("2.6.22")
            );
        }
    }
}
