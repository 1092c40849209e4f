//! Reading a tar archive entry by entry, from a stream that is read once.
//!
//! The crate `tar` knows the layout of headers; what follows from them is decided here, so that caps hold while
//! extended headers are read, and so that an archive that two readers would take apart differently is refused.

mod entry;
mod header;
mod number;
mod records;
mod sparse;

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, Read, Seek};

use crate::error::{Error, Result, TarProblem};
use crate::limits::Limits;
use crate::pax::{self, Record};
pub use entry::{TarEntry, TarKind};
use header::{check, device_fields, name_of, padding, size, until_zero};
use number::{number, unsigned};
use records::apply;
use sparse::{SparseRecords, check_map};

const BLOCK: u64 = 512;

/// Reads entries from a tar stream.
///
/// After [`next_entry`](TarReader::next_entry) the contents are had by [`fill_data`](TarReader::fill_data) or
/// [`Read`]; what is not read is skipped.
#[derive(Debug)]
pub struct TarReader<R> {
    inner: R,
    /// Bytes taken from `inner`.
    position: u64,
    /// Bytes of the current entry's stored contents that have not been read.
    remaining: u64,
    /// Zero bytes that follow the contents up to the next block.
    padding: u64,
    entries: u64,
    /// Name and place of the entry that is being read, as far as they are known.
    name: Vec<u8>,
    start: u64,
    globals: BTreeMap<Vec<u8>, Record>,
    ended: bool,
    extension_bytes: u64,
    max_entries: u64,
}

/// What extended headers said about the entry to come.
#[derive(Default)]
struct Extensions {
    records: Vec<Record>,
    has_pax: bool,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> TarReader<R> {
    /// Reads from `inner`, within `limits`.
    pub fn new(inner: R, limits: &Limits) -> TarReader<R> {
        TarReader {
            inner,
            position: 0,
            remaining: 0,
            padding: 0,
            entries: 0,
            name: Vec::new(),
            start: 0,
            globals: BTreeMap::new(),
            ended: false,
            extension_bytes: limits.extension_bytes,
            max_entries: limits.entries,
        }
    }

    /// Bytes read from the archive so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The stream, positioned wherever reading stopped.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, or `None` at the end of the archive.
    ///
    /// # Errors
    ///
    /// [`Error::Tar`] when the archive is damaged or ambiguous, [`Error::Limit`] when it is larger than allowed,
    /// and whatever the stream reports.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>> {
        let rest = self.remaining + self.padding;
        self.skip(rest).map_err(|error| self.located(error))?;
        self.next_after_skip()
    }

    fn next_after_skip(&mut self) -> Result<Option<TarEntry>> {
        self.remaining = 0;
        self.padding = 0;
        if self.ended {
            return Ok(None);
        }
        self.start = self.position;
        self.name.clear();
        let entry = self.read_entry().map_err(|error| self.located(error))?;
        if let Some(entry) = &entry {
            self.name.clone_from(&entry.path);
        }
        Ok(entry)
    }

    /// An error with the entry in which it was met.
    fn located(&self, error: Error) -> Error {
        match error {
            Error::Tar { .. } | Error::Limit { .. } if !self.name.is_empty() => {
                error.in_entry(&self.name, self.start)
            }
            error => error,
        }
    }

