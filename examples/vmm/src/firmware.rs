//! All that there is of a PC's firmware: what a CPU finds when it is sent back to where it started.
//!
//! Linux restarts a hardware-reduced machine by UEFI, and one without UEFI by jumping to the BIOS in
//! real mode (`BOOT_EFI` and then `BOOT_BIOS` in its `arch/x86/kernel/reboot.c`), where this is.

use kvm_vcpu::GuestMemory;

use crate::error::Error;
use crate::layout::{RESET_PORT, RESET_VECTOR, RESTART};

/// `mov dx, RESET_PORT; mov al, RESTART; out dx, al; hlt`, in real mode.
const RESTARTS: [u8; 7] = {
    let [low, high] = RESET_PORT.to_le_bytes();
    [0xba, low, high, 0xb0, RESTART, 0xee, 0xf4]
};

/// Puts it into the guest's memory.
pub(crate) fn write(memory: &GuestMemory) -> Result<(), Error> {
    memory.write(RESET_VECTOR, &RESTARTS)?;
    Ok(())
}
