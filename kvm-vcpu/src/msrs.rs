use std::ops::Range;

use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_FILTER, KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags};

use crate::error::ioctl;
use crate::{Error, Kvm, Result, Vcpu, Vm};

/// The numbers of model-specific registers by the names that manuals give them.
#[allow(missing_docs)]
pub mod msr {
    pub const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
    pub const IA32_APIC_BASE: u32 = 0x1b;
    pub const IA32_TSC_ADJUST: u32 = 0x3b;
    pub const IA32_MTRRCAP: u32 = 0xfe;
    pub const IA32_SYSENTER_CS: u32 = 0x174;
    pub const IA32_SYSENTER_ESP: u32 = 0x175;
    pub const IA32_SYSENTER_EIP: u32 = 0x176;
    pub const IA32_MISC_ENABLE: u32 = 0x1a0;
    pub const IA32_PAT: u32 = 0x277;
    pub const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const SFMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// How many registers the kernel takes in one call.
const BATCH: usize = 256;

impl Kvm {
    /// The registers that make up a guest's state, and so are saved and restored.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not answer.
    #[doc(alias = "KVM_GET_MSR_INDEX_LIST")]
    pub fn msr_list(&self) -> Result<Vec<u32>> {
        let list = self.fd.get_msr_index_list().map_err(ioctl(
            "KVM_GET_MSR_INDEX_LIST (asking which MSRs there are)",
        ))?;
        Ok(list.as_slice().to_vec())
    }
}

impl Vcpu {
    /// The values of these registers, in the same order.
    ///
    /// # Errors
    ///
    /// [`Error::Msr`] for the first that the vCPU does not have; [`Error::Ioctl`] when the kernel
    /// does not answer.
    #[doc(alias = "KVM_GET_MSRS")]
    pub fn msrs(&self, indexes: &[u32]) -> Result<Vec<u64>> {
        let mut values = Vec::with_capacity(indexes.len());
        for batch in indexes.chunks(BATCH) {
            let mut msrs = entries(batch.iter().map(|i| (*i, 0)))?;
            let done = self
                .fd()
                .get_msrs(&mut msrs)
                .map_err(ioctl("KVM_GET_MSRS (reading MSRs)"))?;
            if let Some(index) = batch.get(done) {
                return Err(Error::Msr {
                    operation: "read",
                    index: *index,
                });
            }
            values.extend(msrs.as_slice().iter().map(|e| e.data));
        }
        Ok(values)
    }

    /// Sets registers to values.
    ///
    /// # Errors
    ///
    /// [`Error::Msr`] for the first that the vCPU does not have or whose value is not valid (those
    /// before it are set); [`Error::Ioctl`] when the kernel does not answer.
    #[doc(alias = "KVM_SET_MSRS")]
    pub fn set_msrs(&self, values: &[(u32, u64)]) -> Result<()> {
        // EFER and the local APIC's base are among the system registers.
        self.forget_synced();
        for batch in values.chunks(BATCH) {
            let msrs = entries(batch.iter().copied())?;
            let done = self
                .fd()
                .set_msrs(&msrs)
                .map_err(ioctl("KVM_SET_MSRS (writing MSRs)"))?;
            if let Some((index, _)) = batch.get(done) {
                return Err(Error::Msr {
                    operation: "write",
                    index: *index,
                });
            }
        }
        Ok(())
    }
}

fn entries(values: impl Iterator<Item = (u32, u64)>) -> Result<Msrs> {
    let entries: Vec<kvm_msr_entry> = values
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&entries).map_err(|_| Error::TooMany {
        what: "MSRs in one call",
        given: entries.len(),
        max: BATCH,
    })
}

bitflags::bitflags! {
    /// Which accesses to model-specific registers come to user space as
    /// [`Exit::MsrRead`](crate::Exit::MsrRead) and [`Exit::MsrWrite`](crate::Exit::MsrWrite).
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct MsrExits: u32 {
        /// Those that would be a `#GP` because the value or the access is not valid.
        const INVALID = KVM_MSR_EXIT_REASON_INVAL;
        /// Those to registers that the kernel does not know.
        const UNKNOWN = KVM_MSR_EXIT_REASON_UNKNOWN;
        /// Those that a filter denies.
        const FILTERED = KVM_MSR_EXIT_REASON_FILTER;
    }

    /// Reading, writing, or both.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct MsrAccess: u32 {
        /// `rdmsr`
        const READ = 1;
        /// `wrmsr`
        const WRITE = 2;
    }
}

