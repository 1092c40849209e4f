//! What the fuzz targets share.

use std::path::{Path, PathBuf};

/// Where a target keeps the files of one input: in memory, as on a disk most of the time would go into waiting for it.
pub fn scratch(target: &str) -> PathBuf {
    Path::new("/dev/shm").join(format!("cofferdam-fuzz-{target}-{}", std::process::id()))
}

const BLOCK: usize = 512;
const SUM: std::ops::Range<usize> = 148..156;

/// Makes the sums of an archive's headers right, so that what is wrong with them is something else: hardly anything
/// that a fuzzer thinks of has a right sum, and readers look no further then.
pub fn mend(archive: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = archive.get_mut(at..at + BLOCK) {
        at += BLOCK;
        if block.iter().all(|&b| b == 0) {
            continue;
        }
        block[SUM].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let size = block[124..136]
            .iter()
            .take_while(|b| (b'0'..=b'7').contains(b))
            .fold(0usize, |size, b| {
                size.saturating_mul(8).saturating_add(usize::from(b - b'0'))
            });
        at = at.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
    }
}

/// Lets the fuzzer change archives, and mends them afterwards.
#[macro_export]
macro_rules! archives {
    () => {
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8],
                                      size: usize,
                                      max_size: usize,
                                      _seed: u32| {
            let size = libfuzzer_sys::fuzzer_mutate(data, size, max_size);
            $crate::mend(&mut data[..size]);
            size
        });
    };
}
