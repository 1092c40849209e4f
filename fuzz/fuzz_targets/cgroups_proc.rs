//! `/proc/<pid>/mountinfo` and `/proc/<pid>/cgroup`, which a container's processes can shape.

#![no_main]

use cgroups::{Memberships, MountTable, Version};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(MountTable(mounts)) = text.parse() {
        assert!(mounts.len() <= text.lines().count());
        for mount in mounts {
            assert!(mount.version == Version::V1 || mount.controllers.is_empty());
        }
    }
    if let Ok(Memberships(groups)) = text.parse() {
        for group in groups {
            assert!(group.path.is_absolute());
        }
    }
});
