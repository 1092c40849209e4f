use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};

use crate::error::ioctl;
use crate::{Error, Exit, Kvm, Mode, Region, Result, Vcpu};

/// What the `cpuid` instruction gives for one leaf.
#[doc(alias = "kvm_cpuid_entry2")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct CpuidLeaf {
    /// The value of `eax` that asks for it.
    pub leaf: u32,
    /// The value of `ecx` that asks for it, for a leaf that has several.
    pub subleaf: Option<u32>,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// A register that `cpuid` fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// One bit of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Its name, as in `/proc/cpuinfo` where that has one.
    pub name: &'static str,
    /// The leaf.
    pub leaf: u32,
    /// The subleaf; 0 for leaves that have none.
    pub subleaf: u32,
    /// The register.
    pub register: CpuidRegister,
    /// The bit, 0 to 31.
    pub bit: u8,
}

macro_rules! features {
    ($($constant:ident $name:literal $leaf:literal $subleaf:literal $register:ident $bit:literal;)*) => {
        impl Feature {
            $(
                #[doc = concat!("`", $name, "`")]
                pub const $constant: Self = Self {
                    name: $name,
                    leaf: $leaf,
                    subleaf: $subleaf,
                    register: CpuidRegister::$register,
                    bit: $bit,
                };
            )*

            /// All that have a constant here.
            pub const ALL: &[Self] = &[$(Self::$constant),*];
        }
    };
}

features! {
    SSE3 "pni" 1 0 Ecx 0;
    PCLMULQDQ "pclmulqdq" 1 0 Ecx 1;
    VMX "vmx" 1 0 Ecx 5;
    SSSE3 "ssse3" 1 0 Ecx 9;
    FMA "fma" 1 0 Ecx 12;
    CX16 "cx16" 1 0 Ecx 13;
    PCID "pcid" 1 0 Ecx 17;
    SSE4_1 "sse4_1" 1 0 Ecx 19;
    SSE4_2 "sse4_2" 1 0 Ecx 20;
    X2APIC "x2apic" 1 0 Ecx 21;
    MOVBE "movbe" 1 0 Ecx 22;
    POPCNT "popcnt" 1 0 Ecx 23;
    TSC_DEADLINE "tsc_deadline_timer" 1 0 Ecx 24;
    AES "aes" 1 0 Ecx 25;
    XSAVE "xsave" 1 0 Ecx 26;
    AVX "avx" 1 0 Ecx 28;
    F16C "f16c" 1 0 Ecx 29;
    RDRAND "rdrand" 1 0 Ecx 30;
    HYPERVISOR "hypervisor" 1 0 Ecx 31;
    FPU "fpu" 1 0 Edx 0;
    TSC "tsc" 1 0 Edx 4;
    MSR "msr" 1 0 Edx 5;
    PAE "pae" 1 0 Edx 6;
    APIC "apic" 1 0 Edx 9;
    MTRR "mtrr" 1 0 Edx 12;
    CMOV "cmov" 1 0 Edx 15;
    FXSR "fxsr" 1 0 Edx 24;
    SSE "sse" 1 0 Edx 25;
    SSE2 "sse2" 1 0 Edx 26;
    FSGSBASE "fsgsbase" 7 0 Ebx 0;
    BMI1 "bmi1" 7 0 Ebx 3;
    AVX2 "avx2" 7 0 Ebx 5;
    SMEP "smep" 7 0 Ebx 7;
    BMI2 "bmi2" 7 0 Ebx 8;
    ERMS "erms" 7 0 Ebx 9;
    INVPCID "invpcid" 7 0 Ebx 10;
    AVX512F "avx512f" 7 0 Ebx 16;
    AVX512DQ "avx512dq" 7 0 Ebx 17;
    RDSEED "rdseed" 7 0 Ebx 18;
    ADX "adx" 7 0 Ebx 19;
    SMAP "smap" 7 0 Ebx 20;
    AVX512CD "avx512cd" 7 0 Ebx 28;
    SHA_NI "sha_ni" 7 0 Ebx 29;
    AVX512BW "avx512bw" 7 0 Ebx 30;
    AVX512VL "avx512vl" 7 0 Ebx 31;
    UMIP "umip" 7 0 Ecx 2;
    PKU "pku" 7 0 Ecx 3;
    LA57 "la57" 7 0 Ecx 16;
    LAHF_LM "lahf_lm" 0x8000_0001 0 Ecx 0;
    SVM "svm" 0x8000_0001 0 Ecx 2;
    ABM "abm" 0x8000_0001 0 Ecx 5;
    SSE4A "sse4a" 0x8000_0001 0 Ecx 6;
    SYSCALL "syscall" 0x8000_0001 0 Edx 11;
    NX "nx" 0x8000_0001 0 Edx 20;
    PDPE1GB "pdpe1gb" 0x8000_0001 0 Edx 26;
    RDTSCP "rdtscp" 0x8000_0001 0 Edx 27;
    LONG_MODE "lm" 0x8000_0001 0 Edx 29;
    INVARIANT_TSC "constant_tsc" 0x8000_0007 0 Edx 8;
}

