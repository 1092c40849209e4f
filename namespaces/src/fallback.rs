//! The second-best ways to do something, and which of them were taken.

use std::cell::Cell;

bitflags::bitflags! {
    /// The second-best ways that were taken for a process, because the kernel, a seccomp filter
    /// around this process or its lack of privilege left no better one. What the program sees is
    /// the same.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Fallbacks: u32 {
        /// The process was made by `clone(2)`, not `clone3`.
        const CLONE = 0x01;
        /// It was moved into its cgroup, not born there: the cgroup is of v1, or the kernel older
        /// than 5.7.
        const CGROUP_MOVED = 0x02;
        /// Descriptors were closed one by one, not by `close_range(2)`.
        const CLOSE_ONE_BY_ONE = 0x04;
        /// A file system was mounted by `mount(2)`, not `fsopen(2)`.
        const CLASSIC_MOUNT = 0x08;
        /// A bind was made by `mount(2)`, not by `open_tree(2)` and `move_mount(2)`.
        const CLASSIC_BIND = 0x10;
        /// Attributes or propagation were set by remounting, not by `mount_setattr(2)`.
        const CLASSIC_ATTRIBUTES = 0x20;
        /// The caller's own file system was bound where a new one was refused, as is `/sys` in a
        /// user namespace with the network of another.
        const BOUND_FILESYSTEM = 0x40;
        /// Devices of the caller were bound where nodes cannot be made.
        const BOUND_DEVICES = 0x80;
        /// Something was written through the `/proc` that is mounted there, having made sure that
        /// it is one; a private one was refused.
        const SHARED_PROC = 0x100;
    }
}

/// Where the child notes them.
#[derive(Debug, Default)]
pub(crate) struct Taken(Cell<Fallbacks>);

impl Taken {
    pub(crate) fn note(&self, fallback: Fallbacks) {
        self.0.set(self.0.get() | fallback);
    }

    pub(crate) fn all(&self) -> Fallbacks {
        self.0.get()
    }
}
