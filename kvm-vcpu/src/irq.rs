use std::os::fd::AsFd;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MP_STATE_RUNNABLE,
    KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
    kvm_lapic_state, kvm_mp_state, kvm_msi, kvm_pit_config,
};

use crate::error::ioctl;
use crate::sys::Irqfd;
use crate::{Error, Result, Vcpu, Vm, sys};

/// Where a machine's interrupt controllers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum IrqChip {
    /// All in the kernel: two PICs, an IOAPIC, and a local APIC in each vCPU.
    #[doc(alias = "KVM_CREATE_IRQCHIP")]
    InKernel,
    /// The local APICs in the kernel, and an IOAPIC with this many pins (1 to 4096) in user space.
    #[doc(alias = "KVM_CAP_SPLIT_IRQCHIP")]
    Split {
        /// The IOAPIC's pins, whose routes the kernel keeps.
        pins: u16,
    },
}

/// A line into the interrupt controllers ("global system interrupt").
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(pub u32);

/// Where the interrupt of a line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// To a pin of the kernel's first PIC.
    PicMaster(u32),
    /// To a pin of the kernel's second PIC.
    PicSlave(u32),
    /// To a pin of the kernel's IOAPIC.
    Ioapic(u32),
    /// Straight to a local APIC, as a message.
    Msi(Msi),
}

impl Route {
    /// The routes that [`IrqChip::InKernel`] begins with: lines 0 to 15 to the PICs, 0 to 23 to the IOAPIC.
    /// Add those of messages to them for [`Vm::set_routes`], which replaces all.
    pub fn of_a_pc() -> Vec<(Gsi, Self)> {
        let pics = (0..16).map(|line| {
            let route = if line < 8 {
                Self::PicMaster(line)
            } else {
                Self::PicSlave(line - 8)
            };
            (Gsi(line), route)
        });
        pics.chain((0..24).map(|line| (Gsi(line), Self::Ioapic(line))))
            .collect()
    }
}

/// A message-signalled interrupt: a write of `data` to `address`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Msi {
    /// The address, `0xfee…`, which holds the destination.
    pub address: u64,
    /// The data, which holds the vector.
    pub data: u32,
}

/// What a guest's write must hit to signal an eventfd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoEvent {
    /// The port or address.
    pub at: IoAddress,
    /// How many bytes the write has: 1, 2, 4 or 8; 0 for any width.
    pub len: u8,
    /// The value that it writes; `None` for any.
    pub value: Option<u64>,
}

/// A place that guests read and write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoAddress {
    /// An I/O port.
    Port(u16),
    /// A guest-physical address without memory.
    Memory(u64),
}

impl Vm {
    /// Gives the machine interrupt controllers. A guest that halts then waits in the kernel, and
    /// makes no [`Exit::Halt`](crate::Exit::Halt).
    ///
    /// # Errors
    ///
    /// [`Error::Order`] when there are vCPUs or controllers already; [`Error::Ioctl`] when the kernel
    /// cannot.
    pub fn create_irqchip(&self, chip: IrqChip) -> Result<()> {
        self.before_vcpus("create_irqchip")?;
        match chip {
            IrqChip::InKernel => {
                // Three pages that Intel's real mode needs, where firmware usually is.
                self.fd()
                    .set_tss_address(0xfffb_d000)
                    .map_err(ioctl("KVM_SET_TSS_ADDR (placing real mode's task state)"))?;
                self.fd()
                    .create_irq_chip()
                    .map_err(ioctl("KVM_CREATE_IRQCHIP (making interrupt controllers)"))?;
            }
            IrqChip::Split { pins } => self
                .fd()
                .enable_cap(&kvm_enable_cap {
                    cap: KVM_CAP_SPLIT_IRQCHIP,
                    args: [pins.into(), 0, 0, 0],
                    ..Default::default()
                })
                .map_err(ioctl(
                    "KVM_ENABLE_CAP of KVM_CAP_SPLIT_IRQCHIP (making local interrupt controllers)",
                ))?,
        }
        self.note_irqchip(chip);
        Ok(())
    }

    /// Gives the machine the timer of a PC (8254), on line 0 of the kernel's controllers.
    ///
    /// # Errors
    ///
    /// [`Error::NeedsIrqChip`] when the controllers are not [`IrqChip::InKernel`]; [`Error::Ioctl`] when
    /// there is one already.
    #[doc(alias = "KVM_CREATE_PIT2")]
    pub fn create_pit(&self) -> Result<()> {
        // Some kernels would make one that can never interrupt anybody.
        if self.inner.irqchip() != Some(IrqChip::InKernel) {
            return Err(Error::NeedsIrqChip {
                operation: "create_pit",
            });
        }
        self.fd()
            .create_pit2(kvm_pit_config {
                flags: KVM_PIT_SPEAKER_DUMMY,
                ..Default::default()
            })
            .map_err(ioctl("KVM_CREATE_PIT2 (making the timer)"))
    }