/// What a vCPU's `cpuid` instruction gives, leaf by leaf.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuidTable {
    leaves: Vec<CpuidLeaf>,
}

impl CpuidTable {
    /// A table of these leaves.
    pub fn new(leaves: Vec<CpuidLeaf>) -> Self {
        Self { leaves }
    }

    /// The leaves, in the order in which they were given.
    pub fn leaves(&self) -> &[CpuidLeaf] {
        &self.leaves
    }

    /// A leaf; `subleaf` does not matter for one that has none.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<&CpuidLeaf> {
        self.leaves
            .iter()
            .find(|l| l.leaf == leaf && l.subleaf.is_none_or(|s| s == subleaf))
    }

    /// A leaf, to be changed.
    pub fn get_mut(&mut self, leaf: u32, subleaf: u32) -> Option<&mut CpuidLeaf> {
        self.leaves
            .iter_mut()
            .find(|l| l.leaf == leaf && l.subleaf.is_none_or(|s| s == subleaf))
    }

    /// Whether the feature's bit is set; false when there is no such leaf.
    pub fn has(&self, feature: Feature) -> bool {
        self.get(feature.leaf, feature.subleaf)
            .is_some_and(|l| l.register(feature.register) >> feature.bit & 1 != 0)
    }

    /// Sets or clears the feature's bit; a leaf that is not there is added when it has to be set.
    pub fn set(&mut self, feature: Feature, on: bool) -> &mut Self {
        if self.get(feature.leaf, feature.subleaf).is_none() && on {
            self.leaves.push(CpuidLeaf {
                leaf: feature.leaf,
                subleaf: (feature.leaf == 7).then_some(feature.subleaf),
                eax: 0,
                ebx: 0,
                ecx: 0,
                edx: 0,
            });
        }
        if let Some(leaf) = self.get_mut(feature.leaf, feature.subleaf) {
            let register = leaf.register_mut(feature.register);
            *register = *register & !(1 << feature.bit) | u32::from(on) << feature.bit;
        }
        self
    }

    /// The features, of those with a name, that this table has and the other lacks.
    pub fn features_missing_in(&self, other: &Self) -> Vec<Feature> {
        Feature::ALL
            .iter()
            .filter(|f| self.has(**f) && !other.has(**f))
            .copied()
            .collect()
    }

    /// Clears all feature bits (leaves 1, 7, 0x80000001) that the other table has not: a template of
    /// what several hosts have in common.
    pub fn intersect(&mut self, other: &Self) -> &mut Self {
        for leaf in &mut self.leaves {
            let theirs = other.get(leaf.leaf, leaf.subleaf.unwrap_or(0));
            let masks = theirs.map_or([0; 3], |t| [t.ebx, t.ecx, t.edx]);
            match leaf.leaf {
                // The upper registers alone: eax and ebx are model and topology.
                1 | 0x8000_0001 => {
                    leaf.ecx &= masks[1];
                    leaf.edx &= masks[2];
                }
                7 => {
                    leaf.ebx &= masks[0];
                    leaf.ecx &= masks[1];
                    leaf.edx &= masks[2];
                }
                _ => {}
            }
        }
        self
    }

    /// Leaves out the leaves that are not wanted.
    pub(crate) fn retain(&mut self, wanted: impl FnMut(&CpuidLeaf) -> bool) {
        self.leaves.retain(wanted);
    }

    pub(crate) fn to_kvm(&self) -> Result<CpuId> {
        let entries: Vec<kvm_cpuid_entry2> = self.leaves.iter().map(|l| (*l).into()).collect();
        CpuId::from_entries(&entries).map_err(|_| Error::CpuidTooLong {
            leaves: entries.len(),
            max: KVM_MAX_CPUID_ENTRIES,
        })
    }

    pub(crate) fn from_kvm(cpuid: &CpuId) -> Self {
        Self {
            leaves: cpuid.as_slice().iter().map(|e| (*e).into()).collect(),
        }
    }

    /// The table for a vCPU with this number.
    pub(crate) fn with_id(mut self, id: u32) -> Self {
        for leaf in &mut self.leaves {
            match leaf.leaf {
                // The initial APIC id, in the top byte.
                1 => leaf.ebx = leaf.ebx & 0x00ff_ffff | id << 24,
                // The x2APIC id.
                0xb | 0x1f => leaf.edx = id,
                _ => {}
            }
        }
        self
    }
}

