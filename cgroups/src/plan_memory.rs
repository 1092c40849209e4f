//! The writes for memory, swap and huge pages.

use crate::bytes::Bytes;
use crate::dir::Dir;
use crate::error::Result;
use crate::knob::Knob;
use crate::limits::Limits;
use crate::max::Max;
use crate::plan::{Plan, Restore, bytes_text, v1_limit, v1_swap};
use crate::procfs::Version;

impl<'a> Plan<'a> {
    pub(crate) fn memory(&mut self, limits: &Limits) -> Result<()> {
        let amounts = [
            (Knob::MemoryMin, limits.memory_min),
            (Knob::MemoryLow, limits.memory_low),
            (Knob::MemoryHigh, limits.memory_high),
            (Knob::MemoryZswapMax, limits.memory_zswap_max),
        ];
        let wanted = amounts.iter().any(|(_, limit)| limit.is_some())
            || limits.memory_oom_group.is_some()
            || limits.memory_max.is_some()
            || limits.memory_swap_max.is_some();
        if !wanted {
            return Ok(());
        }
        let (version, dir) = self.group.dir_of(Knob::MemoryMax.controller())?;
        for (knob, limit) in amounts {
            let Some(limit) = limit else { continue };
            self.push(knob, dir, knob.name(), &bytes_text(limit, "max"), &limit)?;
        }
        if let Some(whole_group) = limits.memory_oom_group {
            let value = u8::from(whole_group);
            let knob = Knob::MemoryOomGroup;
            self.push(knob, dir, knob.name(), &value, &whole_group)?;
        }
        match version {
            Version::V1 => self.memory_v1(dir, limits),
            Version::V2 => {
                // Swap first: a lower memory limit may need it at once.
                if let Some(limit) = limits.memory_swap_max {
                    let knob = Knob::MemorySwapMax;
                    self.push(knob, dir, knob.name(), &bytes_text(limit, "max"), &limit)?;
                }
                if let Some(limit) = limits.memory_max {
                    let knob = Knob::MemoryMax;
                    self.push(knob, dir, knob.name(), &bytes_text(limit, "max"), &limit)?;
                }
                Ok(())
            }
        }
    }

    /// v1 limits memory, and the sum of memory and swap; the sum may never be the smaller one.
    fn memory_v1(&mut self, dir: &'a Dir, limits: &Limits) -> Result<()> {
        const MEMORY: &str = "memory.limit_in_bytes";
        const SUM: &str = "memory.memsw.limit_in_bytes";
        if limits.memory_max.is_none() && limits.memory_swap_max.is_none() {
            return Ok(());
        }
        let knob = Knob::MemoryMax;
        let old_memory = v1_limit(self.open(knob, dir, MEMORY)?.number()?);
        // As the kernel will round each of them; rounding only the sum would give swap a page more.
        let memory = limits
            .memory_max
            .unwrap_or(old_memory)
            .map(Bytes::page_aligned);
        let shown = limits.memory_max.unwrap_or(memory);
        // Where memory is not limited, neither can the sum be.
        let keeps_sum = limits.memory_swap_max.is_none() && old_memory == Max::Unlimited;
        let sum_file = if keeps_sum {
            None
        } else {
            self.try_open(dir, SUM)?
        };
        let Some(sum_file) = sum_file else {
            if limits.memory_swap_max.is_some() {
                return Err(self.group.unsupported(Knob::MemorySwapMax));
            }
            return self.push(knob, dir, MEMORY, &bytes_text(memory, "-1"), &shown);
        };
        let old_sum = v1_limit(sum_file.number()?);
        let swap = limits
            .memory_swap_max
            .unwrap_or_else(|| v1_swap(old_memory, old_sum))
            .map(Bytes::page_aligned);
        let sum = match (memory, swap) {
            (Max::At(memory), Max::At(swap)) => Max::At(memory.saturating_add(swap)),
            (_, Max::Unlimited) => Max::Unlimited,
            (Max::Unlimited, Max::At(_)) if limits.memory_swap_max.is_none() => Max::Unlimited,
            // The sum of everything and something is no limit at all.
            (Max::Unlimited, Max::At(_)) => {
                return Err(self.group.unsupported(Knob::MemorySwapMax));
            }
        };
        let memory_step = limits
            .memory_max
            .map(|limit| (Knob::MemoryMax, MEMORY, memory, limit));
        let sum_step = (sum != old_sum).then_some((Knob::MemorySwapMax, SUM, sum, swap));
        let order = if sum > old_sum {
            [sum_step, memory_step]
        } else {
            [memory_step, sum_step]
        };
        for (knob, file, limit, shown) in order.into_iter().flatten() {
            self.push(knob, dir, file, &bytes_text(limit, "-1"), &shown)?;
        }
        Ok(())
    }

    pub(crate) fn hugetlb(&mut self, limits: &Limits) -> Result<()> {
        let knob = Knob::HugetlbMax;
        for (&size, &limit) in limits.hugetlb_max.iter().flatten() {
            let (version, dir) = self.group.dir_of(knob.controller())?;
            let size = huge_page_name(size);
            let (file, unlimited) = match version {
                Version::V2 => (format!("hugetlb.{size}.max"), "max"),
                Version::V1 => (format!("hugetlb.{size}.limit_in_bytes"), "-1"),
            };
            let value = bytes_text(limit, unlimited);
            self.push_with(knob, dir, file.into(), value, &limit, Restore::Whole)?;
        }
        Ok(())
    }
}

/// How the kernel writes the size of a huge page in the names of files.
pub(crate) fn huge_page_name(size: Bytes) -> String {
    match size.get() {
        large if large >= 1 << 30 => format!("{}GB", large >> 30),
        medium if medium >= 1 << 20 => format!("{}MB", medium >> 20),
        small => format!("{}KB", small >> 10),
    }
}
