//! Random numbers for the guest (device 4), from the host's generator.

use std::ops::ControlFlow;

use rustix::rand::{GetRandomFlags, getrandom};

use super::rate::Limiter;
use super::{Device, Next, Ring};

/// The most that one chain gets; a driver that wants more asks again.
const MOST: usize = 64 << 10;

pub(crate) struct Entropy {
    limiter: Limiter,
    bytes: u64,
}

impl Entropy {
    pub(crate) fn new(limiter: Limiter) -> Self {
        Self { limiter, bytes: 0 }
    }
}

impl Device for Entropy {
    fn id(&self) -> u32 {
        4
    }

    fn queues(&self) -> &'static [u16] {
        &[64]
    }

    fn process(&mut self, rings: &mut [Ring]) -> Next {
        let mut wait = None;
        let more = rings[0].each(|chain| {
            let len = chain.room().min(MOST);
            if let Err(time) = self.limiter.take(len as u64) {
                wait = Some(time);
                return ControlFlow::Break(());
            }
            let mut bytes = vec![0; len];
            let got = getrandom(&mut bytes[..], GetRandomFlags::empty()).unwrap_or(0);
            self.bytes += chain.write(&bytes[..got]) as u64;
            ControlFlow::Continue(())
        });
        match wait {
            Some(time) => Next::After(time),
            None if more => Next::More,
            None => Next::Wait,
        }
    }

    fn metrics(&self) -> serde_json::Value {
        serde_json::json!({ "kind": "entropy", "bytes": self.bytes })
    }
}
