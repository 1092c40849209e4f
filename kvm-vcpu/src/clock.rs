use std::time::{Duration, SystemTime};

use kvm_bindings::{KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, kvm_clock_data};

use crate::error::ioctl;
use crate::{Error, Result, Vcpu, Vm};

/// A machine's clock (kvmclock), and the host's at the same moment where the kernel tells it (5.16).
#[doc(alias = "kvm_clock_data")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// How long the machine has run, as its guest sees it.
    pub elapsed: Duration,
    /// The host's wall clock.
    pub host_time: Option<SystemTime>,
    /// The host's time stamp counter.
    pub host_tsc: Option<u64>,
}

impl Vm {
    /// The guest's clock.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not tell.
    #[doc(alias = "KVM_GET_CLOCK")]
    pub fn clock(&self) -> Result<Clock> {
        let clock = self
            .fd()
            .get_clock()
            .map_err(ioctl("KVM_GET_CLOCK (reading the clock)"))?;
        let told = |flag| clock.flags & flag != 0;
        Ok(Clock {
            elapsed: Duration::from_nanos(clock.clock),
            host_time: told(KVM_CLOCK_REALTIME)
                .then(|| SystemTime::UNIX_EPOCH + Duration::from_nanos(clock.realtime)),
            host_tsc: told(KVM_CLOCK_HOST_TSC).then_some(clock.host_tsc),
        })
    }

    /// Sets the guest's clock.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel refuses it.
    #[doc(alias = "KVM_SET_CLOCK")]
    pub fn set_clock(&self, elapsed: Duration) -> Result<()> {
        let clock = kvm_clock_data {
            clock: u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX),
            ..Default::default()
        };
        self.fd()
            .set_clock(&clock)
            .map_err(ioctl("KVM_SET_CLOCK (setting the clock)"))
    }
}

impl Vcpu {
    /// Tells the guest that it was stopped on purpose, so that it does not report a processor that
    /// hangs. Says whether the guest uses the clock that tells it.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel cannot.
    #[doc(alias = "KVM_KVMCLOCK_CTRL")]
    pub fn note_pause(&self) -> Result<bool> {
        match self.fd().kvmclock_ctrl() {
            Ok(()) => Ok(true),
            Err(e) if e.errno() == libc::EINVAL => Ok(false),
            Err(e) => Err(ioctl("KVM_KVMCLOCK_CTRL (telling the guest of a pause)")(e)),
        }
    }

    /// The frequency of its time stamp counter, in kHz.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not tell.
    #[doc(alias = "KVM_GET_TSC_KHZ")]
    pub fn tsc_khz(&self) -> Result<u32> {
        self.fd().get_tsc_khz().map_err(ioctl(
            "KVM_GET_TSC_KHZ (asking for the frequency of the TSC)",
        ))
    }

    /// Sets the frequency of its time stamp counter, in kHz, such as that of the host where a snapshot was
    /// taken.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for another than the host's on a CPU that cannot scale it
    /// ([`Capability::TscControl`](crate::Capability::TscControl)).
    #[doc(alias = "KVM_SET_TSC_KHZ")]
    pub fn set_tsc_khz(&self, khz: u32) -> Result<()> {
        let before = self.tsc_khz()?;
        if self.fd().set_tsc_khz(khz).is_ok() {
            return Ok(());
        }
        // The kernel would tell of the frequency that it refused from now on.
        self.fd().set_tsc_khz(before).map_err(ioctl(
            "KVM_SET_TSC_KHZ (setting the frequency of the TSC back)",
        ))?;
        Err(Error::Unsupported {
            capability: "KVM_CAP_TSC_CONTROL for this frequency",
            advice: "run the guest with the host's own, which Vcpu::tsc_khz tells",
        })
    }
}
