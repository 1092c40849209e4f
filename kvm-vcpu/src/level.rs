use std::fmt;

use crate::{CpuidRegister, CpuidTable, Error, Feature, Result};

/// The levels of x86-64 that programs are built for (System V ABI, "micro-architecture levels"), as
/// templates of a guest's CPU: [`CpuidTable::limit_to`].
#[doc(alias = "x86-64-v2")]
#[doc(alias = "x86-64-v3")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuidLevel {
    /// What every CPU with 64 bits has.
    V1,
    /// And `cmpxchg16b`, `popcnt` and SSE up to 4.2 (about 2009).
    V2,
    /// And AVX2, BMI, FMA and `movbe` (about 2013).
    V3,
    /// And AVX-512 (F, BW, CD, DQ and VL).
    V4,
}

const V1: &[Feature] = &[
    Feature::FPU,
    Feature::CMOV,
    Feature::FXSR,
    Feature::SSE,
    Feature::SSE2,
    Feature::SYSCALL,
    Feature::LONG_MODE,
];
const V2: &[Feature] = &[
    Feature::SSE3,
    Feature::SSSE3,
    Feature::CX16,
    Feature::SSE4_1,
    Feature::SSE4_2,
    Feature::POPCNT,
    Feature::LAHF_LM,
];
const V3: &[Feature] = &[
    Feature::FMA,
    Feature::MOVBE,
    Feature::XSAVE,
    Feature::AVX,
    Feature::F16C,
    Feature::BMI1,
    Feature::AVX2,
    Feature::BMI2,
    Feature::ABM,
];
const V4: &[Feature] = &[
    Feature::AVX512F,
    Feature::AVX512DQ,
    Feature::AVX512CD,
    Feature::AVX512BW,
    Feature::AVX512VL,
];

/// By leaf, subleaf and register, the bits of instructions that any program may use. `xsave`, which
/// kernels use, and what protects and virtualizes are not among them.
const INSTRUCTIONS: &[(u32, u32, CpuidRegister, u32)] = &[
    (1, 0, CpuidRegister::Ecx, 0x72d8_3203),
    (7, 0, CpuidRegister::Ebx, 0xfc2f_0128),
    (7, 0, CpuidRegister::Ecx, 0x0000_5f42),
    (7, 0, CpuidRegister::Edx, 0x03c0_010c),
    (7, 1, CpuidRegister::Eax, 0x00a0_0037),
    (7, 1, CpuidRegister::Edx, 0x0008_0530),
    (0x8000_0001, 0, CpuidRegister::Ecx, 0x0021_0861),
];

impl CpuidLevel {
    /// All of them, from the lowest on.
    pub const ALL: [Self; 4] = [Self::V1, Self::V2, Self::V3, Self::V4];

    /// What a CPU of this level has, of the features with a name.
    pub fn features(self) -> impl Iterator<Item = Feature> {
        [V1, V2, V3, V4][..=self as usize]
            .iter()
            .flat_map(|level| level.iter().copied())
    }

    /// The parts of the extended registers that such a CPU may have, of those that programs use
    /// (Intel SDM, volume 1, 13.1): x87 and SSE, AVX, AVX-512.
    fn state_components(self) -> u32 {
        match self {
            Self::V1 | Self::V2 => 0x03,
            Self::V3 => 0x07,
            Self::V4 => 0xe7,
        }
    }
}

impl fmt::Display for CpuidLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "x86-64-v{}", *self as u8 + 1)
    }
}

impl CpuidTable {
    /// The highest level whose features are all there.
    pub fn level(&self) -> Option<CpuidLevel> {
        let mut levels = CpuidLevel::ALL.into_iter().rev();
        levels.find(|level| level.features().all(|f| self.has(f)))
    }

