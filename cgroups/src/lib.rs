#![doc = include_str!("../README.md")]

mod apply;
mod bytes;
mod controller;
mod counters;
mod cpu;
mod current;
mod delegate;
mod device;
mod devices;
mod devices_set;
mod devices_v1;
mod devices_v2;
mod dir;
mod error;
#[cfg(test)]
mod fault;
mod freeze;
mod group;
mod guard;
mod hierarchy;
mod io;
mod keyed;
mod kill;
mod knob;
mod limits;
mod max;
mod name;
mod partition;
mod percent;
mod plan;
mod plan_cpu;
mod plan_keyed;
mod plan_memory;
mod pressure;
mod processes;
mod procfs;
mod reclaim;
mod remove;
mod set;
mod stats;
mod stats_io;
// The one place of calls that the compiler cannot check.
#[allow(unsafe_code)]
mod sys;
#[cfg(feature = "systemd")]
mod systemd;
#[cfg(feature = "systemd")]
mod systemd_bus;
#[cfg(feature = "systemd")]
mod systemd_properties;
#[cfg(feature = "systemd")]
mod systemd_unit;
mod wait;
mod walk;
mod watch;

pub use bytes::Bytes;
pub use controller::{Controller, Controllers};
pub use counters::Counters;
pub use cpu::{CpuQuota, Weight};
pub use delegate::GroupType;
pub use device::DeviceNumber;
pub use devices::{Access, DeviceKind, DeviceRule, DeviceRules, Devices};
pub use error::{Error, NameProblem, ParseError, Result};
pub use group::Cgroup;
pub use guard::Guard;
pub use hierarchy::{Hierarchy, Layout};
pub use io::{IoMax, LatencyTarget, RdmaMax};
pub use keyed::Keyed;
pub use knob::Knob;
pub use limits::Limits;
pub use max::Max;
pub use partition::Partition;
pub use percent::Percent;
pub use pressure::{Pressure, PressureTrigger, Resource, Stall, Threshold};
pub use processes::ProcessIds;
pub use procfs::{Membership, Memberships, MountEntry, MountTable, Version};
pub use set::IdSet;
pub use stats::{CpuStats, MemoryEvents, MemoryStats, PidsStats};
pub use stats_io::{HugetlbStats, IoDeviceStats, IoStats, RdmaStats};
#[cfg(feature = "systemd")]
pub use systemd::Systemd;
#[cfg(feature = "systemd")]
pub use systemd_properties::PropertyValue;
#[cfg(feature = "systemd")]
pub use systemd_unit::TransientUnit;
pub use watch::{MemoryWatch, PidsWatch, State, StateWatch};