    /// Raises or lowers a line of the kernel's controllers.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the controllers are not [`IrqChip::InKernel`].
    #[doc(alias = "KVM_IRQ_LINE")]
    pub fn set_irq_line(&self, line: Gsi, high: bool) -> Result<()> {
        self.fd().set_irq_line(line.0, high).map_err(ioctl(
            "KVM_IRQ_LINE (setting an interrupt line; it needs IrqChip::InKernel)",
        ))
    }

    /// Sends a message-signalled interrupt; says whether the guest took it.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when there are no local APICs in the kernel.
    #[doc(alias = "KVM_SIGNAL_MSI")]
    pub fn signal_msi(&self, msi: Msi) -> Result<bool> {
        let taken = self
            .fd()
            .signal_msi(kvm_msi {
                address_lo: msi.address as u32,
                address_hi: (msi.address >> 32) as u32,
                data: msi.data,
                ..Default::default()
            })
            .map_err(ioctl(
                "KVM_SIGNAL_MSI (sending an interrupt; it needs create_irqchip)",
            ))?;
        Ok(taken > 0)
    }

    /// Sets where the interrupts of all lines go, in place of the routes that there were.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] for more routes than the kernel takes; [`Error::Ioctl`] when it refuses them.
    #[doc(alias = "KVM_SET_GSI_ROUTING")]
    pub fn set_routes(&self, routes: &[(Gsi, Route)]) -> Result<()> {
        let entries: Vec<kvm_irq_routing_entry> = routes
            .iter()
            .map(|(gsi, route)| {
                let chip = |irqchip, pin| {
                    let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
                    let u = kvm_irq_routing_entry__bindgen_ty_1 { irqchip };
                    (KVM_IRQ_ROUTING_IRQCHIP, u)
                };
                let (type_, u) = match *route {
                    Route::PicMaster(pin) => chip(0, pin),
                    Route::PicSlave(pin) => chip(1, pin),
                    Route::Ioapic(pin) => chip(2, pin),
                    Route::Msi(msi) => {
                        let msi = kvm_irq_routing_msi {
                            address_lo: msi.address as u32,
                            address_hi: (msi.address >> 32) as u32,
                            data: msi.data,
                            ..Default::default()
                        };
                        let u = kvm_irq_routing_entry__bindgen_ty_1 { msi };
                        (KVM_IRQ_ROUTING_MSI, u)
                    }
                };
                kvm_irq_routing_entry {
                    gsi: gsi.0,
                    type_,
                    u,
                    ..Default::default()
                }
            })
            .collect();
        let routing = KvmIrqRouting::from_entries(&entries).map_err(|_| Error::TooMany {
            what: "interrupt routes",
            given: entries.len(),
            max: 4096,
        })?;
        self.fd()
            .set_gsi_routing(&routing)
            .map_err(ioctl("KVM_SET_GSI_ROUTING (routing interrupts)"))
    }

    /// Makes each signal of an eventfd an interrupt on a line, without this program's doing.
    ///
    /// The kernel keeps the eventfd until [`Vm::disconnect_irqfd`] or the machine's end.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when there are no controllers or it is no eventfd, or one that is connected
    /// already.
    #[doc(alias = "KVM_IRQFD")]
    pub fn connect_irqfd(&self, eventfd: impl AsFd, line: Gsi) -> Result<()> {
        sys::irqfd(self.fd(), eventfd.as_fd(), line.0, Irqfd::Edge).map_err(|source| Error::Ioctl {
            operation: "KVM_IRQFD (connecting an eventfd to an interrupt line)",
            source,
        })
    }

    /// As [`Vm::connect_irqfd`] for a level-triggered line, which stays high until the guest
    /// acknowledges the interrupt: `acknowledged` is signalled then, and `eventfd` has to be signalled
    /// once more if the device still wants attention.
    ///
    /// # Errors
    ///
    /// As [`Vm::connect_irqfd`]; the controllers must be [`IrqChip::InKernel`].
    #[doc(alias = "KVM_IRQFD_FLAG_RESAMPLE")]
    pub fn connect_level_irqfd(
        &self,
        eventfd: impl AsFd,
        acknowledged: impl AsFd,
        line: Gsi,
    ) -> Result<()> {
        let acknowledged = acknowledged.as_fd();
        sys::irqfd(
            self.fd(),
            eventfd.as_fd(),
            line.0,
            Irqfd::Level(acknowledged),
        )
        .map_err(|source| Error::Ioctl {
            operation: "KVM_IRQFD (connecting an eventfd to a level-triggered interrupt line)",
            source,
        })
    }

