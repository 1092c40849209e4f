//! The root filesystem of a container without a mount namespace of its own, whose mounts are the
//! machine's as long as it is there.

use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount,
};

use crate::state::State;
use crate::store::Locked;

/// Binds the root filesystem onto itself, so that one call takes away what is mounted in it, too.
pub(crate) fn attach(state: &mut State, locked: &Locked) -> Result<()> {
    let root = state.rootfs.clone();
    let cannot = || format!("root.path: cannot bind {} onto itself", root.display());
    let tree = namespaces::detached::bind(&root, true).with_context(cannot)?;
    let stat = statx(&tree, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID);
    // Noted before it is there: whoever is killed in between leaves nothing.
    state.shared_root = Some(
        stat.map_err(io::Error::from)
            .with_context(cannot)?
            .stx_mnt_id,
    );
    locked.save(state)?;
    let from_fd = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    move_mount(tree.as_fd(), "", CWD, &root, from_fd)
        .and_then(|()| mount_change(&root, private))
        .map_err(io::Error::from)
        .with_context(cannot)
}

/// Takes it away, if it is there.
pub(crate) fn detach(state: &State) -> Result<()> {
    let Some(id) = state.shared_root else {
        return Ok(());
    };
    let root: &Path = &state.rootfs;
    let there = statx(CWD, root, AtFlags::NO_AUTOMOUNT, StatxFlags::MNT_ID)
        .is_ok_and(|stat| stat.stx_mnt_id == id);
    if !there {
        return Ok(());
    }
    unmount(root, UnmountFlags::DETACH)
        .map_err(io::Error::from)
        .with_context(|| format!("cannot take the container's mounts off {}", root.display()))
}