impl CpuidLeaf {
    fn register(&self, register: CpuidRegister) -> u32 {
        match register {
            CpuidRegister::Eax => self.eax,
            CpuidRegister::Ebx => self.ebx,
            CpuidRegister::Ecx => self.ecx,
            CpuidRegister::Edx => self.edx,
        }
    }

    pub(crate) fn register_mut(&mut self, register: CpuidRegister) -> &mut u32 {
        match register {
            CpuidRegister::Eax => &mut self.eax,
            CpuidRegister::Ebx => &mut self.ebx,
            CpuidRegister::Ecx => &mut self.ecx,
            CpuidRegister::Edx => &mut self.edx,
        }
    }
}

impl From<kvm_cpuid_entry2> for CpuidLeaf {
    fn from(e: kvm_cpuid_entry2) -> Self {
        let indexed = e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        Self {
            leaf: e.function,
            subleaf: indexed.then_some(e.index),
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
        }
    }
}

impl From<CpuidLeaf> for kvm_cpuid_entry2 {
    fn from(l: CpuidLeaf) -> Self {
        Self {
            function: l.leaf,
            index: l.subleaf.unwrap_or(0),
            flags: l.subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
            eax: l.eax,
            ebx: l.ebx,
            ecx: l.ecx,
            edx: l.edx,
            padding: [0; 3],
        }
    }
}

impl Kvm {
    /// What this host can give a guest.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not answer.
    #[doc(alias = "KVM_GET_SUPPORTED_CPUID")]
    pub fn supported_cpuid(&self) -> Result<CpuidTable> {
        let cpuid = self
            .fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl(
                "KVM_GET_SUPPORTED_CPUID (reading what CPUID can offer)",
            ))?;
        Ok(CpuidTable::from_kvm(&cpuid))
    }

    /// What a guest that is given this table really sees, found out by a guest that looks.
    ///
    /// On most hosts that is the table. A host that cannot intercept `cpuid` shows its own CPU, and
    /// what was cleared is not hidden. A few bits follow the guest's own settings, and are here as
    /// they are in real mode: `OSXSAVE` for one.
    ///
    /// # Errors
    ///
    /// Those of making and running a small machine.
    pub fn effective_cpuid(&self, table: &CpuidTable) -> Result<CpuidTable> {
        const CODE: u64 = 0;
        let vm = self.create_vm(&[Region::anonymous(CODE, 0x1000)])?;
        // cpuid; hlt
        vm.write(CODE, &[0x0f, 0xa2, 0xf4])?;
        let mode = Mode::real(0, 0);
        let mut vcpu = vm.create_vcpu(0, &mode)?;
        vcpu.set_cpuid(table)?;
        let mut leaves = table.leaves.clone();
        for leaf in &mut leaves {
            vcpu.set_mode(&mode)?;
            let mut regs = vcpu.registers()?;
            regs.rax = leaf.leaf.into();
            regs.rcx = leaf.subleaf.unwrap_or(0).into();
            vcpu.set_registers(&regs)?;
            loop {
                match vcpu.run()? {
                    Exit::Halt => break,
                    Exit::Interrupted | Exit::Kicked => {}
                    other => {
                        return Err(Error::Probe {
                            exit: Box::new(other),
                        });
                    }
                }
            }
            let regs = vcpu.registers()?;
            (leaf.eax, leaf.ebx) = (regs.rax as u32, regs.rbx as u32);
            (leaf.ecx, leaf.edx) = (regs.rcx as u32, regs.rdx as u32);
        }
        Ok(CpuidTable { leaves })
    }
}

impl Vcpu {
    /// Sets what `cpuid` gives in the guest; returns what the kernel then holds, which may differ in
    /// bits that it keeps up to date itself.
    ///
    /// See [`Kvm::effective_cpuid`] for what a guest sees of it.
    ///
    /// # Errors
    ///
    /// [`Error::CpuidTooLong`] for more leaves than the kernel takes; [`Error::Ioctl`] when it
    /// refuses the table, as it does once the vCPU has run.
    #[doc(alias = "KVM_SET_CPUID2")]
    pub fn set_cpuid(&self, table: &CpuidTable) -> Result<CpuidTable> {
        self.fd()
            .set_cpuid2(&table.to_kvm()?)
            .map_err(ioctl("KVM_SET_CPUID2 (telling the vCPU what it can do)"))?;
        self.cpuid()
    }

    /// What the kernel holds as this vCPU's CPUID.
    ///
    /// # Errors
    ///
    /// [`Error::Ioctl`] when the kernel does not tell.
    #[doc(alias = "KVM_GET_CPUID2")]
    pub fn cpuid(&self) -> Result<CpuidTable> {
        let cpuid = self
            .fd()
            .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("KVM_GET_CPUID2 (reading the vCPU's CPUID)"))?;
        Ok(CpuidTable::from_kvm(&cpuid))
    }
}
