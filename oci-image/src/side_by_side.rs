//! Unpacking the layers of an image side by side, each into a directory of its own.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::below::{Below, Place};
use crate::error::{Error, Result};
use crate::image::{Image, Layer};
use crate::parallel::side_by_side;
use crate::report::UnpackReport;
use crate::unpack::UnpackOptions;
use crate::whiteout::Whiteouts;

/// A layer and where it goes.
pub(crate) struct Job<'a> {
    pub(crate) layer: Layer<'a>,
    /// Its index among all places.
    pub(crate) number: usize,
}

/// Unpacks the layers of `jobs`, which are in the image's order, into their places; `unpacked` is called for each
/// before it counts as done. All places, those that hold an unpacked layer already among them, are lowest first.
///
/// A layer seldom asks for what is below it; when it does, it waits for that. The lowest layer that is not done waits
/// for none, so there is always one that goes on.
pub(crate) fn unpack(
    jobs: &[Job<'_>],
    places: &[Arc<Place>],
    options: &UnpackOptions,
    unpacked: impl Fn(&Job<'_>) -> Result<()> + Sync,
) -> Result<UnpackReport> {
    let results = Mutex::new(BTreeMap::new());
    // What went wrong is in the results.
    let _ = side_by_side(options.parallel, jobs, |job| {
        let place = &places[job.number];
        let done = place.finish_on_drop();
        let options = UnpackOptions {
            below: Below::new(places[..job.number].iter().rev().cloned()),
            ..options.clone()
        };
        let result = job
            .layer
            .unpack(place.directory(), &options)
            .and_then(|report| unpacked(job).map(|()| report));
        let ended = result.as_ref().map(|_| ()).map_err(|_| ());
        results
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(job.number, result);
        if ended.is_ok() {
            done.well();
        }
        ended
    });
    let mut report = UnpackReport::default();
    // Of several errors the lowest layer's: others may only have waited for that layer.
    for result in results
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .into_values()
    {
        report.add(result?);
    }
    Ok(report)
}

impl Image {
    /// Verifies all layers and unpacks each into a directory of its own, several side by side. The directories are
    /// those of [`Image::layers`], lowest first, to be stacked by overlayfs; what of [`UnpackOptions::below`] is
    /// needed among them need not be given.
    ///
    /// # Errors
    ///
    /// As for [`Layer::unpack`]; [`Error::BadValue`] when there are not as many directories as layers, or when
    /// whiteouts are to be carried out, which needs one directory for all.
    pub fn unpack_layers<F: AsFd>(
        &self,
        directories: &[F],
        options: &UnpackOptions,
    ) -> Result<UnpackReport> {
        let bad = |what, text: String, reason| {
            Err(Error::BadValue { what, text, reason }.in_image(self.name()))
        };
        if directories.len() != self.layers().len() {
            let text = format!("{} for {}", directories.len(), self.layers().len());
            return bad("number of directories", text, "give one for each layer");
        }
        if options.whiteouts == Whiteouts::Apply {
            let reason = "use `Image::unpack_flat`, or whiteouts that overlayfs understands";
            return bad("treatment of whiteouts", "Apply".to_owned(), reason);
        }
        let places = directories
            .iter()
            .map(|directory| {
                let directory: OwnedFd =
                    directory
                        .as_fd()
                        .try_clone_to_owned()
                        .map_err(|source| Error::Stream {
                            operation: "open a directory again",
                            source,
                        })?;
                Ok(Arc::new(Place::empty(Arc::new(directory))))
            })
            .collect::<Result<Vec<_>>>()?;
        let jobs: Vec<Job<'_>> = self
            .layers()
            .enumerate()
            .map(|(number, layer)| Job { layer, number })
            .collect();
        unpack(&jobs, &places, options, |_| Ok(()))
    }
}
