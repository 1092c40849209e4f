//! A queue between driver and device ("split virtqueue").

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use kvm_vcpu::GuestMemory;
use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueOwnedT as _, QueueState, QueueT as _};

use super::Chain;

/// One queue, with the memory that it is in.
pub(crate) struct Ring {
    pub(crate) queue: Queue,
    memory: GuestMemory,
    /// The driver broke the rules: nothing more is done until it resets the device.
    pub(crate) broken: bool,
    /// Chains were given back since the driver was last told.
    used: bool,
    /// Several of them at once, which the queue's own count does not know.
    used_several: bool,
}

impl Ring {
    pub(crate) fn new(queue: Queue, memory: GuestMemory) -> Self {
        Self {
            queue,
            memory,
            broken: false,
            used: false,
            used_several: false,
        }
    }

    /// Whether the driver has set it up.
    pub(crate) fn is_usable(&self) -> bool {
        !self.broken && self.queue.ready() && self.queue.is_valid(&**self.memory.as_vm_memory())
    }

    /// Gives `f` the chains that the driver has made, one after another, and gives each back with
    /// what was written; says whether there may be more.
    ///
    /// `f` breaks to leave a chain in the ring for later. No more chains are handled in one go than
    /// the ring has entries, so that a driver that adds them all the time does not keep the device.
    pub(crate) fn each(&mut self, mut f: impl FnMut(&mut Chain<'_>) -> ControlFlow<()>) -> bool {
        if !self.is_usable() {
            return false;
        }
        let memory = self.memory.clone();
        let map = &**memory.as_vm_memory();
        let mut left = self.queue.size();
        loop {
            if self.queue.disable_notification(map).is_err() {
                self.broken = true;
                return false;
            }
            loop {
                if left == 0 {
                    return true;
                }
                let Ok(mut chains) = self.queue.iter(map) else {
                    self.broken = true;
                    return false;
                };
                let Some(descriptors) = chains.next() else {
                    break;
                };
                left -= 1;
                let head = descriptors.head_index();
                let written = match Chain::new(&memory, descriptors) {
                    Some(mut chain) => match f(&mut chain) {
                        ControlFlow::Continue(()) => chain.written(),
                        ControlFlow::Break(()) => {
                            self.queue.go_to_previous_position();
                            // The driver's next chain is nothing to wake up for: what is missing
                            // is something else.
                            return false;
                        }
                    },
                    // Not a chain: it goes back untouched.
                    None => 0,
                };
                if self.queue.add_used(map, head, written).is_err() {
                    self.broken = true;
                    return false;
                }
                self.used = true;
            }
            match self.queue.enable_notification(map) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(_) => {
                    self.broken = true;
                    return false;
                }
            }
        }
    }

    /// Takes one chain for `f`, if there is one that `f` continues with; says whether there was.
    pub(crate) fn one(&mut self, f: impl FnOnce(&mut Chain<'_>)) -> bool {
        let mut f = Some(f);
        let mut taken = false;
        self.each(|chain| match f.take() {
            Some(f) => {
                f(chain);
                taken = true;
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        });
        taken
    }

    /// Gives `f` the next chains that have room for so many bytes together, and gives them back at once:
    /// the driver sees all of them or none. False when there are not so many yet.
    pub(crate) fn several(&mut self, room: usize, f: impl FnOnce(&mut [Taken<'_>])) -> bool {
        if !self.is_usable() {
            return false;
        }
        let memory = self.memory.clone();
        let done = self.take_several(&memory, room).and_then(|mut chains| {
            if chains.is_empty() {
                return Ok(false);
            }
            f(&mut chains);
            self.give_back(&chains).map(|()| true)
        });
        self.broken = done.is_err();
        done.unwrap_or(false)
    }

    /// Takes the chains for [`Ring::several`], or leaves them where they are.
    fn take_several<'m>(
        &mut self,
        memory: &'m GuestMemory,
        room: usize,
    ) -> Result<Vec<Taken<'m>>, Broken> {
        let map = &**memory.as_vm_memory();
        let first = self.queue.next_avail();
        let (mut chains, mut found) = (Vec::new(), 0);
        while found < room {
            let next = self.queue.iter(map)?.next();
            let Some(descriptors) = next else {
                if self.queue.enable_notification(map)? {
                    continue;
                }
                self.queue.set_next_avail(first);
                return Ok(Vec::new());
            };
            let head = descriptors.head_index();
            let chain = Chain::new(memory, descriptors).filter(|chain| chain.room() > 0);
            let chain = chain.ok_or(Broken)?;
            found += chain.room();
            chains.push(Taken { head, chain });
        }
        Ok(chains)
    }

    /// Gives several chains back.
    fn give_back(&mut self, chains: &[Taken<'_>]) -> Result<(), Broken> {
        let memory = self.memory.clone();
        let map = &**memory.as_vm_memory();
        let (last, before) = chains.split_last().ok_or(Broken)?;
        // The driver looks at none of them before the last one moves the ring's index.
        for taken in before {
            let next = self.queue.next_used();
            let at = 4 + 8 * u64::from(next % self.queue.size());
            let entry = [taken.head.into(), taken.chain.written()];
            let entry = entry.map(u32::to_le_bytes).concat();
            memory.write(self.queue.used_ring().wrapping_add(at), &entry)?;
            self.queue.set_next_used(next.wrapping_add(1));
        }
        self.queue.add_used(map, last.head, last.chain.written())?;
        self.used = true;
        self.used_several |= !before.is_empty();
        if !self.has_chain() {
            // More may have come meanwhile, which the next look at the ring finds.
            self.queue.enable_notification(map)?;
        }
        Ok(())
    }

    /// Whether the driver has made a chain that was not taken.
    pub(crate) fn has_chain(&self) -> bool {
        self.is_usable()
            && self
                .queue
                .avail_idx(&**self.memory.as_vm_memory(), Ordering::Acquire)
                .is_ok_and(|idx| idx.0 != self.queue.next_avail())
    }

    /// Whether the driver has to be interrupted for what was given back.
    pub(crate) fn take_interrupt(&mut self) -> bool {
        if !std::mem::take(&mut self.used) {
            return false;
        }
        let several = std::mem::take(&mut self.used_several);
        let map = &**self.memory.as_vm_memory();
        self.queue.needs_notification(map).unwrap_or(true) || several
    }

    pub(crate) fn save(&self) -> Saved {
        let state = self.queue.state();
        Saved {
            size: state.size,
            ready: state.ready,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx: state.event_idx_enabled,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
            broken: self.broken,
        }
    }

    /// Takes up a saved state; false when it is no state of a queue.
    pub(crate) fn restore(&mut self, saved: &Saved) -> bool {
        let state = QueueState {
            max_size: self.queue.max_size(),
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.descriptors,
            avail_ring: saved.available,
            used_ring: saved.used,
        };
        let Ok(queue) = Queue::try_from(state) else {
            return false;
        };
        self.queue = queue;
        self.broken = saved.broken;
        // The driver may have been about to be told.
        self.used = saved.ready;
        true
    }
}

/// A chain that is to be given back.
pub(crate) struct Taken<'m> {
    head: u16,
    pub(crate) chain: Chain<'m>,
}

/// The driver has broken the rules.
struct Broken;

impl From<virtio_queue::Error> for Broken {
    fn from(_: virtio_queue::Error) -> Self {
        Self
    }
}

impl From<kvm_vcpu::Error> for Broken {
    fn from(_: kvm_vcpu::Error) -> Self {
        Self
    }
}

/// A ring's state in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Saved {
    size: u16,
    ready: bool,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    broken: bool,
}
