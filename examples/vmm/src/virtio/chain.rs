//! A chain of buffers that the driver made: what the device reads first, and then what it fills.
//!
//! Everything about it is the driver's choice. It is walked once, checked as it is walked, and what
//! was checked is what is used.

use std::fs::File;
use std::io;

use kvm_vcpu::vm_memory::{Bytes as _, GuestAddress, GuestMemoryBackend as _, WriteVolatile};
use kvm_vcpu::{GuestMemory, VmMemory};
use virtio_queue::DescriptorChain;

/// The most buffers in a chain. Linux sends up to 130.
const MAX_BUFFERS: usize = 1024;
/// The most bytes in a chain, so that no request keeps a device for long.
const MAX_BYTES: u64 = 16 << 20;

/// Some of a chain's buffers, read or written from the front.
#[derive(Debug, Clone, Default)]
struct Buffers {
    ranges: Vec<(GuestAddress, usize)>,
    /// The buffer that comes next, and how far it is used.
    next: usize,
    used: usize,
    left: usize,
    done: usize,
}

impl Buffers {
    fn push(&mut self, at: GuestAddress, len: usize) {
        self.left += len;
        self.ranges.push((at, len));
    }

    /// Gives `f` piece after piece, until `limit` bytes are done, or it does less than it was given.
    fn each(
        &mut self,
        limit: usize,
        mut f: impl FnMut(GuestAddress, usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut total = 0;
        while let Some((at, len)) = self.ranges.get(self.next).copied() {
            let want = (len - self.used).min(limit - total);
            if want > 0 {
                let done = f(GuestAddress(at.0 + self.used as u64), want)?.min(want);
                self.used += done;
                self.left -= done;
                self.done += done;
                total += done;
                if done < want {
                    break;
                }
            }
            if self.used < len {
                break;
            }
            self.next += 1;
            self.used = 0;
        }
        Ok(total)
    }

    /// The pieces that are left, by address and length.
    fn pieces(&self) -> Vec<(u64, usize)> {
        let mut used = self.used;
        let rest = self.ranges[self.next..].iter();
        rest.map(|(at, len)| {
            let used = std::mem::take(&mut used);
            (at.0 + used as u64, len - used)
        })
        .collect()
    }

    /// Goes on after so many bytes.
    fn advance(&mut self, bytes: usize) -> io::Result<usize> {
        self.each(bytes, |_, len| Ok(len))
    }
}

/// A chain that the driver made.
pub(crate) struct Chain<'m> {
    memory: &'m GuestMemory,
    readable: Buffers,
    writable: Buffers,
}

impl<'m> Chain<'m> {
    /// Walks a chain; `None` when it is not one that the specification allows.
    pub(crate) fn new(memory: &'m GuestMemory, chain: DescriptorChain<&VmMemory>) -> Option<Self> {
        let map = memory.as_vm_memory();
        let mut this = Self {
            memory,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let (mut count, mut bytes) = (0, 0);
        for descriptor in chain {
            count += 1;
            bytes += u64::from(descriptor.len());
            let (at, len) = (descriptor.addr(), descriptor.len() as usize);
            if count > MAX_BUFFERS || bytes > MAX_BYTES || !map.check_range(at, len) {
                return None;
            }
            if descriptor.is_write_only() {
                this.writable.push(at, len);
            } else if this.writable.ranges.is_empty() {
                this.readable.push(at, len);
            } else {
                return None;
            }
        }
        (count > 0).then_some(this)
    }

    /// Bytes that the driver gave and that were not read yet.
    pub(crate) fn to_read(&self) -> usize {
        self.readable.left
    }

    /// Bytes that there is still room for.
    pub(crate) fn room(&self) -> usize {
        self.writable.left
    }

    /// Bytes that were written.
    pub(crate) fn written(&self) -> u32 {
        u32::try_from(self.writable.done).unwrap_or(u32::MAX)
    }

    /// Counts what was written into an end that was split off.
    pub(crate) fn count(&mut self, end: &Chain<'_>) {
        self.writable.done += end.writable.done;
    }

    /// The guest-physical ranges that the driver lets the device write, by address and length.
    pub(crate) fn free_ranges(&self) -> impl Iterator<Item = (u64, u64)> {
        let ranges = self.writable.ranges.iter();
        ranges.map(|(at, len)| (at.0, *len as u64))
    }

    /// Reads up to as many bytes as `out` has.
    pub(crate) fn read(&mut self, out: &mut [u8]) -> usize {
        let mut at = 0;
        let memory = self.memory.as_vm_memory();
        self.readable
            .each(out.len(), |address, len| {
                memory
                    .read_slice(&mut out[at..at + len], address)
                    .map_err(io::Error::other)?;
                at += len;
                Ok(len)
            })
            .unwrap_or(at)
    }

    /// Reads exactly so many bytes.
    pub(crate) fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        (self.read(&mut bytes) == N).then_some(bytes)
    }

    /// Writes as many of the bytes as there is room for.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        let memory = self.memory.as_vm_memory();
        self.writable
            .each(bytes.len(), |address, len| {
                memory
                    .write_slice(&bytes[at..at + len], address)
                    .map_err(io::Error::other)?;
                at += len;
                Ok(len)
            })
            .unwrap_or(at)
    }

    /// Writes up to `len` of the driver's bytes to a file, without a copy in between.
    pub(crate) fn write_to(
        &mut self,
        file: &mut impl WriteVolatile,
        len: usize,
    ) -> io::Result<usize> {
        let memory = self.memory.as_vm_memory();
        self.readable.each(len, |address, len| {
            memory
                .write_volatile_to(address, file, len)
                .map_err(io::Error::other)
        })
    }

    /// Writes what is left of the driver's bytes to a place in a file, with one system call.
    pub(crate) fn write_at(&mut self, file: &File, offset: u64) -> io::Result<usize> {
        let pieces = self.readable.pieces();
        let done = self.memory.write_to(file, offset, &pieces);
        self.readable.advance(done.map_err(io::Error::other)?)
    }

    /// Fills what there is room for from a place in a file, with one system call.
    pub(crate) fn read_at(&mut self, file: &File, offset: u64) -> io::Result<usize> {
        let pieces = self.writable.pieces();
        let done = self.memory.read_from(file, offset, &pieces);
        self.writable.advance(done.map_err(io::Error::other)?)
    }

    /// Splits the last `len` writable bytes off, as a chain of their own to be written first or last.
    pub(crate) fn split_end(&mut self, len: usize) -> Option<Chain<'m>> {
        let keep = self.writable.left.checked_sub(len)?;
        let mut end = Buffers::default();
        let mut kept = Buffers::default();
        for (at, size) in self.writable.ranges.drain(..) {
            let here = size.min(keep - kept.left);
            if here > 0 {
                kept.push(at, here);
            }
            if here < size {
                end.push(GuestAddress(at.0 + here as u64), size - here);
            }
        }
        self.writable = kept;
        Some(Chain {
            memory: self.memory,
            readable: Buffers::default(),
            writable: end,
        })
    }
}
