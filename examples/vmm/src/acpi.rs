//! The ACPI tables: how a stock kernel finds CPUs, interrupts, the serial port and virtio devices.
//!
//! The machine is "hardware-reduced": it has none of the fixed hardware of a PC, only what its
//! tables describe. `iasl -d` shows them in words.

use acpi_tables::Aml;
use acpi_tables::aml::{self, Device, Name, Path, ResourceTemplate};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use kvm_vcpu::GuestMemory;

use crate::error::Error;
use crate::layout::{
    ACPI, EVENT_LINE, IO_APIC, LOCAL_APIC, PANIC_PORT, RESET_PORT, RESTART, SERIAL, SERIAL_LINE,
    SLEEP_PORT, VIRTIO, VIRTIO_LINES, VIRTIO_SIZE,
};

const MAKER: [u8; 6] = *b"COFFER";
const TABLE: [u8; 8] = *b"COFFERDM";
const REVISION: u32 = 1;

/// No legacy devices, keyboard controller, VGA to probe for, or CMOS clock: bits of
/// `IAPC_BOOT_ARCH`, as far as set: VGA is not present, nor is a CMOS clock.
const NOTHING_LEGACY: u16 = 1 << 2 | 1 << 5;

/// Where the generation counter is: 16 bytes that change when a machine is restored, so that a guest
/// that runs twice does not use the same random numbers twice.
pub(crate) const GENERATION: u64 = ACPI.end - 0x1000;

/// The tables of a machine, each with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) pointer: Vec<u8>,
    pub(crate) placed: Vec<(u64, Vec<u8>)>,
}

impl Tables {
    /// Describes a machine with so many CPUs and virtio devices.
    pub(crate) fn new(cpus: u8, virtio: u32) -> Self {
        let mut next = ACPI.start + 0x100;
        let mut placed: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut place = |table: Vec<u8>| {
            let at = next;
            next = (at + table.len() as u64).next_multiple_of(16);
            placed.push((at, table));
            at
        };
        let dsdt = place(bytes(&dsdt(virtio)));
        let fadt = place(bytes(&fadt(dsdt)));
        let madt = place(bytes(&madt(cpus)));
        let mut xsdt = XSDT::new(MAKER, TABLE, REVISION);
        xsdt.add_entry(fadt);
        xsdt.add_entry(madt);
        let xsdt = place(bytes(&xsdt));
        Self {
            pointer: bytes(&Rsdp::new(MAKER, xsdt)),
            placed,
        }
    }

    /// Puts the tables into the guest's memory.
    pub(crate) fn write(&self, memory: &GuestMemory) -> Result<(), Error> {
        memory.write(ACPI.start, &self.pointer)?;
        for (at, table) in &self.placed {
            memory.write(*at, table)?;
        }
        Ok(())
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// The fixed description: where to write to restart or to switch off.
fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| {
        GAS::new(
            AddressSpace::SystemIo,
            8,
            0,
            AccessSize::ByteAccess,
            port.into(),
        )
    };
    let mut fadt = FADTBuilder::new(MAKER, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.iapc_boot_arch = NOTHING_LEGACY.into();
    fadt.reset_reg = port(RESET_PORT);
    fadt.reset_value = RESTART;
    fadt.sleep_control_reg = port(SLEEP_PORT);
    fadt.sleep_status_reg = port(SLEEP_PORT + 1);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(TABLE).into();
    fadt.finalize()
}

/// The interrupt controllers, one local one for each CPU.
fn madt(cpus: u8) -> MADT {
    let local = LocalInterruptController::Address(LOCAL_APIC);
    let mut madt = MADT::new(MAKER, TABLE, REVISION, local);
    for id in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IO_APIC, 0));
    madt
}

/// The devices.
fn dsdt(virtio: u32) -> Sdt {
    let mut sdt = Sdt::new(*b"DSDT", 36, 2, MAKER, TABLE, REVISION);
    for device in [serial(), panic(), generation(), events()] {
        sdt.append_slice(&device);
    }
    for index in 0..virtio {
        sdt.append_slice(&virtio_mmio(index));
    }
    // Sleep state 5, "soft off", is entered by writing 5 to the sleep control register.
    let off = aml::Package::new(vec![&5u8, &0u8, &0u8, &0u8]);
    sdt.append_slice(&bytes(&Name::new("_S5_".into(), &off)));
    sdt
}

