use crate::{Exit, PortOut};

/// Collects what a guest writes to one I/O port: the simplest console there is.
///
/// ```
/// let mut console = kvm_vcpu::Console::at(0x3f8);
/// assert_eq!(console.text(), "");
/// ```
#[derive(Debug, Clone)]
pub struct Console {
    port: u16,
    bytes: Vec<u8>,
    limit: usize,
}

impl Console {
    /// Collects from this port; `0x3f8` is that of the first serial port of a PC.
    pub fn at(port: u16) -> Self {
        Self {
            port,
            bytes: Vec::new(),
            limit: 1 << 20,
        }
    }

    /// Keeps at most this many bytes (1 MiB if not set) and drops what comes after.
    pub fn limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Takes the exit if it is a write to this port; says whether it was.
    pub fn take(&mut self, exit: &Exit) -> bool {
        match exit {
            Exit::PortOut(out) if out.port == self.port => {
                self.push(out);
                true
            }
            _ => false,
        }
    }

    fn push(&mut self, out: &PortOut) {
        let room = self.limit.saturating_sub(self.bytes.len());
        let data = out.data();
        self.bytes.extend_from_slice(&data[..data.len().min(room)]);
    }

    /// What was written so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What was written so far, with bytes that are no UTF-8 replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_past_the_limit_or_for_another_port_is_not_kept() {
        let mut console = Console::at(0x3f8).limit(4);
        let out = |port, bytes| crate::exit_parse::write(true, port, bytes);
        assert!(console.take(&out(0x3f8, b"abc")));
        assert!(!console.take(&out(0x3f9, b"x")));
        assert!(!console.take(&Exit::Halt));
        assert!(console.take(&out(0x3f8, b"de")));
        assert!(console.take(&out(0x3f8, b"f")));
        assert_eq!(console.text(), "abcd");
    }
}
