//! Exits that the kernel makes only when they are asked for, and those that it can do without.

use kvm_bindings::{
    KVM_BUS_LOCK_DETECTION_EXIT, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_X86_BUS_LOCK_EXIT,
    KVM_CAP_X86_DISABLE_EXITS, KVM_CAP_X86_NOTIFY_VMEXIT, KVM_X86_NOTIFY_VMEXIT_ENABLED,
    KVM_X86_NOTIFY_VMEXIT_USER, kvm_enable_cap,
};

use crate::error::ioctl;
use crate::{Error, Result, Vm};

bitflags::bitflags! {
    /// Instructions by which a guest waits.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct IdleInstructions: u32 {
        /// `mwait`.
        const MWAIT = 1;
        /// `hlt`.
        const HLT = 2;
        /// `pause`.
        const PAUSE = 4;
        /// Deeper sleep, and the registers that count it.
        const CSTATE = 8;
    }
}

impl Vm {
    /// Makes hypercalls that concern user space exits ([`Exit::Hypercall`](crate::Exit::Hypercall)):
    /// all that this kernel can pass on, which is `KVM_HC_MAP_GPA_RANGE`.
    ///
    /// Minimum kernel: 5.14.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] on older kernels; [`Error::Ioctl`] when the kernel refuses.
    #[doc(alias = "KVM_CAP_EXIT_HYPERCALL")]
    pub fn exit_on_hypercalls(&self) -> Result<()> {
        let all = self.offered(
            KVM_CAP_EXIT_HYPERCALL,
            "KVM_CAP_EXIT_HYPERCALL",
            "use a kernel of 5.14 or newer",
        )?;
        self.enable(KVM_CAP_EXIT_HYPERCALL, all.into())
            .map_err(ioctl(
                "KVM_ENABLE_CAP of KVM_CAP_EXIT_HYPERCALL (passing on hypercalls)",
            ))
    }

    /// Makes accesses that lock the memory bus exits ([`Exit::BusLock`](crate::Exit::BusLock)), after the
    /// access.
    ///
    /// Minimum kernel: 5.12, and a CPU that detects them.
    ///
    /// # Errors
    ///
    /// [`Error::Order`] when there is a vCPU already; [`Error::Unsupported`] on other hosts;
    /// [`Error::Ioctl`] when the kernel refuses.
    #[doc(alias = "KVM_CAP_X86_BUS_LOCK_EXIT")]
    pub fn exit_on_bus_locks(&self) -> Result<()> {
        self.before_vcpus("exit_on_bus_locks")?;
        self.offered(
            KVM_CAP_X86_BUS_LOCK_EXIT,
            "KVM_CAP_X86_BUS_LOCK_EXIT",
            "it needs a kernel of 5.12 and a CPU that detects locked buses",
        )?;
        let mode = KVM_BUS_LOCK_DETECTION_EXIT.into();
        self.enable(KVM_CAP_X86_BUS_LOCK_EXIT, mode).map_err(ioctl(
            "KVM_ENABLE_CAP of KVM_CAP_X86_BUS_LOCK_EXIT (reporting locked buses)",
        ))
    }

    /// Makes it an exit ([`Exit::Notify`](crate::Exit::Notify)) when the guest lets no event in for so many
    /// cycles of the time stamp counter, and some more that the CPU adds.
    ///
    /// Minimum kernel: 6.0, and a CPU of Intel that has it.
    ///
    /// # Errors
    ///
    /// [`Error::Order`] when there is a vCPU already; [`Error::Unsupported`] on other hosts;
    /// [`Error::Ioctl`] when the kernel refuses.
    #[doc(alias = "KVM_CAP_X86_NOTIFY_VMEXIT")]
    pub fn exit_on_shut_windows(&self, cycles: u32) -> Result<()> {
        self.before_vcpus("exit_on_shut_windows")?;
        self.offered(
            KVM_CAP_X86_NOTIFY_VMEXIT,
            "KVM_CAP_X86_NOTIFY_VMEXIT",
            "it needs a kernel of 6.0 and a CPU of Intel with notify exits",
        )?;
        let flags = KVM_X86_NOTIFY_VMEXIT_ENABLED | KVM_X86_NOTIFY_VMEXIT_USER;
        let how = u64::from(cycles) << 32 | u64::from(flags);
        self.enable(KVM_CAP_X86_NOTIFY_VMEXIT, how).map_err(ioctl(
            "KVM_ENABLE_CAP of KVM_CAP_X86_NOTIFY_VMEXIT (reporting guests that let no event in)",
        ))
    }

    /// Lets the guest wait on the CPU itself: it wakes up sooner, and takes a CPU of the host for itself.
    ///
    /// Minimum kernel: 4.17.
    ///
    /// # Errors
    ///
    /// [`Error::Order`] when there is a vCPU already; [`Error::Unsupported`] when this host cannot do
    /// without the exits of one of them; [`Error::Ioctl`] when the kernel refuses.
    #[doc(alias = "KVM_CAP_X86_DISABLE_EXITS")]
    pub fn wait_in_guest(&self, instructions: IdleInstructions) -> Result<()> {
        self.before_vcpus("wait_in_guest")?;
        let offered = self.extent_of(KVM_CAP_X86_DISABLE_EXITS);
        if offered & instructions.bits() != instructions.bits() {
            return Err(Error::Unsupported {
                capability: "KVM_CAP_X86_DISABLE_EXITS for all of these instructions",
                advice: "ask for fewer; mwait needs a host whose timer runs in all states of sleep",
            });
        }
        let which = instructions.bits().into();
        self.enable(KVM_CAP_X86_DISABLE_EXITS, which).map_err(ioctl(
            "KVM_ENABLE_CAP of KVM_CAP_X86_DISABLE_EXITS (letting the guest wait)",
        ))
    }

    /// What the kernel says of a capability that it has.
    fn offered(&self, number: u32, capability: &'static str, advice: &'static str) -> Result<u32> {
        match self.extent_of(number) {
            0 => Err(Error::Unsupported { capability, advice }),
            extent => Ok(extent),
        }
    }

    fn enable(&self, cap: u32, argument: u64) -> std::result::Result<(), kvm_ioctls::Error> {
        self.fd().enable_cap(&kvm_enable_cap {
            cap,
            args: [argument, 0, 0, 0],
            ..Default::default()
        })
    }
}
