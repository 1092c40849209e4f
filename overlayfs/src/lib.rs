#![doc = include_str!("../README.md")]

mod apply;
mod attributes;
mod changes;
mod copy;
mod diagnose;
mod error;
mod features;
mod fsconfig;
mod index;
mod layer;
mod legacy;
mod lookup;
mod marks;
mod merged;
mod mounted;
mod options;
mod overlay;
mod root;
mod squash;
mod staging;
// The one place where a system call is made that no safe crate wraps.
#[allow(unsafe_code)]
mod sys;
mod workdir;
mod xattr;

pub use attributes::{idmapped, set_read_only};
pub use changes::{Change, ChangeKind, Changes, Upper};
pub use copy::{CopyOptions, Durability};
pub use error::{Error, Result, Role, Step};
pub use features::Features;
pub use layer::Layer;
pub use marks::{
    BadMark, EntryMarks, Opaque, Origin, Redirect, VerityDigest, Whiteout, write_impure,
    write_metacopy, write_opaque, write_origin, write_redirect,
};
pub use merged::{Entry, FileId, Kind, Merged, Metadata, Walk};
pub use mounted::{Mounted, attach};
pub use options::{
    Fsync, Index, Marks, Metacopy, NfsExport, Options, RedirectDir, Uuid, Verity, Xino,
};
pub use overlay::{Interface, MAX_LOWER_LAYERS, Overlay};
pub use squash::Below;