    /// Takes out the instructions that a CPU of this level does not have, and the registers that only
    /// those use, so that a guest can move to any CPU of the level. What kernels use is left as it is:
    /// [`CpuidTable::intersect`] is for that.
    ///
    /// [`Vcpu::set_cpuid`](crate::Vcpu::set_cpuid) says what the kernel makes of it, and
    /// [`Kvm::effective_cpuid`](crate::Kvm::effective_cpuid) what a guest sees.
    ///
    /// # Errors
    ///
    /// [`Error::BelowLevel`] when it lacks some of the level; nothing is changed then.
    pub fn limit_to(&mut self, level: CpuidLevel) -> Result<&mut Self> {
        let features: Vec<&str> = level
            .features()
            .filter(|f| !self.has(*f))
            .map(|f| f.name)
            .collect();
        if !features.is_empty() {
            return Err(Error::BelowLevel { level, features });
        }
        for (leaf, subleaf, register, instructions) in INSTRUCTIONS {
            let kept = level
                .features()
                .filter(|f| (f.leaf, f.subleaf, f.register) == (*leaf, *subleaf, *register))
                .fold(0, |bits, f| bits | 1 << f.bit);
            if let Some(leaf) = self.get_mut(*leaf, *subleaf) {
                *leaf.register_mut(*register) &= !instructions | kept;
            }
        }
        self.limit_state(level.state_components());
        Ok(self)
    }

    /// Takes out the parts of the extended registers that programs use, but for these.
    fn limit_state(&mut self, kept: u32) {
        // Of x87, SSE, AVX, MPX, AVX-512 and AMX.
        const OF_PROGRAMS: u32 = 0x0006_00ff;
        let removed = OF_PROGRAMS & !kept;
        if let Some(leaf) = self.get_mut(0xd, 0) {
            leaf.eax &= !removed;
        }
        self.retain(|leaf| {
            let component = leaf
                .subleaf
                .filter(|s| leaf.leaf == 0xd && (2..32).contains(s));
            component.is_none_or(|component| removed >> component & 1 == 0)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuidLeaf;

    fn everything() -> CpuidTable {
        let leaf = |leaf, subleaf| CpuidLeaf {
            leaf,
            subleaf,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
        };
        let mut leaves = vec![leaf(1, None), leaf(0x8000_0001, None)];
        leaves.extend((0..2).map(|s| leaf(7, Some(s))));
        leaves.extend((0..20).map(|s| leaf(0xd, Some(s))));
        CpuidTable::new(leaves)
    }

    #[test]
    fn a_limited_table_is_of_its_level_and_keeps_what_kernels_use() {
        for level in CpuidLevel::ALL {
            let mut table = everything();
            assert_eq!(table.level(), Some(CpuidLevel::V4));
            table.limit_to(level).unwrap();
            assert_eq!(table.level(), Some(level));
            for feature in [Feature::NX, Feature::SMEP, Feature::X2APIC, Feature::XSAVE] {
                assert!(table.has(feature), "{level} without {}", feature.name);
            }
            for feature in [
                Feature::AES,
                Feature::SHA_NI,
                Feature::RDRAND,
                Feature::SSE4A,
            ] {
                assert!(!table.has(feature), "{level} with {}", feature.name);
            }
        }
    }

    #[test]
    fn registers_of_instructions_that_are_gone_are_gone_too() {
        let mut table = everything();
        table.limit_to(CpuidLevel::V3).unwrap();
        let has = |table: &CpuidTable, n| table.get(0xd, n).is_some_and(|l| l.subleaf == Some(n));
        assert!(has(&table, 2) && has(&table, 9) && !has(&table, 5) && !has(&table, 18));
        // AVX and the protection keys are left, AVX-512 and AMX are not.
        assert_eq!(table.get(0xd, 0).unwrap().eax & 0x0006_02e7, 0x207);
        table.limit_to(CpuidLevel::V2).unwrap();
        assert!(!has(&table, 2));
    }

    #[test]
    fn a_table_below_the_level_says_what_it_lacks() {
        let mut table = everything();
        table.limit_to(CpuidLevel::V2).unwrap();
        let before = table.clone();
        let e = table.limit_to(CpuidLevel::V3).unwrap_err();
        assert_eq!(
            e.to_string(),
            "this CPU is below x86-64-v3: it lacks fma, movbe, avx, f16c, bmi1, avx2, bmi2, abm; use a lower level"
        );
        assert_eq!(table, before);
    }
}
