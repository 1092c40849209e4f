//! Files for measurements, the same each time.

use std::ops::Range;

use oci_image::Entry;

/// Text that compresses about as well as programs do.
fn contents(seed: usize, length: usize) -> Vec<u8> {
    let mut state = seed as u64 * 2_654_435_761 + 1;
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = (state >> 33).to_le_bytes();
        // Some bytes are new, some were there before.
        let repeat = usize::try_from(state >> 60).unwrap_or(0);
        bytes.extend_from_slice(&word[..4]);
        let from = bytes.len().saturating_sub(200 + repeat * 16);
        let again = bytes[from..(from + repeat).min(bytes.len())].to_vec();
        bytes.extend(again);
    }
    bytes.truncate(length);
    bytes
}

/// The files with these numbers, of `length` bytes each, forty to a directory.
pub fn entries(numbers: Range<usize>, length: usize) -> impl Iterator<Item = Entry> {
    let start = numbers.start;
    numbers.flat_map(move |number| {
        let directory = format!("usr/lib/part{}", number / 40);
        let first = (number == start || number.is_multiple_of(40))
            .then(|| Entry::directory(directory.clone(), 0o755));
        let file = Entry::file(
            format!("{directory}/file{number}"),
            0o644,
            contents(number, length),
        );
        first.into_iter().chain([file])
    })
}
