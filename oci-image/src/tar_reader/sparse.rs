//! Sparse files: the formats in which an archive says where the holes are.

use std::io::BufRead;

use super::number::unsigned;
use super::{BLOCK, TarEntry, TarReader, tar};
use crate::error::{Result, TarProblem};

impl<R: BufRead> TarReader<R> {
    /// GNU's own sparse format: four parts in the header, more in blocks that follow it.
    pub(super) fn gnu_sparse(&mut self, header: &tar::Header, entry: &mut TarEntry) -> Result<()> {
        let offset = self.position;
        let Some(gnu) = header.as_gnu() else {
            return Err(tar(
                offset,
                TarProblem::Sparse("the header is not in GNU's format"),
            ));
        };
        let mut map = Vec::new();
        let mut add = |parts: &[tar::GnuSparseHeader]| -> Result<()> {
            for part in parts {
                if part.offset[0] == 0 || part.numbytes[0] == 0 {
                    break;
                }
                map.push((
                    unsigned("a sparse offset", &part.offset, offset)?,
                    unsigned("a sparse length", &part.numbytes, offset)?,
                ));
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.isextended[0] == 1;
        let mut read = 0;
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            read += BLOCK;
            if read > self.extension_bytes {
                return Err(self.extension_limit(read));
            }
            // These blocks are not part of the contents that the header counts.
            let n = self.read_up_to(block.as_mut_bytes())?;
            if n as u64 != BLOCK {
                return Err(tar(self.position, TarProblem::Truncated));
            }
            add(&block.sparse)?;
            more = block.isextended[0] == 1;
        }
        entry.size = unsigned("the real size", &gnu.realsize, offset)?;
        entry.sparse = Some(map);
        Ok(())
    }

    /// The three sparse formats in PAX records; in the last one the map precedes the contents.
    pub(super) fn pax_sparse(
        &mut self,
        sparse: SparseRecords,
        entry: &mut TarEntry,
        offset: u64,
    ) -> Result<()> {
        let fail = |problem| tar(offset, TarProblem::Sparse(problem));
        entry.size = sparse
            .real_size
            .ok_or_else(|| fail("the real size is missing"))?;
        if sparse.major != Some(1) {
            entry.sparse = Some(sparse.map);
            return Ok(());
        }
        let mut read = 0;
        let mut block = [0u8; 512];
        let mut at = block.len();
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut value: u64 = 0;
            let mut digits = 0;
            loop {
                if at == block.len() {
                    read += BLOCK;
                    if read > self.extension_bytes {
                        return Err(self.extension_limit(read));
                    }
                    if self.remaining < BLOCK {
                        return Err(fail("it is longer than the entry"));
                    }
                    self.read_exact(&mut block)?;
                    self.remaining -= BLOCK;
                    at = 0;
                }
                let byte = block[at];
                at += 1;
                match byte {
                    b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(|| fail("a number is too large"))?;
                        digits += 1;
                    }
                    b'\n' if digits > 0 => break,
                    _ => return Err(fail("there is something else than numbers")),
                }
            }
            if numbers.is_empty() {
                // A number takes two bytes at least, so the cap on bytes caps this too.
                wanted = usize::try_from(value)
                    .ok()
                    .and_then(|count| count.checked_mul(2)?.checked_add(1))
                    .ok_or_else(|| fail("a number is too large"))?;
            }
            numbers.push(value);
        }
        entry.sparse = Some(
            numbers[1..]
                .chunks_exact(2)
                .map(|pair| (pair[0], pair[1]))
                .collect(),
        );
        Ok(())
    }
}

/// The PAX records that make a file sparse.
#[derive(Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<u64>,
    pub(super) minor: Option<u64>,
    pub(super) real_size: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) map: Vec<(u64, u64)>,
    pub(super) half: Option<u64>,
}

impl SparseRecords {
    pub(super) fn is_sparse(&self) -> bool {
        self.major.is_some() || self.real_size.is_some()
    }

    /// Refuses what only some readers would take for a sparse file, or would take for one of another format. `flag` is
    /// the type in the entry's header.
    pub(super) fn check(&self, flag: u8) -> Result<(), TarProblem> {
        if !self.is_sparse() {
            if self.minor.is_some()
                || self.name.is_some()
                || self.half.is_some()
                || !self.map.is_empty()
            {
                return Err(TarProblem::Ambiguous(
                    "only a part of the records that make a file sparse",
                ));
            }
            return Ok(());
        }
        if flag == b'S' {
            return Err(TarProblem::Ambiguous(
                "a sparse file in GNU's and in PAX's format",
            ));
        }
        if self.half.is_some() {
            return Err(TarProblem::Sparse("an offset has no length"));
        }
        match (self.major, self.minor) {
            (None | Some(0), None | Some(0 | 1)) => Ok(()),
            (Some(1), Some(0)) if self.map.is_empty() => Ok(()),
            (Some(1), Some(0)) => Err(TarProblem::Ambiguous("two maps of one sparse file")),
            _ => Err(TarProblem::Sparse("it is of an unknown version")),
        }
    }
}

pub(super) fn sparse_list(value: &[u8]) -> Option<Vec<(u64, u64)>> {
    let numbers = std::str::from_utf8(value)
        .ok()?
        .split(',')
        .map(|text| text.parse::<u64>().ok())
        .collect::<Option<Vec<_>>>()?;
    numbers.len().is_multiple_of(2).then(|| {
        numbers
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect()
    })
}

/// The parts must be in order, within the file, and together as long as what is stored.
pub(super) fn check_map(map: &[(u64, u64)], size: u64, stored: u64) -> Result<(), TarProblem> {
    let mut end = 0u64;
    let mut total = 0u64;
    for &(offset, length) in map {
        if offset < end {
            return Err(TarProblem::Sparse("parts overlap or are out of order"));
        }
        end = offset
            .checked_add(length)
            .filter(|&end| end <= size)
            .ok_or(TarProblem::Sparse("a part lies beyond the end of the file"))?;
        total += length;
    }
    if total != stored {
        return Err(TarProblem::Sparse(
            "the parts are not as long as the contents",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_of_sparse_files_are_checked() {
        assert!(check_map(&[(0, 10), (20, 5), (30, 0)], 30, 15).is_ok());
        assert!(check_map(&[(20, 5), (0, 10)], 30, 15).is_err());
        assert!(check_map(&[(0, 10), (5, 10)], 30, 20).is_err());
        assert!(check_map(&[(0, 31)], 30, 31).is_err());
        assert!(check_map(&[(u64::MAX, 2)], u64::MAX, 2).is_err());
        assert!(check_map(&[(0, 10)], 30, 11).is_err());
    }
}
