//! Archives as streams: whatever the bytes, entries are sound or refused, within the caps.
#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_image::{Limits, TarReader};

fuzz::archives!();

fuzz_target!(|data: &[u8]| {
    let mut limits = Limits::default();
    limits.extension_bytes = 16 << 10;
    limits.entries = 1000;
    let mut reader = TarReader::new(data, &limits);
    while let Ok(Some(entry)) = reader.next_entry() {
        assert!(!entry.path.is_empty());
        assert!(!entry.path.contains(&0) && !entry.link.contains(&0));
        assert!(entry.mode <= 0o7777 && entry.mtime.1 < 1_000_000_000);
        if let Some(map) = &entry.sparse {
            assert!(
                map.iter()
                    .all(|(offset, length)| offset + length <= entry.size)
            );
        }
        while let Ok(bytes @ [_, ..]) = reader.fill_data() {
            let n = bytes.len();
            reader.consume_data(n);
        }
        assert!(reader.position() <= data.len() as u64);
    }
});
