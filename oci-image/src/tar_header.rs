//! Writing the headers of a tar archive.

use crate::pax;

pub(crate) const BLOCK: usize = 512;

/// A header in POSIX's format; what does not fit goes into PAX records.
pub(crate) struct Header {
    block: [u8; BLOCK],
}

impl Header {
    pub(crate) fn new(flag: u8) -> Header {
        let mut block = [0; BLOCK];
        block[156] = flag;
        block[257..263].copy_from_slice(b"ustar\0");
        block[263..265].copy_from_slice(b"00");
        let mut header = Header { block };
        for field in [108..116, 116..124, 329..337, 337..345] {
            header.octal(field, 0);
        }
        header.octal(136..148, 0);
        header
    }

    /// Writes octal digits if the number fits, with a zero byte after them.
    pub(crate) fn octal(&mut self, field: std::ops::Range<usize>, value: u64) -> bool {
        let digits = field.len() - 1;
        let text = format!("{value:0digits$o}");
        if text.len() > digits {
            return false;
        }
        self.block[field.start..field.end - 1].copy_from_slice(text.as_bytes());
        true
    }

    pub(crate) fn name(&mut self, name: &[u8], records: &mut Vec<u8>) {
        if name.len() > 100 {
            pax::write(records, b"path", name);
        }
        let mut short = &name[..name.len().min(100)];
        // A cut name must not end in a slash: the slash would make a file look like a directory.
        while name.len() > 100 && short.ends_with(b"/") {
            short = &short[..short.len() - 1];
        }
        self.block[..short.len()].copy_from_slice(short);
    }

    pub(crate) fn link(&mut self, link: &[u8], records: &mut Vec<u8>) {
        if link.len() > 100 {
            pax::write(records, b"linkpath", link);
        }
        let short = &link[..link.len().min(100)];
        self.block[157..157 + short.len()].copy_from_slice(short);
    }

    pub(crate) fn id(
        &mut self,
        field: std::ops::Range<usize>,
        key: &str,
        id: u32,
        records: &mut Vec<u8>,
    ) {
        if !self.octal(field, u64::from(id)) {
            pax::write(records, key.as_bytes(), id.to_string().as_bytes());
        }
    }

    pub(crate) fn size(&mut self, size: u64, records: &mut Vec<u8>) {
        if !self.octal(124..136, size) {
            pax::write(records, b"size", size.to_string().as_bytes());
        }
    }

    pub(crate) fn mtime(&mut self, (seconds, nanos): (i64, u32), records: &mut Vec<u8>) {
        let fits = u64::try_from(seconds).is_ok_and(|seconds| self.octal(136..148, seconds));
        if fits && nanos == 0 {
            return;
        }
        let text = if nanos == 0 {
            seconds.to_string()
        } else if seconds >= 0 {
            format!("{seconds}.{nanos:09}")
        } else {
            // 0.75 after -2 is -1.25.
            format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos)
        };
        let text = if nanos == 0 {
            &text
        } else {
            text.trim_end_matches('0')
        };
        pax::write(records, b"mtime", text.as_bytes());
    }

    /// Returns whether the numbers fit.
    pub(crate) fn device(&mut self, major: u32, minor: u32) -> bool {
        self.octal(329..337, u64::from(major)) && self.octal(337..345, u64::from(minor))
    }

    pub(crate) fn finish(mut self) -> [u8; BLOCK] {
        self.block[148..156].fill(b' ');
        let sum: u64 = self.block.iter().map(|&b| u64::from(b)).sum();
        // Six digits, a zero byte and a space: what every writer does.
        self.octal(148..155, sum);
        self.block
    }
}
