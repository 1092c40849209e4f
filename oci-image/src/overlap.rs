//! Reading, inflating and hashing a layer on threads of their own, while the caller writes.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::image::Inflater;

/// Bytes that go from thread to thread at a time: few enough to stay in the processor's cache.
const CHUNK: usize = 64 << 10;
/// Chunks that wait for a thread.
const QUEUE: usize = 8;
/// Each chunk is filled again when both readers are past it: they hold one each, one is being filled.
const BUFFERS: usize = QUEUE + 3;

type Chunk = Arc<Vec<u8>>;

/// The uncompressed bytes of a layer, verified at their end like those of a
/// [`LayerReader`](crate::LayerReader), made by two other threads.
pub(crate) struct Overlapped {
    chunks: Option<Receiver<Result<Chunk>>>,
    current: Option<Chunk>,
    position: usize,
    inflate: Option<JoinHandle<()>>,
    hash: Option<JoinHandle<Digest>>,
    diff_id: Digest,
}

impl Overlapped {
    /// Starts the threads.
    pub(crate) fn start(inflater: Inflater, diff_id: &Digest) -> Result<Overlapped> {
        let (to_writer, chunks) = sync_channel(QUEUE);
        let (to_hasher, hashed) = sync_channel(QUEUE);
        let algorithm = diff_id.algorithm();
        let failed = |source| Error::Stream {
            operation: "start a thread",
            source,
        };
        let hash = thread::Builder::new()
            .name("layer-hash".to_owned())
            .spawn(move || hash(&hashed, Hasher::new(algorithm)))
            .map_err(failed)?;
        let inflate = thread::Builder::new()
            .name("layer-inflate".to_owned())
            .spawn(move || inflate(inflater, &to_writer, &to_hasher))
            .map_err(failed)?;
        Ok(Overlapped {
            chunks: Some(chunks),
            current: None,
            position: 0,
            inflate: Some(inflate),
            hash: Some(hash),
            diff_id: diff_id.clone(),
        })
    }

    fn next(&mut self) -> Result<()> {
        // Let go of it before waiting: its buffer is filled again.
        self.current = None;
        self.position = 0;
        let Some(chunks) = &self.chunks else {
            return Ok(());
        };
        match chunks.recv() {
            Ok(Ok(chunk)) => {
                self.current = Some(chunk);
                Ok(())
            }
            Ok(Err(error)) => {
                self.stop();
                Err(error)
            }
            // The sender is gone without an error: that was all.
            Err(_) => self.end(),
        }
    }

    fn end(&mut self) -> Result<()> {
        self.chunks = None;
        let died = || Error::Stream {
            operation: "read the layer",
            source: io::Error::other("a thread panicked"),
        };
        if let Some(inflate) = self.inflate.take() {
            inflate.join().map_err(|_| died())?;
        }
        if let Some(hash) = self.hash.take() {
            let found = hash.join().map_err(|_| died())?;
            if found != self.diff_id {
                return Err(Error::DigestMismatch {
                    what: "the uncompressed layer",
                    expected: self.diff_id.clone(),
                    found,
                });
            }
        }
        Ok(())
    }

    /// Ends the threads: they notice that nobody listens.
    fn stop(&mut self) {
        self.chunks = None;
        self.current = None;
        if let Some(inflate) = self.inflate.take() {
            let _ = inflate.join();
        }
        if let Some(hash) = self.hash.take() {
            let _ = hash.join();
        }
    }
}

impl Drop for Overlapped {
    fn drop(&mut self) {
        self.stop();
    }
}

impl BufRead for Overlapped {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self
            .current
            .as_ref()
            .is_none_or(|chunk| self.position == chunk.len())
        {
            self.next().map_err(Error::into_io)?;
        }
        Ok(self
            .current
            .as_ref()
            .map_or(&[], |chunk| &chunk[self.position..]))
    }

    fn consume(&mut self, n: usize) {
        let length = self.current.as_ref().map_or(0, |chunk| chunk.len());
        self.position = (self.position + n).min(length);
    }
}

impl Read for Overlapped {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buf.len());
        buf[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

fn hash(chunks: &Receiver<Chunk>, mut hasher: Hasher) -> Digest {
    while let Ok(chunk) = chunks.recv() {
        hasher.update(&chunk);
    }
    hasher.finish()
}

fn inflate(
    mut inflater: Inflater,
    to_writer: &SyncSender<Result<Chunk>>,
    to_hasher: &SyncSender<Chunk>,
) {
    let mut buffers: Vec<Chunk> = Vec::with_capacity(BUFFERS);
    let mut turn = 0;
    loop {
        if buffers.len() < BUFFERS {
            buffers.push(Arc::new(vec![0; CHUNK]));
        }
        if Arc::get_mut(&mut buffers[turn]).is_none() {
            // Somebody holds it longer than expected.
            buffers[turn] = Arc::new(vec![0; CHUNK]);
        }
        let Some(buffer) = Arc::get_mut(&mut buffers[turn]) else {
            continue;
        };
        buffer.resize(CHUNK, 0);
        match fill(&mut inflater, buffer) {
            Ok(0) => return,
            Ok(n) => buffer.truncate(n),
            Err(error) => {
                // Nobody listens if the caller has given up.
                let _ = to_writer.send(Err(error));
                return;
            }
        }
        let chunk = &buffers[turn];
        if to_hasher.send(Arc::clone(chunk)).is_err()
            || to_writer.send(Ok(Arc::clone(chunk))).is_err()
        {
            return;
        }
        turn = (turn + 1) % BUFFERS;
    }
}

fn fill(inflater: &mut Inflater, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match inflater.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}
