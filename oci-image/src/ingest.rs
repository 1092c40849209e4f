//! Blobs on their way into a store: what came before a break is kept, and the rest is added to it.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::descriptor::Descriptor;
use crate::digest::Hasher;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layout_writer::{io_error, rename_durably};

const BUFFER: usize = 128 << 10;

/// The file in which a blob is put together.
fn partial_path(directory: &Path, descriptor: &Descriptor) -> PathBuf {
    let digest = &descriptor.digest;
    directory.join(format!("{}-{}", digest.algorithm().as_str(), digest.hex()))
}

/// Brings a blob of `image` to `place`, going on with what is in `directory` of it. Of several processes that want the
/// same blob, one brings it and the others wait.
pub(crate) fn blob(
    directory: &Path,
    image: &Image,
    descriptor: &Descriptor,
    place: &Path,
) -> Result<()> {
    let path = partial_path(directory, descriptor);
    let Some(mut file) = open_locked(&path, place, descriptor)? else {
        return Ok(());
    };
    let filled = match fill(&mut file, &path, image, descriptor, true) {
        // What was there was damaged, by a loss of power perhaps: everything once more.
        Err(failure) if failure.resumed && is_mismatch(&failure.error) => {
            fill(&mut file, &path, image, descriptor, false)
        }
        other => other,
    };
    match filled.map_err(|failure| failure.error) {
        Ok(()) => {
            file.sync_all().map_err(io_error("sync", &path))?;
            rename_durably(&path, place)?;
            sync_directory(directory)
        }
        Err(error) => {
            if is_mismatch(&error) {
                // Nothing of it is worth keeping.
                let _ = fs::remove_file(&path);
            }
            Err(error)
        }
    }
}

/// An error, and whether it came after bytes that were there already.
struct Resumed {
    error: Error,
    resumed: bool,
}

fn is_mismatch(error: &Error) -> bool {
    matches!(error.cause(), Error::DigestMismatch { .. })
}

/// Adds to `file` what it lacks of the blob, and verifies all of it.
fn fill(
    file: &mut File,
    path: &Path,
    image: &Image,
    descriptor: &Descriptor,
    resume: bool,
) -> Result<(), Resumed> {
    let failed = io_error("write", path);
    let plain = |error| Resumed {
        error,
        resumed: false,
    };
    let mut hasher = Hasher::new(descriptor.digest.algorithm());
    let mut offset = file.metadata().map_err(|error| plain(failed(error)))?.len();
    // A whole file without its name was not verified, or it would have got it.
    if !resume || offset >= descriptor.size {
        offset = 0;
    }
    file.set_len(offset).map_err(|error| plain(failed(error)))?;
    file.rewind().map_err(|error| plain(failed(error)))?;
    let mut buffer = vec![0; BUFFER];
    let mut hashed = 0;
    while hashed < offset {
        let n = file
            .read(&mut buffer)
            .map_err(|error| plain(io_error("read", path)(error)))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        hashed += n as u64;
    }
    let copy = || -> Result<()> {
        let mut blob = image.resume(descriptor, hasher, hashed)?;
        loop {
            let n = match blob.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::from_io(error, io_error("read a blob for", path))),
            };
            file.write_all(&buffer[..n]).map_err(&failed)?;
        }
    };
    copy().map_err(|error| Resumed {
        error,
        resumed: hashed > 0,
    })
}

/// Opens the partial file and locks it; `None` when the blob has got to its place meanwhile.
fn open_locked(path: &Path, place: &Path, descriptor: &Descriptor) -> Result<Option<File>> {
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)
            .map_err(io_error("open", path))?;
        file.lock().map_err(io_error("lock", path))?;
        let locked = file.metadata().map_err(io_error("look at", path))?;
        let same = fs::metadata(path)
            .is_ok_and(|now| now.ino() == locked.ino() && now.dev() == locked.dev());
        if is_present(place, descriptor) {
            if same {
                let _ = fs::remove_file(path);
            }
            return Ok(None);
        }
        // Otherwise whoever held the lock has renamed or removed the file.
        if same {
            return Ok(Some(file));
        }
    }
}

/// Whether a blob is in its place, as far as its size tells.
pub(crate) fn is_present(place: &Path, descriptor: &Descriptor) -> bool {
    fs::metadata(place)
        .is_ok_and(|metadata| metadata.is_file() && metadata.len() == descriptor.size)
}

/// Removes what has been broken off in `directory` and was not gone on with for `age`.
pub(crate) fn forget(directory: &Path, age: std::time::Duration) -> Result<()> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("read", directory)(error)),
    };
    for entry in entries {
        let path = entry.map_err(io_error("read", directory))?.path();
        let Ok(file) = File::open(&path) else {
            continue;
        };
        let old = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|since| since >= age));
        if old && !matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(io_error("sync", path))
}
