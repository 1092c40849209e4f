//! A disk (device 2): a raw file or block device of the host.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FallocateFlags, fallocate};

use super::rate::Limiter;
use super::{Chain, Device, Next, Ring};
use crate::filter::call;

const SECTOR: u64 = 512;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IOERR: u8 = 1;
const S_UNSUPP: u8 = 2;

/// The most ranges in a discard, and sectors in a range.
const DISCARD_RANGES: usize = 16;
const DISCARD_SECTORS: u32 = u32::MAX / 512;
/// Buffers in a request, which the driver puts into one chain with its header and status.
const SEGMENTS: u32 = QUEUE as u32 - 2;
const QUEUE: u16 = 256;

pub(crate) struct Block {
    file: File,
    read_only: bool,
    sectors: u64,
    serial: [u8; 20],
    limiter: Limiter,
    /// Whether the driver flushes; if it cannot, each write is on the disk before it is done.
    flushes: bool,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    flushes: u64,
    discards: u64,
    errors: u64,
}

impl Block {
    /// A disk of this file, with the serial number that the guest sees (at most 20 bytes).
    pub(crate) fn new(
        mut file: File,
        read_only: bool,
        serial: &str,
        limiter: Limiter,
    ) -> io::Result<Self> {
        // The size of a block device is where its end is.
        let sectors = file.seek(SeekFrom::End(0))? / SECTOR;
        let mut id = [0; 20];
        for (to, from) in id.iter_mut().zip(serial.bytes()) {
            *to = from;
        }
        Ok(Self {
            file,
            read_only,
            sectors,
            serial: id,
            limiter,
            flushes: false,
            counts: Counts::default(),
        })
    }

    /// Does one request; gives its status.
    fn request(&mut self, chain: &mut Chain<'_>) -> u8 {
        let Some(header) = chain.read_array::<16>() else {
            return S_IOERR;
        };
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&header[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let sector = number(8);
        let done = match kind {
            T_IN => self.read(chain, sector),
            T_OUT if !self.read_only => self.write(chain, sector),
            T_FLUSH => {
                self.counts.flushes += 1;
                self.file.sync_data()
            }
            T_GET_ID => {
                chain.write(&self.serial);
                Ok(())
            }
            T_DISCARD | T_WRITE_ZEROES if !self.read_only => self.discard(chain, kind),
            T_OUT | T_DISCARD | T_WRITE_ZEROES => return S_IOERR,
            _ => return S_UNSUPP,
        };
        match done {
            Ok(()) => S_OK,
            Err(e) if e.kind() == io::ErrorKind::Unsupported => S_UNSUPP,
            Err(_) => {
                self.counts.errors += 1;
                S_IOERR
            }
        }
    }

    /// Where a sector is, if so many bytes from there are on the disk.
    fn place(&self, sector: u64, bytes: usize) -> io::Result<u64> {
        let bytes = bytes as u64;
        let end = sector.checked_add(bytes / SECTOR);
        if !bytes.is_multiple_of(SECTOR) || end.is_none_or(|end| end > self.sectors) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(sector * SECTOR)
    }

    fn read(&mut self, chain: &mut Chain<'_>, sector: u64) -> io::Result<()> {
        let len = chain.room();
        let mut at = self.place(sector, len)?;
        while chain.room() > 0 {
            match chain.read_at(&self.file, at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => at += n as u64,
            }
        }
        self.counts.reads += 1;
        self.counts.read_bytes += len as u64;
        Ok(())
    }

    fn write(&mut self, chain: &mut Chain<'_>, sector: u64) -> io::Result<()> {
        let len = chain.to_read();
        let mut at = self.place(sector, len)?;
        while chain.to_read() > 0 {
            match chain.write_at(&self.file, at)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => at += n as u64,
            }
        }
        self.counts.writes += 1;
        self.counts.written_bytes += len as u64;
        if self.flushes {
            Ok(())
        } else {
            self.file.sync_data()
        }
    }

