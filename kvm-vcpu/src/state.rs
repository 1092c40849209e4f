use kvm_bindings::{KVM_CAP_XSAVE2, kvm_debugregs, kvm_xcrs, kvm_xsave};

use crate::error::ioctl;
use crate::{Error, Kvm, Result, Vcpu, sys};

/// The registers of the floating-point unit and of SSE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FpuRegisters {
    /// The x87 registers, of which 10 bytes each count, from the top of the stack on.
    pub st: [[u8; 16]; 8],
    /// Control word.
    pub control: u16,
    /// Status word.
    pub status: u16,
    /// A bit for each register that is not empty.
    pub tag: u8,
    /// The last instruction's opcode.
    pub opcode: u16,
    /// The last instruction's address.
    pub instruction: u64,
    /// The last operand's address.
    pub operand: u64,
    /// The lower halves of the vector registers; bytes in the order in which they lie in memory.
    pub xmm: [u128; 16],
    /// Control and status of SSE.
    pub mxcsr: u32,
}

/// Where the parts of the legacy area of `xsave` are (Intel SDM, volume 1, 10.5.1), and the header's
/// bits of what is not in its first state.
mod area {
    pub(super) const FCW: usize = 0;
    pub(super) const FSW: usize = 2;
    pub(super) const FTW: usize = 4;
    pub(super) const FOP: usize = 6;
    pub(super) const FIP: usize = 8;
    pub(super) const FDP: usize = 16;
    pub(super) const MXCSR: usize = 24;
    pub(super) const ST: usize = 32;
    pub(super) const XMM: usize = 160;
    pub(super) const XSTATE_BV: usize = 512;
    pub(super) const X87_AND_SSE: u8 = 3;
}

fn at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

impl FpuRegisters {
    fn of(xsave: &[u8]) -> Self {
        Self {
            st: std::array::from_fn(|i| at(xsave, area::ST + 16 * i)),
            control: u16::from_le_bytes(at(xsave, area::FCW)),
            status: u16::from_le_bytes(at(xsave, area::FSW)),
            tag: xsave[area::FTW],
            opcode: u16::from_le_bytes(at(xsave, area::FOP)),
            instruction: u64::from_le_bytes(at(xsave, area::FIP)),
            operand: u64::from_le_bytes(at(xsave, area::FDP)),
            xmm: std::array::from_fn(|i| u128::from_le_bytes(at(xsave, area::XMM + 16 * i))),
            mxcsr: u32::from_le_bytes(at(xsave, area::MXCSR)),
        }
    }

    fn put(&self, xsave: &mut [u8]) {
        let mut put = |at: usize, bytes: &[u8]| xsave[at..at + bytes.len()].copy_from_slice(bytes);
        put(area::FCW, &self.control.to_le_bytes());
        put(area::FSW, &self.status.to_le_bytes());
        put(area::FTW, &[self.tag]);
        put(area::FOP, &self.opcode.to_le_bytes());
        put(area::FIP, &self.instruction.to_le_bytes());
        put(area::FDP, &self.operand.to_le_bytes());
        put(area::MXCSR, &self.mxcsr.to_le_bytes());
        put(area::ST, self.st.as_flattened());
        for (i, xmm) in self.xmm.iter().enumerate() {
            put(area::XMM + 16 * i, &xmm.to_le_bytes());
        }
        xsave[area::XSTATE_BV] |= area::X87_AND_SSE;
    }
}

/// The guest's own debug registers; [`Vcpu::set_debugging`] works beside them.
#[doc(alias = "kvm_debugregs")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DebugRegisters {
    /// Linear addresses of breakpoints (`dr0` to `dr3`).
    pub addresses: [u64; 4],
    /// Status (`dr6`).
    pub status: u64,
    /// Control (`dr7`).
    pub control: u64,
}

impl Kvm {
    /// Lets the guests of this process use the tiles of AMX, whose 8 KiB of registers the kernel keeps
    /// for those who ask. Before the first vCPU of the process.
    ///
    /// This crate's tests run on hosts whose KVM has no AMX: areas of more than a page are not tried against
    /// a kernel.
    ///
    /// Minimum kernel: 5.17.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the kernel, the CPU or its KVM has none; [`Error::Ioctl`] when it comes
    /// too late.
    #[doc(alias = "ARCH_REQ_XCOMP_GUEST_PERM")]
    pub fn permit_amx(&self) -> Result<()> {
        sys::permit_amx().map_err(|source| match source.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL) => Error::Unsupported {
                capability: "ARCH_REQ_XCOMP_GUEST_PERM of AMX",
                advice: "use a CPU that has AMX and a kernel of 5.17 or newer",
            },
            _ => Error::Ioctl {
                operation: "arch_prctl(ARCH_REQ_XCOMP_GUEST_PERM) (letting guests use AMX)",
                source,
            },
        })?;
        // The permission is the kernel's; its KVM may have no use for it.
        let size = self.fd.check_extension_raw(KVM_CAP_XSAVE2.into());
        if usize::try_from(size).is_ok_and(|size| size > size_of::<kvm_xsave>()) {
            Ok(())
        } else {
            Err(Error::Unsupported {
                capability: "KVM_CAP_XSAVE2 of AMX",
                advice: "use a host whose KVM offers AMX to guests: hardware virtualization on a CPU that has it",
            })
        }
    }
}

