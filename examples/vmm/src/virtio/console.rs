//! A console (device 3): what the guest writes goes to a file descriptor of the host, and what is
//! read from one goes to the guest.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::{Errno, read};

use super::{Device, Next, Ring, Source};

const RX: usize = 0;
const TX: usize = 1;

pub(crate) struct Console {
    input: Option<Arc<OwnedFd>>,
    output: File,
    pending: Vec<u8>,
    sent: u64,
    received: u64,
}

impl Console {
    /// `input`, if there is one, should not block.
    pub(crate) fn new(input: Option<OwnedFd>, output: File) -> io::Result<Self> {
        if let Some(input) = &input {
            rustix::io::ioctl_fionbio(input, true)?;
        }
        Ok(Self {
            input: input.map(Arc::new),
            output,
            pending: Vec::new(),
            sent: 0,
            received: 0,
        })
    }
}

impl Device for Console {
    fn id(&self) -> u32 {
        3
    }

    fn queues(&self) -> &'static [u16] {
        &[64, 64]
    }

    fn config(&self) -> Vec<u8> {
        vec![0; 12]
    }

    fn process(&mut self, rings: &mut [Ring]) -> Next {
        while rings[RX].has_chain() {
            if self.pending.is_empty() {
                let Some(input) = &self.input else { break };
                let mut bytes = [0; 4096];
                match read(input, &mut bytes) {
                    Ok(0) => self.input = None,
                    Ok(n) => self.pending.extend(&bytes[..n]),
                    Err(Errno::INTR) => {}
                    Err(_) => break,
                }
                continue;
            }
            let pending = &mut self.pending;
            let received = &mut self.received;
            let taken = rings[RX].one(|chain| {
                let n = chain.write(pending);
                pending.drain(..n);
                *received += n as u64;
            });
            if !taken {
                break;
            }
        }
        let more = rings[TX].each(|chain| {
            let len = chain.to_read();
            // An output that is gone loses what is written to it.
            self.sent += chain.write_to(&mut self.output, len).unwrap_or(0) as u64;
            ControlFlow::Continue(())
        });
        if more { Next::More } else { Next::Wait }
    }

    fn sources(&self) -> Vec<Source> {
        match &self.input {
            Some(input) if self.pending.is_empty() => vec![Source::readable(input)],
            _ => Vec::new(),
        }
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::json!({ "kind": "console", "sent_bytes": self.sent, "received_bytes": self.received })
    }
}
