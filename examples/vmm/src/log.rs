//! The log: a line of JSON for each thing that happens to the machine.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;

/// From now on events go to the end of this file, or to standard error when it is `-`. Without it they
/// go nowhere.
pub(crate) fn open(path: &Path) -> Result<(), Error> {
    let error = |source| Error::Write {
        path: path.to_owned(),
        source,
    };
    let file = if path == Path::new("-") {
        io::stderr().as_fd().try_clone_to_owned().map(File::from)
    } else {
        File::options().create(true).append(true).open(path)
    };
    // Each event is one write, so that threads need not wait for each other.
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_target(false)
        .with_writer(Arc::new(file.map_err(error)?))
        .finish();
    tracing::subscriber::set_global_default(subscriber).map_err(|e| error(io::Error::other(e)))
}
