//! CPUID templates: no table, from a snapshot or elsewhere, makes their arithmetic panic.
#![no_main]

use kvm_vcpu::{CpuidLeaf, CpuidLevel, CpuidTable, Feature, Topology};
use libfuzzer_sys::fuzz_target;

fn table(words: &[u32]) -> CpuidTable {
    let leaves = words.chunks_exact(7).map(|n| CpuidLeaf {
        // Mostly leaves that mean something.
        leaf: if n[0] & 1 == 0 {
            n[0] >> 1 & 0x1f
        } else {
            0x8000_0000 | n[0] >> 1 & 0x1f
        },
        subleaf: (n[1] & 1 != 0).then_some(n[2] & 7),
        eax: n[3],
        ebx: n[4],
        ecx: n[5],
        edx: n[6],
    });
    CpuidTable::new(leaves.collect())
}

fuzz_target!(|words: Vec<u32>| {
    let (a, b) = words.split_at(words.len() / 2);
    let (mut a, b) = (table(a), table(b));
    let topology = Topology {
        threads_per_core: words.first().copied().unwrap_or(0),
        cores_per_package: words.last().copied().unwrap_or(0),
    };
    let id = topology.apic_id(words.len() as u32);
    let _placed = a.with_topology(id, topology);
    a.intersect(&b);
    assert!(
        a.features_missing_in(&b)
            .iter()
            .all(|f| ![1, 7, 0x8000_0001].contains(&f.leaf))
    );
    for level in CpuidLevel::ALL {
        let mut limited = a.clone();
        match limited.limit_to(level) {
            Ok(_) => assert_eq!(limited.level(), Some(level)),
            Err(_) => assert!(limited == a && a.level() < Some(level)),
        }
    }
    for feature in Feature::ALL {
        a.set(*feature, true);
        assert!(a.has(*feature));
        a.set(*feature, false);
        assert!(!a.has(*feature));
    }
});