/// A line whose edges count, active high, shared with nobody.
fn line(number: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, number)
}

fn serial() -> Vec<u8> {
    let ports = aml::IO::new(SERIAL.start, SERIAL.start, 1, 8);
    bytes(&Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports, &line(SERIAL_LINE)]),
            ),
        ],
    ))
}

fn panic() -> Vec<u8> {
    let port = aml::IO::new(PANIC_PORT, PANIC_PORT, 1, 1);
    bytes(&Device::new(
        "_SB_.PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&port])),
        ],
    ))
}

/// The generation counter. See "Virtual Machine Generation ID" by Microsoft.
fn generation() -> Vec<u8> {
    let low = u32::try_from(GENERATION).unwrap_or(u32::MAX);
    bytes(&Device::new(
        "_SB_.VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"COFF0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &aml::Package::new(vec![&low, &0u32])),
        ],
    ))
}

/// Turns the event line into a notification of the generation counter ("generic event device").
fn events() -> Vec<u8> {
    bytes(&Device::new(
        "_SB_.GED0".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&line(EVENT_LINE)]),
            ),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::Notify::new(&Path::new("\\_SB_.VGEN"), &0x80u8)],
            ),
        ],
    ))
}

/// The address and the interrupt line of a virtio device.
pub(crate) fn virtio_place(index: u32) -> (u64, u32) {
    let at = VIRTIO + u64::from(index) * VIRTIO_SIZE;
    (at, VIRTIO_LINES.start + index)
}

fn virtio_mmio(index: u32) -> Vec<u8> {
    let (at, number) = virtio_place(index);
    let (at, size) = (
        u32::try_from(at).unwrap_or(u32::MAX),
        u32::try_from(VIRTIO_SIZE).unwrap_or(u32::MAX),
    );
    let memory = aml::Memory32Fixed::new(true, at, size);
    let name = format!("_SB_.VR{index:02X}");
    bytes(&Device::new(
        name.as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            // The device sees all memory as it is: no cache has to be flushed.
            &Name::new("_CCA".into(), &aml::One {}),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&memory, &line(number)]),
            ),
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn sums_to_zero(bytes: &[u8]) -> bool {
        bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
    }

    #[test]
    fn checksums_hold_and_tables_fit() {
        for (cpus, virtio) in [(1, 0), (4, 3), (254, 18)] {
            let tables = Tables::new(cpus, virtio);
            assert!(sums_to_zero(&tables.pointer) && sums_to_zero(&tables.pointer[..20]));
            let mut free = ACPI.start + tables.pointer.len() as u64;
            for (at, table) in &tables.placed {
                assert!(sums_to_zero(table), "{:?}", &table[..4]);
                assert_eq!(
                    table[4..8],
                    u32::try_from(table.len()).unwrap().to_le_bytes()
                );
                assert!(*at >= free);
                free = at + table.len() as u64;
            }
            assert!(free <= GENERATION, "{free:#x}");
        }
    }

    #[test]
    fn another_disassembler_accepts_them() {
        let dir = tempfile::tempdir().unwrap();
        for (_, table) in Tables::new(4, 18).placed {
            let name = String::from_utf8(table[..4].to_vec()).unwrap();
            std::fs::write(dir.path().join(format!("{name}.aml")), table).unwrap();
            let out = Command::new("iasl")
                .arg("-d")
                .arg(format!("{name}.aml"))
                .current_dir(&dir)
                .output()
                .expect("iasl is needed: apt-get install acpica-tools");
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.success(), "{name}: {said}");
            for word in ["rror", "arning", "nvalid"] {
                assert!(!said.contains(word), "{name}: {said}");
            }
            if name == "DSDT" {
                let out = Command::new("iasl")
                    .arg("DSDT.dsl")
                    .current_dir(&dir)
                    .output()
                    .unwrap();
                let said = String::from_utf8_lossy(&out.stdout).into_owned();
                assert!(said.contains(" 0 Errors, 0 Warnings"), "{said}");
            }
        }
    }
}