    fn read_entry(&mut self) -> Result<Option<TarEntry>> {
        let start = self.start;
        let mut extensions = Extensions::default();
        let mut budget = self.extension_bytes;
        loop {
            let offset = self.position;
            let Some(header) = self.header()? else {
                if offset != start {
                    return Err(tar(
                        offset,
                        TarProblem::Pax("no entry follows an extended header"),
                    ));
                }
                self.ended = true;
                return Ok(None);
            };
            self.entries += 1;
            if self.entries > self.max_entries {
                return Err(Error::Limit {
                    what: "the archive",
                    found: self.entries,
                    unit: "entries",
                    limit: self.max_entries,
                    setting: "entries",
                });
            }
            let flag = header.as_old().linkflag[0];
            match flag {
                b'L' | b'K' => {
                    let mut data = self.extension(&header, offset, &mut budget)?;
                    let end = data.iter().position(|&b| b == 0).unwrap_or(data.len());
                    data.truncate(end);
                    if flag == b'L' {
                        self.name.clone_from(&data);
                    }
                    let slot = if flag == b'L' {
                        &mut extensions.long_name
                    } else {
                        &mut extensions.long_link
                    };
                    if slot.replace(data).is_some() {
                        return Err(tar(
                            offset,
                            TarProblem::Ambiguous("two long names for one entry"),
                        ));
                    }
                }
                b'x' | b'X' => {
                    let data = self.extension(&header, offset, &mut budget)?;
                    if extensions.has_pax {
                        return Err(tar(
                            offset,
                            TarProblem::Ambiguous("two extended headers for one entry"),
                        ));
                    }
                    extensions.has_pax = true;
                    extensions.records =
                        pax::parse(&data).map_err(|problem| tar(offset, problem))?;
                }
                b'g' => {
                    let data = self.extension(&header, offset, &mut budget)?;
                    let records = pax::parse(&data).map_err(|problem| tar(offset, problem))?;
                    self.add_globals(records, offset)?;
                }
                _ => return self.entry(&header, start, offset, extensions).map(Some),
            }
        }
    }

    /// Keeps the records of a global header: later ones take the place of earlier ones, and all must fit the cap.
    fn add_globals(&mut self, records: Vec<Record>, offset: u64) -> Result<()> {
        for record in records {
            if matches!(record.key.as_slice(), b"path" | b"linkpath" | b"size")
                || record.key.starts_with(b"GNU.sparse")
            {
                return Err(tar(
                    offset,
                    TarProblem::Ambiguous("a global header names or sizes all entries"),
                ));
            }
            self.globals.insert(record.key.clone(), record);
        }
        let bytes: usize = self
            .globals
            .values()
            .map(|record| record.key.len() + record.value.len())
            .sum();
        if bytes as u64 > self.extension_bytes {
            return Err(self.extension_limit(bytes as u64));
        }
        Ok(())
    }

    fn extension_limit(&self, found: u64) -> Error {
        Error::Limit {
            what: "an extended header of the archive",
            found,
            unit: "bytes",
            limit: self.extension_bytes,
            setting: "extension_bytes",
        }
    }

    /// The next header, or `None` at the end. One block of zeros ends the archive for every reader.
    fn header(&mut self) -> Result<Option<tar::Header>> {
        let offset = self.position;
        let mut header = tar::Header::new_old();
        let n = self.read_up_to(header.as_mut_bytes())?;
        if n == 0 {
            return Ok(None);
        }
        if self.name.is_empty() {
            // Also of a header that turns out to be damaged: its name mostly is not.
            self.name = name_of(&header);
        }
        if n < header.as_bytes().len() {
            return Err(tar(offset + n as u64, TarProblem::Truncated));
        }
        if header.as_bytes().iter().all(|&b| b == 0) {
            return Ok(None);
        }
        check(&header, offset)?;
        Ok(Some(header))
    }

