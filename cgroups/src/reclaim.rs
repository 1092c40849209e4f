//! Reclaiming memory on demand.

use rustix::io::Errno;

use crate::bytes::Bytes;
use crate::error::Result;
use crate::group::Cgroup;
use crate::knob::Knob;
use crate::procfs::Version;

impl Cgroup {
    /// Has the kernel reclaim so much of the group's memory now. The answer is whether it could;
    /// if not, it has reclaimed what it could. v2, Linux 5.19.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`](crate::Error::Unsupported) on v1 and on older kernels; [`Error::NotDelegated`](crate::Error::NotDelegated).
    #[doc(alias = "memory.reclaim")]
    pub fn reclaim(&self, amount: Bytes) -> Result<bool> {
        let knob = Knob::MemoryReclaim;
        let (version, dir) = self.dir_of(knob.controller())?;
        if version == Version::V1 {
            return Err(self.unsupported(knob));
        }
        loop {
            return match dir.write_raw(knob.name(), &amount.get().to_string()) {
                Ok(()) => Ok(true),
                Err(Errno::AGAIN) => Ok(false),
                Err(Errno::INTR) => continue,
                Err(Errno::NOENT) if dir.is_alive() => Err(self.unsupported(knob)),
                Err(errno) => Err(dir.error("write", knob.name(), errno)),
            };
        }
    }
}