/// Which registers a guest may access.
///
/// ```
/// use kvm_vcpu::{MsrAccess, MsrFilter, msr};
///
/// let filter = MsrFilter::allow_all().deny(msr::TSC_AUX..msr::TSC_AUX + 1, MsrAccess::WRITE);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MsrFilter {
    allow_others: bool,
    ranges: Vec<(Range<u32>, MsrAccess, bool)>,
}

impl MsrFilter {
    /// Every access is as without a filter, until ranges are denied.
    pub fn allow_all() -> Self {
        Self {
            allow_others: true,
            ranges: Vec::new(),
        }
    }

    /// Every access is denied, until ranges are allowed. (Not the x2APIC's registers, which no
    /// filter reaches.)
    pub fn deny_all() -> Self {
        Self {
            allow_others: false,
            ranges: Vec::new(),
        }
    }

    /// Denies an access to a range. Of ranges that overlap, the first counts.
    pub fn deny(mut self, range: Range<u32>, access: MsrAccess) -> Self {
        self.ranges.push((range, access, false));
        self
    }

    /// Allows an access to a range. Of ranges that overlap, the first counts.
    pub fn allow(mut self, range: Range<u32>, access: MsrAccess) -> Self {
        self.ranges.push((range, access, true));
        self
    }
}

impl Vm {
    /// Lets user space answer accesses to model-specific registers that would be a `#GP` otherwise.
    ///
    /// Minimum kernel: 5.10.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel cannot.
    #[doc(alias = "KVM_CAP_X86_USER_SPACE_MSR")]
    pub fn exit_on_msrs(&self, which: MsrExits) -> Result<()> {
        self.fd()
            .enable_cap(&kvm_enable_cap {
                cap: KVM_CAP_X86_USER_SPACE_MSR,
                args: [which.bits().into(), 0, 0, 0],
                ..Default::default()
            })
            .map_err(ioctl(
                "KVM_ENABLE_CAP of KVM_CAP_X86_USER_SPACE_MSR (handling MSRs)",
            ))
    }

    /// Sets which registers the guest's `rdmsr` and `wrmsr` reach. What is denied is a `#GP`, or an
    /// exit if [`Vm::exit_on_msrs`] says so.
    ///
    /// Minimum kernel: 5.10.
    ///
    /// # Errors
    ///
    /// [`Error::TooMany`] for more than 16 ranges or one of more than 12288 registers;
    /// [`Error::Ioctl`] when the kernel refuses the filter.
    #[doc(alias = "KVM_X86_SET_MSR_FILTER")]
    pub fn filter_msrs(&self, filter: &MsrFilter) -> Result<()> {
        const RANGES: usize = 16;
        // KVM_MSR_FILTER_MAX_BITMAP_SIZE, in bits.
        const REGISTERS: usize = 0x600 * 8;
        let too_many = |what, given, max| Error::TooMany { what, given, max };
        if filter.ranges.len() > RANGES {
            return Err(too_many("ranges of MSRs", filter.ranges.len(), RANGES));
        }
        let longest = filter.ranges.iter().map(|(r, ..)| r.len()).max();
        if longest.is_some_and(|len| len > REGISTERS) {
            return Err(too_many("MSRs in a range", longest.unwrap_or(0), REGISTERS));
        }
        let bitmaps: Vec<Vec<u8>> = filter
            .ranges
            .iter()
            .map(|(r, _, allow)| vec![if *allow { 0xff } else { 0 }; r.len().div_ceil(8)])
            .collect();
        let ranges: Vec<MsrFilterRange<'_>> = filter
            .ranges
            .iter()
            .zip(&bitmaps)
            .filter(|((r, ..), _)| !r.is_empty())
            .map(|((range, access, _), bitmap)| MsrFilterRange {
                flags: MsrFilterRangeFlags::from_bits_truncate(access.bits()),
                base: range.start,
                msr_count: range.len() as u32,
                bitmap,
            })
            .collect();
        let default = if filter.allow_others {
            MsrFilterDefaultAction::ALLOW
        } else {
            MsrFilterDefaultAction::DENY
        };
        self.fd()
            .set_msr_filter(default, &ranges)
            .map_err(ioctl("KVM_X86_SET_MSR_FILTER (filtering MSRs)"))
    }
}
