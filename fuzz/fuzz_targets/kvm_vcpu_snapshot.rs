//! Snapshot files: what is read back is what was written, and nothing else is read without an error.
#![no_main]

use kvm_vcpu::Snapshot;
use libfuzzer_sys::fuzz_target;

/// CRC-32, so that inputs get past the checksum.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

fuzz_target!(|data: &[u8]| {
    let _as_it_is = Snapshot::from_bytes(data);
    let mut file = b"cofferdam-vcpu\n\x02\0\0\0".to_vec();
    file.extend_from_slice(data);
    file.extend(crc32(&file).to_le_bytes());
    if let Ok(snapshot) = Snapshot::from_bytes(&file) {
        // A subleaf of a leaf that has none is not kept, so the first round may change the file.
        let once = snapshot.to_bytes();
        let again = Snapshot::from_bytes(&once).expect("what was written is read");
        assert_eq!(again.to_bytes(), once);
    }
});
