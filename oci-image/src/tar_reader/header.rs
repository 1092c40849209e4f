//! The block of 512 bytes before each entry.

use super::number::{number, unsigned};
use super::{BLOCK, tar};
use crate::error::{Result, TarProblem};

/// Compares the sum with the one that the header holds, and reads all its numbers.
pub(super) fn check(header: &tar::Header, offset: u64) -> Result<()> {
    let bytes = header.as_bytes();
    let expected = number("the checksum", &header.as_old().cksum, offset)?;
    let sum = |add: fn(u8) -> i64| -> i64 {
        bytes
            .iter()
            .enumerate()
            .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { add(b) })
            .sum()
    };
    let unsigned = sum(i64::from);
    // Some old writers summed signed bytes; readers accept both.
    if expected != unsigned && expected != sum(|b| i64::from(b.cast_signed())) {
        return Err(tar(
            offset,
            TarProblem::Checksum {
                expected: expected.cast_unsigned(),
                found: unsigned.cast_unsigned(),
            },
        ));
    }
    // All numbers of all headers, also those that do not matter: readers that check them end the archive at the
    // first that is none.
    let old = header.as_old();
    for (field, value) in [
        ("the mode", &old.mode[..]),
        ("the uid", &old.uid),
        ("the gid", &old.gid),
        ("the size", &old.size),
        ("the mtime", &old.mtime),
    ] {
        number(field, value, offset)?;
    }
    // Both formats have them in the same place, and some readers look there in a header of neither.
    number("the major number", &bytes[329..337], offset)?;
    number("the minor number", &bytes[337..345], offset)?;
    if let Some(gnu) = header.as_gnu() {
        number("the atime", &gnu.atime, offset)?;
        number("the ctime", &gnu.ctime, offset)?;
    }
    Ok(())
}

pub(super) fn padding(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK
}

pub(super) fn size(header: &tar::Header, offset: u64) -> Result<u64> {
    unsigned("the size", &header.as_old().size, offset)
}

pub(super) fn until_zero(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    &bytes[..end]
}

/// The name in the header itself; POSIX's format has a prefix for it.
pub(super) fn name_of(header: &tar::Header) -> Vec<u8> {
    let name = until_zero(&header.as_old().name);
    if let Some(ustar) = header.as_ustar() {
        let prefix = until_zero(&ustar.prefix);
        if !prefix.is_empty() {
            return [prefix, b"/", name].concat();
        }
    }
    name.to_vec()
}

pub(super) fn device_fields(header: &tar::Header) -> Option<(&[u8], &[u8])> {
    if let Some(ustar) = header.as_ustar() {
        return Some((&ustar.dev_major, &ustar.dev_minor));
    }
    header
        .as_gnu()
        .map(|gnu| (gnu.dev_major.as_slice(), gnu.dev_minor.as_slice()))
}