impl Vcpu {
    /// The registers of the floating-point unit and of SSE.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not tell.
    #[doc(alias = "KVM_GET_FPU")]
    pub fn fpu_registers(&self) -> Result<FpuRegisters> {
        // KVM_GET_FPU leaves MXCSR out.
        Ok(FpuRegisters::of(&self.xsave()?))
    }

    /// Sets the registers of the floating-point unit and of SSE.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel refuses them: reserved bits of `mxcsr` have
    /// to be zero.
    #[doc(alias = "KVM_SET_FPU")]
    pub fn set_fpu_registers(&self, registers: &FpuRegisters) -> Result<()> {
        let mut xsave = self.xsave()?;
        registers.put(&mut xsave);
        self.set_xsave(&xsave)
    }

    /// The guest's debug registers.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not tell.
    #[doc(alias = "KVM_GET_DEBUGREGS")]
    pub fn debug_registers(&self) -> Result<DebugRegisters> {
        let d = self
            .fd()
            .get_debug_regs()
            .map_err(ioctl("KVM_GET_DEBUGREGS (reading the debug registers)"))?;
        Ok(DebugRegisters {
            addresses: d.db,
            status: d.dr6,
            control: d.dr7,
        })
    }

    /// Sets the guest's debug registers.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel refuses them.
    #[doc(alias = "KVM_SET_DEBUGREGS")]
    pub fn set_debug_registers(&self, registers: &DebugRegisters) -> Result<()> {
        self.fd()
            .set_debug_regs(&kvm_debugregs {
                db: registers.addresses,
                dr6: registers.status,
                dr7: registers.control,
                ..Default::default()
            })
            .map_err(ioctl("KVM_SET_DEBUGREGS (setting the debug registers)"))
    }

    /// All registers that `xsave` keeps, in its standard format: the legacy area, the header, and the
    /// rest; 4096 bytes (vector registers up to AVX-512, protection keys), or more where the guest
    /// may use AMX ([`Kvm::permit_amx`](crate::Kvm::permit_amx)).
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not tell.
    #[doc(alias = "KVM_GET_XSAVE")]
    #[doc(alias = "KVM_GET_XSAVE2")]
    pub fn xsave(&self) -> Result<Box<[u8]>> {
        sys::xsave(self.fd(), self.machine().xsave2_size())
            .map(Vec::into_boxed_slice)
            .map_err(|source| Error::Ioctl {
                operation: "KVM_GET_XSAVE2 (reading the extended registers)",
                source,
            })
    }

    /// Sets all registers that `xsave` keeps, in the format of [`Vcpu::xsave`]; what is missing at the
    /// end is in its first state.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] for more bytes than this host keeps for a guest;
    /// [`Error::Ioctl`] when the kernel refuses what the host's CPU does not have.
    #[doc(alias = "KVM_SET_XSAVE")]
    pub fn set_xsave(&self, area: &[u8]) -> Result<()> {
        let one_page = size_of::<kvm_xsave>();
        let max = self.machine().xsave2_size().unwrap_or(0).max(one_page);
        if area.len() > max {
            return Err(Error::TooMany {
                what: "bytes of extended registers",
                given: area.len(),
                max,
            });
        }
        sys::set_xsave(self.fd(), area, max).map_err(|source| Error::Ioctl {
            operation: "KVM_SET_XSAVE (setting the extended registers)",
            source,
        })
    }

    /// Which state `xsave` keeps and which vector registers the guest may use (`XCR0`).
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel does not tell.
    #[doc(alias = "KVM_GET_XCRS")]
    pub fn xcr0(&self) -> Result<u64> {
        let xcrs = self
            .fd()
            .get_xcrs()
            .map_err(ioctl("KVM_GET_XCRS (reading XCR0)"))?;
        Ok(xcrs.xcrs[0].value)
    }

    /// Sets which state `xsave` keeps and which vector registers the guest may use (`XCR0`).
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel refuses the combination: it must hold x87
    /// (1), and no more than the CPUID says.
    #[doc(alias = "KVM_SET_XCRS")]
    pub fn set_xcr0(&self, value: u64) -> Result<()> {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = value;
        self.fd()
            .set_xcrs(&xcrs)
            .map_err(ioctl("KVM_SET_XCRS (setting XCR0)"))
    }

    /// Makes the guest take an exception (a vector below 32) before its next instruction. For a page
    /// fault set `cr2` first.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`](crate::Error::Ioctl) when the kernel refuses it.
    #[doc(alias = "KVM_SET_VCPU_EVENTS")]
    pub fn inject_exception(&self, vector: u8, error_code: Option<u32>) -> Result<()> {
        let mut events = self
            .fd()
            .get_vcpu_events()
            .map_err(ioctl("KVM_GET_VCPU_EVENTS (reading what is pending)"))?;
        events.exception.injected = 1;
        events.exception.pending = 0;
        events.exception.nr = vector;
        events.exception.has_error_code = error_code.is_some().into();
        events.exception.error_code = error_code.unwrap_or(0);
        self.fd()
            .set_vcpu_events(&events)
            .map_err(ioctl("KVM_SET_VCPU_EVENTS (injecting an exception)"))
    }
}
