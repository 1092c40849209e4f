//! PAX extended headers: records of `length key=value\n`.

use crate::error::TarProblem;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) key: Vec<u8>,
    pub(crate) value: Vec<u8>,
}

/// Reads all records of a header's data.
///
/// The format says lengths twice (the number and the newline); a header in which they disagree is refused, because
/// readers that trust the one or the other would see different archives.
pub(crate) fn parse(mut data: &[u8]) -> Result<Vec<Record>, TarProblem> {
    let mut records = Vec::new();
    while !data.is_empty() {
        let space = data
            .iter()
            .take(20)
            .position(|&b| b == b' ')
            .ok_or(TarProblem::Pax("a record does not start with its length"))?;
        let digits = &data[..space];
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return Err(TarProblem::Pax("a record's length is no number"));
        }
        let length = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| digits.parse::<usize>().ok())
            .ok_or(TarProblem::Pax("a record's length is no number"))?;
        if length > data.len() {
            return Err(TarProblem::Pax("a record is longer than the header"));
        }
        let record = data
            .get(space + 1..length)
            .ok_or(TarProblem::Pax("a record is shorter than its length"))?;
        let Some((b'\n', record)) = record.split_last() else {
            return Err(TarProblem::Pax("a record does not end in a newline"));
        };
        let equals = record
            .iter()
            .position(|&b| b == b'=')
            .ok_or(TarProblem::Pax("a record has no '='"))?;
        if equals == 0 {
            return Err(TarProblem::Pax("a record has no key"));
        }
        records.push(Record {
            key: record[..equals].to_vec(),
            value: record[equals + 1..].to_vec(),
        });
        data = &data[length..];
    }
    Ok(records)
}

/// Appends a record.
pub(crate) fn write(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // The length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for length in [0, 1, 90, 91, 92, 93, 94, 990, 991, 992, 993, 100_000] {
            let value = vec![b'\n'; length];
            let mut data = Vec::new();
            write(&mut data, b"path", &value);
            write(&mut data, b"mtime", b"1.5");
            let records = parse(&data).unwrap();
            assert_eq!(records[0].value, value);
            assert_eq!(records[1].key, b"mtime");
        }
    }

    #[test]
    fn refuses_lengths_that_disagree() {
        for bad in [
            "9 path=a\nx",
            "8 path=a\n",
            "99 path=a\n",
            "-9 path=a\n",
            "+9 path=a\n",
            " path=a\n",
            "path=a\n",
            "5 =a\n",
            "7 patha\n",
            "0 a=b\n",
            "18446744073709551616 a=b\n",
            "3 \n",
            "2 ",
        ] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
