use kvm_ioctls::IoEventAddress;

use crate::error::ioctl;
use crate::{Exit, IoAddress, Result, Vcpu, Vm, exit_parse, sys};

impl Vm {
    /// Collects the guest's writes to `len` bytes or ports from `at` on instead of making an exit of
    /// each, for devices whose writes have no effect at once. [`Vcpu::take_coalesced`] gives them out.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel cannot; ports need 4.20.
    #[doc(alias = "KVM_REGISTER_COALESCED_MMIO")]
    pub fn coalesce(&self, at: IoAddress, len: u32) -> Result<()> {
        self.fd()
            .register_coalesced_mmio(event_address(at), len)
            .map_err(ioctl(
                "KVM_REGISTER_COALESCED_MMIO (collecting a guest's writes)",
            ))
    }

    /// Ends what [`Vm::coalesce`] began.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel cannot.
    #[doc(alias = "KVM_UNREGISTER_COALESCED_MMIO")]
    pub fn do_not_coalesce(&self, at: IoAddress, len: u32) -> Result<()> {
        self.fd()
            .unregister_coalesced_mmio(event_address(at), len)
            .map_err(ioctl(
                "KVM_UNREGISTER_COALESCED_MMIO (no longer collecting a guest's writes)",
            ))
    }
}

impl Vcpu {
    /// Takes the writes that were collected, of all vCPUs of the machine and in their order, as
    /// [`Exit::MmioWrite`] and [`Exit::PortOut`]. Take them before handling an exit of the same device,
    /// which came later. The kernel has room for about 170; a write that finds none makes an exit.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel has no room for writes to be collected in.
    pub fn take_coalesced(&mut self) -> Result<Vec<Exit>> {
        let fd = self.fd_mut();
        fd.map_coalesced_mmio_ring()
            .map_err(ioctl("mmap (reaching the writes that were collected)"))?;
        let mut writes = Vec::new();
        while let Some(write) = fd
            .coalesced_mmio_read()
            .map_err(ioctl("reading a write that was collected"))?
        {
            let len = write.len.min(8) as usize;
            let is_port = sys::is_port(&write);
            writes.push(exit_parse::write(
                is_port,
                write.phys_addr,
                &write.data[..len],
            ));
        }
        Ok(writes)
    }
}

fn event_address(at: IoAddress) -> IoEventAddress {
    match at {
        IoAddress::Port(port) => IoEventAddress::Pio(port.into()),
        IoAddress::Memory(address) => IoEventAddress::Mmio(address),
    }
}
