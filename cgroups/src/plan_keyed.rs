//! The writes for devices and everything else that is limited by a key.

use std::fmt::Display;

use crate::bytes::Bytes;
use crate::dir::Dir;
use crate::error::{Error, Result};
use crate::io::{IoMax, LatencyTarget, RdmaMax};
use crate::knob::Knob;
use crate::limits::Limits;
use crate::max::Max;
use crate::plan::{Plan, Restore};
use crate::procfs::Version;

impl<'a> Plan<'a> {
    /// Adds a write of one line of a file that has a line for each key.
    fn push_line(
        &mut self,
        knob: Knob,
        dir: &'a Dir,
        file: &'static str,
        key: &dyn Display,
        value: &dyn Display,
        absent: &dyn Display,
    ) -> Result<()> {
        let key = key.to_string();
        // A space or a line break would make another limit of it.
        if key.is_empty() || key.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(Error::InvalidKey { knob, key });
        }
        let restore = Restore::Line {
            absent: format!("{key} {absent}"),
            key: key.clone(),
        };
        let value = format!("{key} {value}");
        let shown = value.clone();
        self.push_with(knob, dir, file.into(), value, &shown, restore)
    }

    pub(crate) fn io(&mut self, limits: &Limits) -> Result<()> {
        let wanted =
            limits.io_weight.is_some() || limits.io_max.is_some() || limits.io_latency.is_some();
        if !wanted {
            return Ok(());
        }
        let (version, dir) = self.group.dir_of(Knob::IoMax.controller())?;
        if let Some(weight) = limits.io_weight {
            let knob = Knob::IoWeight;
            match version {
                Version::V1 => {
                    let value = weight.to_blkio();
                    self.push(knob, dir, "blkio.bfq.weight", &value, &weight)?;
                }
                Version::V2 if !dir.has("io.weight") && dir.has("io.bfq.weight") => {
                    let value = weight.to_blkio();
                    self.push_line(knob, dir, "io.bfq.weight", &"default", &value, &100)?;
                }
                Version::V2 => {
                    self.push_line(knob, dir, "io.weight", &"default", &weight, &100)?;
                }
            }
        }
        for (device, max) in limits.io_max.iter().flatten() {
            if max.has_zero() {
                return Err(Error::OutOfRange {
                    what: "limit for a block device",
                    value: format!("{device} {max}"),
                    min: "1",
                    max: "no limit",
                });
            }
            match version {
                Version::V2 => {
                    let absent = IoMax::UNLIMITED;
                    self.push_line(Knob::IoMax, dir, "io.max", device, max, &absent)?;
                }
                Version::V1 => {
                    let files = [
                        (
                            "blkio.throttle.read_bps_device",
                            max.read_bytes.map(Bytes::get),
                        ),
                        (
                            "blkio.throttle.write_bps_device",
                            max.written_bytes.map(Bytes::get),
                        ),
                        ("blkio.throttle.read_iops_device", max.reads.map(u64::from)),
                        (
                            "blkio.throttle.write_iops_device",
                            max.writes.map(u64::from),
                        ),
                    ];
                    for (file, limit) in files {
                        // To v1 nothing is no limit.
                        let value = limit.limit().unwrap_or(0);
                        self.push_line(Knob::IoMax, dir, file, device, &value, &0)?;
                    }
                }
            }
        }
        for (device, latency) in limits.io_latency.iter().flatten() {
            // To the kernel nothing is no target, and it multiplies without a check.
            if let Max::At(latency) = latency
                && !(1..=u128::from(u64::MAX / 1_000)).contains(&latency.as_micros())
            {
                return Err(Error::OutOfRange {
                    what: "latency for a block device",
                    value: format!("{device} {latency:?}"),
                    min: "1us",
                    max: "18446744073709551us",
                });
            }
            let target = LatencyTarget(*latency);
            let absent = LatencyTarget(Max::Unlimited);
            let knob = Knob::IoLatency;
            self.push_line(knob, dir, knob.name(), device, &target, &absent)?;
        }
        Ok(())
    }

    pub(crate) fn rdma(&mut self, limits: &Limits) -> Result<()> {
        let knob = Knob::RdmaMax;
        for (device, max) in limits.rdma_max.iter().flatten() {
            let (_, dir) = self.group.dir_of(knob.controller())?;
            self.push_line(knob, dir, knob.name(), device, max, &RdmaMax::UNLIMITED)?;
        }
        Ok(())
    }

    pub(crate) fn misc(&mut self, limits: &Limits) -> Result<()> {
        let knob = Knob::MiscMax;
        for (resource, max) in limits.misc_max.iter().flatten() {
            let (_, dir) = self.group.dir_of(knob.controller())?;
            self.push_line(knob, dir, knob.name(), resource, max, &"max")?;
        }
        Ok(())
    }

    pub(crate) fn net(&mut self, limits: &Limits) -> Result<()> {
        if let Some(class) = limits.net_cls_classid {
            let knob = Knob::NetClsClassid;
            let (_, dir) = self.group.dir_of(knob.controller())?;
            let shown = format!("{class:#010x}");
            self.push(knob, dir, knob.name(), &class, &shown)?;
        }
        let knob = Knob::NetPrioIfpriomap;
        for (interface, priority) in limits.net_prio.iter().flatten() {
            let (_, dir) = self.group.dir_of(knob.controller())?;
            self.push_line(knob, dir, knob.name(), interface, priority, &0)?;
        }
        Ok(())
    }
}
