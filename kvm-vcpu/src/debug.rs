use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, kvm_guest_debug};

use crate::error::ioctl;
use crate::{Result, Vcpu};

impl Vcpu {
    /// Stops the guest with [`Exit::Debug`](crate::Exit::Debug) after each instruction, or no longer.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel cannot.
    #[doc(alias = "KVM_SET_GUEST_DEBUG")]
    pub fn set_single_step(&self, on: bool) -> Result<()> {
        let control = if on {
            KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP
        } else {
            0
        };
        self.fd()
            .set_guest_debug(&kvm_guest_debug {
                control,
                ..Default::default()
            })
            .map_err(ioctl("KVM_SET_GUEST_DEBUG (stepping through the guest)"))
    }
}
