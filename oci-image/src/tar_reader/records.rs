//! What the records of extended headers say about an entry.

use super::TarEntry;
use super::sparse::{SparseRecords, sparse_list};
use crate::error::{TarProblem, excerpt};
use crate::pax::Record;

pub(super) fn apply(
    record: &Record,
    entry: &mut TarEntry,
    stored: &mut u64,
    sparse: &mut SparseRecords,
    has_long: bool,
) -> Result<(), TarProblem> {
    let value = record.value.as_slice();
    let decimal = |field: &'static str| {
        std::str::from_utf8(value)
            .ok()
            .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or_else(|| TarProblem::Number {
                field,
                text: excerpt(&String::from_utf8_lossy(value)),
            })
    };
    match record.key.as_slice() {
        b"path" | b"linkpath" | b"GNU.sparse.name" if has_long => {
            return Err(TarProblem::Ambiguous(
                "names in GNU's and in PAX's format for one entry",
            ));
        }
        // An empty value takes a record back; the header's own field counts then.
        _ if value.is_empty() && !record.key.starts_with(b"SCHILY.xattr.") => {}
        b"path" => value.clone_into(&mut entry.path),
        b"linkpath" => value.clone_into(&mut entry.link),
        b"size" => {
            *stored = decimal("the size")?;
            if i64::try_from(*stored).is_err() {
                return Err(TarProblem::Number {
                    field: "the size",
                    text: stored.to_string(),
                });
            }
        }
        b"uid" => entry.uid = decimal("the uid")?,
        b"gid" => entry.gid = decimal("the gid")?,
        b"mtime" => {
            entry.mtime = time(value).ok_or_else(|| TarProblem::Number {
                field: "the mtime",
                text: excerpt(&String::from_utf8_lossy(value)),
            })?;
        }
        b"SCHILY.acl.access" => entry.acl_access = Some(value.to_vec()),
        b"SCHILY.acl.default" => entry.acl_default = Some(value.to_vec()),
        b"GNU.sparse.major" => sparse.major = Some(decimal("the sparse version")?),
        b"GNU.sparse.minor" => sparse.minor = Some(decimal("the sparse version")?),
        b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => {
            sparse.real_size = Some(decimal("the real size")?);
        }
        b"GNU.sparse.offset" => {
            if sparse.half.replace(decimal("a sparse offset")?).is_some() {
                return Err(TarProblem::Sparse("an offset has no length"));
            }
        }
        b"GNU.sparse.numbytes" => {
            let offset = sparse
                .half
                .take()
                .ok_or(TarProblem::Sparse("a length has no offset"))?;
            sparse.map.push((offset, decimal("a sparse length")?));
        }
        b"GNU.sparse.map" => {
            sparse.map = sparse_list(value)
                .ok_or(TarProblem::Sparse("the list of parts is no list of pairs"))?;
        }
        key => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                if name.is_empty() || name.contains(&0) {
                    return Err(TarProblem::Pax("an extended attribute has no usable name"));
                }
                entry.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

/// `seconds[.fraction]`, possibly negative; digits beyond nanoseconds are cut.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let digits = whole.strip_prefix('-').unwrap_or(whole);
    if digits.is_empty()
        || !digits
            .bytes()
            .chain(fraction.bytes())
            .all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let mut nanos = 0u32;
    for i in 0..9 {
        let digit = fraction
            .as_bytes()
            .get(i)
            .map_or(0, |b| u32::from(b - b'0'));
        nanos = nanos * 10 + digit;
    }
    if negative && nanos > 0 {
        // -1.25 is 0.75 after -2.
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_with_fractions() {
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12.1234567899"), Some((12, 123_456_789)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.25"), Some((-1, 750_000_000)));
        for bad in [&b""[..], b"-", b".5", b"1.-5", b"1e3", b" 1", b"+1"] {
            assert_eq!(time(bad), None);
        }
    }
}
