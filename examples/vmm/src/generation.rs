//! The number by which a guest knows that it was restored, and that its random numbers are no longer
//! its own.

use kvm_vcpu::GuestMemory;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::acpi::GENERATION;
use crate::error::Error;

/// Puts a new number into the guest's memory.
pub(crate) fn write(memory: &GuestMemory) -> Result<(), Error> {
    let mut number = [0; 16];
    getrandom(&mut number[..], GetRandomFlags::empty()).map_err(|e| Error::Host {
        what: "get random numbers",
        source: e.into(),
    })?;
    memory.write(GENERATION, &number)?;
    Ok(())
}