    /// The data of an extended header.
    fn extension(
        &mut self,
        header: &tar::Header,
        offset: u64,
        budget: &mut u64,
    ) -> Result<Vec<u8>> {
        let size = size(header, offset)?;
        let Some(left) = budget.checked_sub(size) else {
            return Err(self.extension_limit(self.extension_bytes - *budget + size));
        };
        *budget = left;
        let mut data = vec![0; usize::try_from(size).map_err(|_| self.extension_limit(size))?];
        self.read_exact(&mut data)?;
        // Some readers take what fills the block for a part of the data.
        let mut rest = [0; 512];
        let rest = &mut rest[..usize::try_from(padding(size)).unwrap_or(0)];
        self.read_exact(rest)?;
        if rest.iter().any(|&b| b != 0) {
            return Err(tar(
                offset,
                TarProblem::Ambiguous("an extended header is followed by more than zeros"),
            ));
        }
        Ok(data)
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        start: u64,
        offset: u64,
        mut extensions: Extensions,
    ) -> Result<TarEntry> {
        let fail = |problem| tar(offset, problem);
        let old = header.as_old();
        let flag = old.linkflag[0];
        if header.as_ustar().is_none()
            && header.as_gnu().is_none()
            && old.pad[88..243].iter().any(|&b| b != 0)
        {
            return Err(fail(TarProblem::Ambiguous(
                "a header of no known format that may have a prefix",
            )));
        }
        let mut stored = size(header, offset)?;
        let mut entry = TarEntry {
            path: name_of(header),
            kind: TarKind::Regular,
            link: until_zero(&old.linkname).to_vec(),
            mode: 0,
            uid: unsigned("the uid", &old.uid, offset)?,
            gid: unsigned("the gid", &old.gid, offset)?,
            mtime: (number("the mtime", &old.mtime, offset)?, 0),
            size: 0,
            device: (0, 0),
            xattrs: Vec::new(),
            acl_access: None,
            acl_default: None,
            sparse: None,
            offset: start,
        };
        // High bits say the file type in some writers; the type flag decides.
        entry.mode = u32::try_from(number("the mode", &old.mode, offset)? & 0o7777).unwrap_or(0);

        let has_long = extensions.long_name.is_some() || extensions.long_link.is_some();
        if let Some(name) = extensions.long_name.take() {
            entry.path = name;
        }
        if let Some(link) = extensions.long_link.take() {
            entry.link = link;
        }
        self.name.clone_from(&entry.path);
        let mut sparse = SparseRecords::default();
        let globals = std::mem::take(&mut self.globals);
        let result = globals
            .values()
            .chain(&extensions.records)
            .try_for_each(|record| apply(record, &mut entry, &mut stored, &mut sparse, has_long));
        self.globals = globals;
        keep_last(&mut entry.xattrs);
        let result = result.and_then(|()| sparse.check(flag));
        // The name under which readers that do not know sparse files find the entry is another.
        if let Some(name) = sparse.name.take() {
            entry.path = name;
        }
        self.name.clone_from(&entry.path);
        result.map_err(fail)?;

        let slash = entry.path.ends_with(b"/");
        entry.kind = match flag {
            // Before POSIX a directory was a file whose name ends in a slash.
            0 if slash => TarKind::Directory,
            b'0' | b'7' if slash => {
                return Err(fail(TarProblem::Ambiguous(
                    "a regular file whose name ends in a slash",
                )));
            }
            0 | b'0' | b'7' | b'S' => TarKind::Regular,
            b'1' => TarKind::Hardlink,
            b'2' => TarKind::Symlink,
            b'3' => TarKind::Char,
            b'4' => TarKind::Block,
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            other => return Err(fail(TarProblem::Type(char::from(other)))),
        };
        if entry.path.is_empty() {
            return Err(fail(TarProblem::NoName));
        }
        if entry.path.contains(&0) || entry.link.contains(&0) {
            return Err(fail(TarProblem::ZeroInName));
        }
        match entry.kind {
            TarKind::Regular => {}
            // Every reader ignores the size here: it is that of the file to which the link leads.
            TarKind::Hardlink => stored = 0,
            _ if stored != 0 => {
                return Err(fail(TarProblem::Ambiguous(
                    "contents of something that is no regular file",
                )));
            }
            TarKind::Char | TarKind::Block => {
                if let Some((major, minor)) = device_fields(header) {
                    let half = |name, field: &[u8]| -> Result<u32> {
                        let value = number(name, field, offset)?;
                        u32::try_from(value).map_err(|_| {
                            fail(TarProblem::Number {
                                field: name,
                                text: value.to_string(),
                            })
                        })
                    };
                    entry.device = (
                        half("the major number", major)?,
                        half("the minor number", minor)?,
                    );
                }
            }
            _ => {}
        }
        self.remaining = stored;
        self.padding = padding(stored);
        entry.size = stored;
        if flag == b'S' {
            self.gnu_sparse(header, &mut entry)?;
        } else if sparse.is_sparse() {
            if entry.kind != TarKind::Regular {
                return Err(fail(TarProblem::Sparse("it belongs to no regular file")));
            }
            self.pax_sparse(sparse, &mut entry, offset)?;
        }
        if let Some(map) = &entry.sparse {
            check_map(map, entry.size, self.remaining).map_err(fail)?;
        }
        Ok(entry)
    }

