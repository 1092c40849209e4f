use crate::{CpuidLeaf, CpuidTable};

/// How the vCPUs of a machine form packages: which of them are threads of one core, and cores of one
/// package. APIC ids are given out in that order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Threads of each core, at least 1.
    pub threads_per_core: u32,
    /// Cores of each package, at least 1.
    pub cores_per_package: u32,
}

impl Topology {
    /// One package of this many cores with a thread each, as most virtual machines are.
    pub fn cores(count: u32) -> Self {
        Self {
            threads_per_core: 1,
            cores_per_package: count,
        }
    }

    /// The APIC id of the `index`th vCPU. The fields for thread, core and package are whole bits wide,
    /// so the numbers have gaps where a count is no power of two.
    pub fn apic_id(self, index: u32) -> u32 {
        let (threads, cores) = (self.threads(), self.cores_each());
        let (thread, core) = (index % threads, index / threads % cores);
        let package = index / threads / cores;
        package << self.package_shift() | core << width(threads) | thread
    }

    fn threads(self) -> u32 {
        self.threads_per_core.max(1)
    }

    fn cores_each(self) -> u32 {
        self.cores_per_package.max(1)
    }

    fn package_shift(self) -> u32 {
        (width(self.threads()) + width(self.cores_each())).min(31)
    }
}

/// How many bits number this many things.
fn width(count: u32) -> u32 {
    (32 - (count - 1).leading_zeros()).min(31)
}

impl CpuidTable {
    /// The table for the vCPU with this APIC id in a machine of this topology: leaves 1, 4, 0xb, 0x1f and,
    /// as AMD has them, 0x8000_0008, 0x8000_001d and 0x8000_001e. A guest that finds its processors'
    /// topology wrong schedules badly, and some refuse to start a second one.
    #[must_use]
    pub fn with_topology(&self, apic_id: u32, topology: Topology) -> Self {
        let (threads, cores) = (topology.threads(), topology.cores_each());
        let logical = threads.saturating_mul(cores);
        let (core_shift, package_shift) = (width(threads), topology.package_shift());
        let is_amd = self.get(0, 0).is_some_and(|l| {
            // AuthenticAMD and HygonGenuine.
            [0x6874_7541, 0x6f67_7948].contains(&l.ebx)
        });
        let mut leaves: Vec<CpuidLeaf> = self.leaves().to_vec();
        // The subleaves of the topology leaves are made anew below.
        leaves.retain(|l| ![0xb, 0x1f].contains(&l.leaf));
        for leaf in &mut leaves {
            match leaf.leaf {
                1 => {
                    leaf.ebx = leaf.ebx & 0x0000_ffff | logical.min(255) << 16 | apic_id << 24;
                    // HTT: the count above holds.
                    leaf.edx = leaf.edx & !(1 << 28) | u32::from(logical > 1) << 28;
                }
                // Caches: the first two levels are a core's, others the package's. The layout is one
                // on both vendors; Intel has the count of cores, too.
                4 | 0x8000_001d if leaf.eax & 0x1f != 0 => {
                    let level = leaf.eax >> 5 & 7;
                    let sharing = if level < 3 { threads } else { logical };
                    leaf.eax = leaf.eax & 0x3fff | (sharing - 1).min(0xfff) << 14;
                    if leaf.leaf == 4 {
                        leaf.eax |= (cores - 1).min(0x3f) << 26;
                    }
                }
                0x8000_0001 if is_amd => {
                    // CmpLegacy: several cores and no hyper-threading.
                    leaf.ecx = leaf.ecx & !2 | u32::from(logical > 1) << 1;
                }
                0x8000_0008 if is_amd => {
                    leaf.ecx = leaf.ecx & !0xf0ff | (logical - 1).min(255) | package_shift << 12;
                }
                0x8000_001e => {
                    leaf.eax = apic_id;
                    leaf.ebx = (apic_id >> core_shift) & 0xff | (threads - 1).min(255) << 8;
                    // One node in each package.
                    leaf.ecx = (apic_id >> package_shift) & 0xff;
                }
                _ => {}
            }
        }
        let highest = self.get(0, 0).map_or(0, |l| l.eax);
        for leaf in [0xb, 0x1f].into_iter().filter(|leaf| *leaf <= highest) {
            let levels = [
                (core_shift, threads, 1),
                (package_shift, logical, 2),
                (0, 0, 0),
            ];
            for ((shift, count, kind), subleaf) in levels.into_iter().zip(0..) {
                leaves.push(CpuidLeaf {
                    leaf,
                    subleaf: Some(subleaf),
                    eax: shift,
                    ebx: count & 0xffff,
                    ecx: subleaf | kind << 8,
                    edx: apic_id,
                });
            }
        }
        Self::new(leaves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_number_threads_cores_and_packages() {
        let t = Topology {
            threads_per_core: 2,
            cores_per_package: 3,
        };
        let ids: Vec<u32> = (0..8).map(|i| t.apic_id(i)).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9]);
        let ids: Vec<u32> = (0..4).map(|i| Topology::cores(4).apic_id(i)).collect();
        assert_eq!(ids, [0, 1, 2, 3]);
        assert_eq!(Topology::cores(0).apic_id(1), 1);
    }
}
