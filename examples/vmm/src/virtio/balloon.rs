//! A balloon (device 5): the guest gives pages back that it does not need, and the host frees them.

use std::ops::ControlFlow;

use kvm_vcpu::{GuestMemory, PAGE_SIZE};

use super::{Device, Next, Ring};

const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// Without statistics and hints, the third queue is that of free pages.
const REPORTING: usize = 2;

pub(crate) struct Balloon {
    memory: GuestMemory,
    /// How many pages the guest shall give.
    wanted: u32,
    /// How many it says that it gave.
    actual: u32,
    changed: bool,
    freed: u64,
}

impl Balloon {
    pub(crate) fn new(memory: GuestMemory) -> Self {
        Self {
            memory,
            wanted: 0,
            actual: 0,
            changed: false,
            freed: 0,
        }
    }

    /// Frees what is in the balloon, if the host can; the guest reads zeros there.
    fn free(&mut self, address: u64, len: u64) {
        if self.memory.discard(address, len).is_ok() {
            self.freed += len;
        }
    }
}

impl Device for Balloon {
    fn id(&self) -> u32 {
        5
    }

    fn queues(&self) -> &'static [u16] {
        &[128, 128, 128]
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn config(&self) -> Vec<u8> {
        let mut config = self.wanted.to_le_bytes().to_vec();
        config.extend(self.actual.to_le_bytes());
        config
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        if let (4, Ok(bytes)) = (offset, bytes.try_into()) {
            self.actual = u32::from_le_bytes(bytes);
        }
    }

    fn process(&mut self, rings: &mut [Ring]) -> Next {
        let mut more = rings[INFLATE].each(|chain| {
            while let Some(page) = chain.read_array::<4>() {
                let address = u64::from(u32::from_le_bytes(page)) * PAGE_SIZE;
                self.free(address, PAGE_SIZE);
            }
            ControlFlow::Continue(())
        });
        // The guest takes pages back: they come as it touches them.
        more |= rings[DEFLATE].each(|_| ControlFlow::Continue(()));
        more |= rings[REPORTING].each(|chain| {
            for (address, len) in chain.free_ranges() {
                self.free(address, len);
            }
            ControlFlow::Continue(())
        });
        if more { Next::More } else { Next::Wait }
    }

    fn config_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn reset(&mut self) {
        self.actual = 0;
    }

    fn save(&self) -> serde_json::Value {
        serde_json::json!({ "wanted": self.wanted, "actual": self.actual })
    }

    fn restore(&mut self, state: &serde_json::Value, _features: u64) {
        let number = |name: &str| {
            let n = state.get(name).and_then(serde_json::Value::as_u64);
            n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
        };
        (self.wanted, self.actual) = (number("wanted"), number("actual"));
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::json!({
            "kind": "balloon",
            "wanted_bytes": u64::from(self.wanted) * PAGE_SIZE,
            "actual_bytes": u64::from(self.actual) * PAGE_SIZE,
            "freed_bytes": self.freed,
        })
    }

    fn set_balloon(&mut self, mib: u32) -> bool {
        self.wanted = mib.saturating_mul(256);
        self.changed = true;
        true
    }
}