    fn discard(&mut self, chain: &mut Chain<'_>, kind: u32) -> io::Result<()> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let count = chain.to_read() / 16;
        if count == 0 || count > DISCARD_RANGES || !chain.to_read().is_multiple_of(16) {
            return Err(invalid());
        }
        for _ in 0..count {
            let range = chain.read_array::<16>().ok_or_else(invalid)?;
            let [sector, rest] = [&range[..8], &range[8..]].map(|b| {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(b);
                u64::from_le_bytes(bytes)
            });
            let (sectors, flags) = (rest & 0xffff_ffff, rest >> 32);
            let may_unmap = kind == T_DISCARD || flags & 1 != 0;
            if sectors > DISCARD_SECTORS.into()
                || sector
                    .checked_add(sectors)
                    .is_none_or(|end| end > self.sectors)
                || kind == T_DISCARD && flags != 0
            {
                return Err(invalid());
            }
            if sectors == 0 {
                continue;
            }
            let how = if may_unmap {
                FallocateFlags::PUNCH_HOLE
            } else {
                FallocateFlags::ZERO_RANGE
            };
            let flags = how | FallocateFlags::KEEP_SIZE;
            match fallocate(&self.file, flags, sector * SECTOR, sectors * SECTOR) {
                Ok(()) => {}
                // To discard is a hint.
                Err(rustix::io::Errno::OPNOTSUPP) if kind == T_DISCARD => {}
                Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeros(sector, sectors)?,
                Err(e) => return Err(e.into()),
            }
        }
        self.counts.discards += 1;
        Ok(())
    }

    fn write_zeros(&self, sector: u64, sectors: u64) -> io::Result<()> {
        let zeros = vec![0; 1 << 20];
        let (mut at, mut left) = (sector * SECTOR, sectors * SECTOR);
        while left > 0 {
            let len = usize::try_from(left)
                .unwrap_or(zeros.len())
                .min(zeros.len());
            self.file.write_all_at(&zeros[..len], at)?;
            at += len as u64;
            left -= len as u64;
        }
        Ok(())
    }
}

impl Device for Block {
    fn id(&self) -> u32 {
        2
    }

    fn queues(&self) -> &'static [u16] {
        &[QUEUE]
    }

    fn features(&self) -> u64 {
        let common = F_SEG_MAX | F_BLK_SIZE | F_FLUSH;
        if self.read_only {
            common | F_RO
        } else {
            common | F_DISCARD | F_WRITE_ZEROES
        }
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &512u32.to_le_bytes());
        let ranges = u32::try_from(DISCARD_RANGES).unwrap_or(1).to_le_bytes();
        // Discard: sectors, ranges, alignment; write zeroes: sectors, ranges, may unmap.
        put(36, &DISCARD_SECTORS.to_le_bytes());
        put(40, &ranges);
        put(44, &8u32.to_le_bytes());
        put(48, &DISCARD_SECTORS.to_le_bytes());
        put(52, &ranges);
        put(56, &[1]);
        config
    }

    fn activate(&mut self, features: u64) {
        self.flushes = features & F_FLUSH != 0;
    }

    fn process(&mut self, rings: &mut [Ring]) -> Next {
        let mut wait = None;
        let more = rings[0].each(|chain| {
            let bytes = chain.to_read().saturating_sub(16) + chain.room().saturating_sub(1);
            if let Err(time) = self.limiter.take(bytes as u64) {
                wait = Some(time);
                return ControlFlow::Break(());
            }
            // The last byte that the driver lets us write is for the status.
            if let Some(mut status) = chain.split_end(1) {
                let value = self.request(chain);
                status.write(&[value]);
                chain.count(&status);
            }
            ControlFlow::Continue(())
        });
        match wait {
            Some(time) => Next::After(time),
            None if more => Next::More,
            None => Next::Wait,
        }
    }

    fn calls(&self) -> &'static [i64] {
        &[
            call::PREADV,
            call::PWRITEV,
            call::PWRITE64,
            call::FDATASYNC,
            call::FALLOCATE,
        ]
    }

    fn metrics(&self) -> serde_json::Value {
        let c = &self.counts;
        serde_json::json!({
            "kind": "block",
            "reads": c.reads,
            "read_bytes": c.read_bytes,
            "writes": c.writes,
            "written_bytes": c.written_bytes,
            "flushes": c.flushes,
            "discards": c.discards,
            "errors": c.errors,
        })
    }
}
