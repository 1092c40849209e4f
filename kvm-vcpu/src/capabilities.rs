use kvm_bindings as k;

use crate::Kvm;

macro_rules! capabilities {
    ($($variant:ident $constant:ident $text:literal;)*) => {
        /// What a host's KVM may be able to do beyond what every kernel of the minimum version can.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Capability {
            $(
                #[doc = concat!($text, " `", stringify!($constant), "`")]
                $variant,
            )*
        }

        impl Capability {
            /// All that have a name here.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The kernel's name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => stringify!($constant),)*
                }
            }

            fn number(self) -> u32 {
                match self {
                    $(Self::$variant => k::$constant,)*
                }
            }
        }
    };
}

capabilities! {
    IrqChip KVM_CAP_IRQCHIP "Interrupt controllers in the kernel.";
    SplitIrqChip KVM_CAP_SPLIT_IRQCHIP "Local APICs in the kernel, the rest in user space (4.5).";
    Pit2 KVM_CAP_PIT2 "The timer of a PC.";
    Irqfd KVM_CAP_IRQFD "Interrupts from eventfds.";
    IrqfdResample KVM_CAP_IRQFD_RESAMPLE "Level-triggered interrupts from eventfds (3.8).";
    Ioeventfd KVM_CAP_IOEVENTFD "Writes that signal eventfds.";
    SignalMsi KVM_CAP_SIGNAL_MSI "Messages as interrupts (3.5).";
    X2ApicApi KVM_CAP_X2APIC_API "APIC ids of 32 bits (4.7).";
    CoalescedMmio KVM_CAP_COALESCED_MMIO "Writes to memory that are collected.";
    CoalescedPio KVM_CAP_COALESCED_PIO "Writes to ports that are collected (4.20).";
    ReadonlyMemory KVM_CAP_READONLY_MEM "Memory that a guest cannot write.";
    SyncMmu KVM_CAP_SYNC_MMU "Memory that follows the host's mappings.";
    ManualDirtyLog KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 "A log of dirty pages that is cleared by hand (5.2).";
    DirtyRing KVM_CAP_DIRTY_LOG_RING "Rings of dirty pages (5.11).";
    GuestMemfd KVM_CAP_GUEST_MEMFD "Memory that the host need not map (6.8).";
    MemoryAttributes KVM_CAP_MEMORY_ATTRIBUTES "Private and shared memory (6.8).";
    UserSpaceMsr KVM_CAP_X86_USER_SPACE_MSR "Model-specific registers answered in user space (5.10).";
    MsrFilter KVM_CAP_X86_MSR_FILTER "Filters of model-specific registers (5.10).";
    Xsave2 KVM_CAP_XSAVE2 "Extended registers beyond 4096 bytes (5.17).";
    SyncRegisters KVM_CAP_SYNC_REGS "Registers in the run pages (4.17).";
    VcpuEvents KVM_CAP_VCPU_EVENTS "Saving pending events.";
    DebugRegisters KVM_CAP_DEBUGREGS "Saving debug registers.";
    SetGuestDebug KVM_CAP_SET_GUEST_DEBUG "Single steps and breakpoints.";
    AdjustClock KVM_CAP_ADJUST_CLOCK "Saving the guest's clock.";
    TscControl KVM_CAP_TSC_CONTROL "Another frequency of the time stamp counter.";
    NestedState KVM_CAP_NESTED_STATE "Saving guests that are hypervisors (4.20).";
    BinaryStatistics KVM_CAP_BINARY_STATS_FD "Statistics from a file descriptor (5.14).";
    HypercallExit KVM_CAP_EXIT_HYPERCALL "Exits for hypercalls (5.14).";
    DisableExits KVM_CAP_X86_DISABLE_EXITS "No exits where guests wait (4.17).";
    BusLockExit KVM_CAP_X86_BUS_LOCK_EXIT "Exits for locked buses (5.12).";
    NotifyExit KVM_CAP_X86_NOTIFY_VMEXIT "Exits for guests that let no event in (6.0).";
}

impl Kvm {
    /// Whether it can do this.
    #[doc(alias = "KVM_CHECK_EXTENSION")]
    pub fn has(&self, capability: Capability) -> bool {
        self.extent(capability) > 0
    }

    /// How far it can do this: 0 for not at all, otherwise 1 or what the kernel's documentation says, such
    /// as the largest ring of dirty pages.
    pub fn extent(&self, capability: Capability) -> u32 {
        let answer = self.fd.check_extension_raw(capability.number().into());
        u32::try_from(answer).unwrap_or(0)
    }

    /// All that it can do.
    pub fn capabilities(&self) -> Vec<Capability> {
        let all = Capability::ALL.iter().copied();
        all.filter(|c| self.has(*c)).collect()
    }
}