    /// Ends what [`Vm::connect_irqfd`] or [`Vm::connect_level_irqfd`] began.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when it is no eventfd.
    #[doc(alias = "KVM_IRQFD")]
    pub fn disconnect_irqfd(&self, eventfd: impl AsFd, line: Gsi) -> Result<()> {
        sys::irqfd(self.fd(), eventfd.as_fd(), line.0, Irqfd::Disconnect).map_err(|source| {
            Error::Ioctl {
                operation: "KVM_IRQFD (disconnecting an eventfd from an interrupt line)",
                source,
            }
        })
    }

    /// Makes each write of the guest that hits `event` a signal of an eventfd instead of an exit.
    ///
    /// The kernel keeps the eventfd until [`Vm::disconnect_ioeventfd`] or the machine's end.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when it is no eventfd, or the event is not valid or taken.
    #[doc(alias = "KVM_IOEVENTFD")]
    pub fn connect_ioeventfd(&self, eventfd: impl AsFd, event: IoEvent) -> Result<()> {
        sys::ioeventfd(self.fd(), eventfd.as_fd(), event, true).map_err(|source| Error::Ioctl {
            operation: "KVM_IOEVENTFD (connecting an eventfd to a port or address)",
            source,
        })
    }

    /// Ends what [`Vm::connect_ioeventfd`] began.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when they are not connected.
    #[doc(alias = "KVM_IOEVENTFD")]
    pub fn disconnect_ioeventfd(&self, eventfd: impl AsFd, event: IoEvent) -> Result<()> {
        sys::ioeventfd(self.fd(), eventfd.as_fd(), event, false).map_err(|source| Error::Ioctl {
            operation: "KVM_IOEVENTFD (disconnecting an eventfd from a port or address)",
            source,
        })
    }
}

impl Vcpu {
    /// Injects an external interrupt, for machines without controllers in the kernel. The guest has
    /// to be able to take it: [`Vcpu::can_take_interrupt`].
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the machine has controllers in the kernel, or one interrupt waits already.
    #[doc(alias = "KVM_INTERRUPT")]
    pub fn interrupt(&self, vector: u8) -> Result<()> {
        sys::interrupt(self.fd(), vector).map_err(|source| Error::Ioctl {
            operation: "KVM_INTERRUPT (injecting an interrupt)",
            source,
        })
    }

    /// Whether the guest could take an interrupt when it last exited.
    #[doc(alias = "ready_for_interrupt_injection")]
    pub fn can_take_interrupt(&self) -> bool {
        self.run_page().can_take_interrupt()
    }

    /// Asks for [`Exit::InterruptWindow`](crate::Exit::InterruptWindow) as soon as the guest can take
    /// an interrupt, or no longer.
    pub fn request_interrupt_window(&mut self, wanted: bool) {
        self.run_page_mut().request_interrupt_window(wanted);
    }

    /// Injects a non-maskable interrupt.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel cannot.
    #[doc(alias = "KVM_NMI")]
    pub fn nmi(&self) -> Result<()> {
        self.fd()
            .nmi()
            .map_err(ioctl("KVM_NMI (injecting a non-maskable interrupt)"))
    }

    /// The registers of its local APIC, as they lie in memory.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the machine has no local APICs in the kernel.
    #[doc(alias = "KVM_GET_LAPIC")]
    pub fn local_apic(&self) -> Result<[u8; 1024]> {
        let state = self.fd().get_lapic().map_err(ioctl(
            "KVM_GET_LAPIC (reading the local interrupt controller)",
        ))?;
        Ok(state.regs.map(i8::cast_unsigned))
    }

    /// Sets the registers of its local APIC.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the machine has no local APICs in the kernel, or it refuses the state.
    #[doc(alias = "KVM_SET_LAPIC")]
    pub fn set_local_apic(&self, registers: &[u8; 1024]) -> Result<()> {
        // The task priority is among the system registers.
        self.forget_synced();
        let state = kvm_lapic_state {
            regs: registers.map(u8::cast_signed),
        };
        self.fd().set_lapic(&state).map_err(ioctl(
            "KVM_SET_LAPIC (setting the local interrupt controller)",
        ))
    }

    /// Lets it run although it waits to be started by another vCPU, as all but the first do in a
    /// machine with controllers in the kernel.
    pub(crate) fn make_runnable(&self) -> Result<()> {
        self.fd()
            .set_mp_state(kvm_mp_state {
                mp_state: KVM_MP_STATE_RUNNABLE,
            })
            .map_err(ioctl("KVM_SET_MP_STATE (making the vCPU runnable)"))
    }
}