    /// The next bytes of the entry's stored contents; empty at their end. [`consume_data`](TarReader::consume_data)
    /// takes them.
    ///
    /// # Errors
    ///
    /// [`Error::Tar`] when the archive ends too early, and whatever the stream reports.
    pub fn fill_data(&mut self) -> Result<&[u8]> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let position = self.position;
        // A stream may be interrupted, and must then be asked again.
        loop {
            match self.inner.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(stream(error)),
            }
        }
        let available = self.inner.fill_buf().map_err(stream)?;
        if available.is_empty() {
            return Err(tar(position, TarProblem::Truncated).in_entry(&self.name, self.start));
        }
        let most = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        Ok(&available[..available.len().min(most)])
    }

    /// Marks `n` of the bytes that [`fill_data`](TarReader::fill_data) returned as read.
    pub fn consume_data(&mut self, n: usize) {
        let n = n.min(usize::try_from(self.remaining).unwrap_or(usize::MAX));
        self.inner.consume(n);
        self.position += n as u64;
        self.remaining -= n as u64;
    }

    fn read_up_to(&mut self, buf: &mut [u8]) -> Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.inner.read(&mut buf[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(stream(error)),
            }
        }
        self.position += filled as u64;
        Ok(filled)
    }

    fn read_exact(&mut self, buf: &mut [u8]) -> Result<()> {
        if self.read_up_to(buf)? < buf.len() {
            return Err(tar(self.position, TarProblem::Truncated));
        }
        Ok(())
    }

    fn skip(&mut self, mut n: u64) -> Result<()> {
        while n > 0 {
            let available = match self.inner.fill_buf() {
                Ok(available) => available.len() as u64,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(stream(error)),
            };
            if available == 0 {
                return Err(tar(self.position, TarProblem::Truncated));
            }
            let step = available.min(n);
            // `step` fits: it is at most a buffer's length.
            self.inner
                .consume(usize::try_from(step).unwrap_or(usize::MAX));
            self.position += step;
            n -= step;
        }
        Ok(())
    }
}

impl<R: Read + Seek> TarReader<std::io::BufReader<R>> {
    /// Like [`next_entry`](TarReader::next_entry), but moves over contents instead of reading them. An end that is
    /// missing is noticed by whoever compares [`position`](TarReader::position) with the file's length.
    pub(crate) fn next_entry_by_seeking(&mut self) -> Result<Option<TarEntry>> {
        let rest = self.remaining.saturating_add(self.padding);
        if rest > 0 {
            let step =
                i64::try_from(rest).map_err(|_| tar(self.position, TarProblem::Truncated))?;
            self.inner.seek_relative(step).map_err(stream)?;
            self.position = self.position.saturating_add(rest);
        }
        self.next_after_skip()
    }
}

impl<R: BufRead> Read for TarReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let available = self.fill_data().map_err(Error::into_io)?;
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.consume_data(n);
        Ok(n)
    }
}

/// Of several attributes of one name the last counts.
fn keep_last(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    if xattrs.len() > 1 {
        let mut seen = HashSet::with_capacity(xattrs.len());
        xattrs.reverse();
        xattrs.retain(|(name, _)| seen.insert(name.clone()));
        xattrs.reverse();
    }
}

fn tar(offset: u64, problem: TarProblem) -> Error {
    Error::Tar { offset, problem }
}

fn stream(error: std::io::Error) -> Error {
    Error::from_io(error, |source| Error::Stream {
        operation: "read the archive",
        source,
    })
}
