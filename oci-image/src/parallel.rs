//! The same work on several things side by side.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;

/// Does `work` on every one of `items`, on up to `threads` threads. After the first error nothing new is begun, and
/// that error is returned.
pub(crate) fn side_by_side<T: Sync, E: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    if threads <= 1 || items.len() <= 1 {
        return items.iter().try_for_each(work);
    }
    // What is left to do, and what went wrong first.
    let shared = Mutex::new((items.iter(), Ok(())));
    let next = || {
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if shared.1.is_err() {
            return None;
        }
        shared.0.next()
    };
    thread::scope(|scope| {
        for _ in 0..threads.min(items.len()) {
            scope.spawn(|| {
                while let Some(item) = next() {
                    if let Err(error) = work(item) {
                        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        if shared.1.is_ok() {
                            shared.1 = Err(error);
                        }
                    }
                }
            });
        }
    });
    shared
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn everything_is_done_once() {
        let items: Vec<usize> = (0..100).collect();
        let sum = AtomicUsize::new(0);
        side_by_side(4, &items, |item| {
            sum.fetch_add(*item, Ordering::Relaxed);
            Ok::<(), Error>(())
        })
        .unwrap();
        assert_eq!(sum.into_inner(), 4950);
    }

    #[test]
    fn the_first_error_ends_it() {
        let items: Vec<usize> = (0..100_000).collect();
        let done = AtomicUsize::new(0);
        let result = side_by_side(2, &items, |item| {
            done.fetch_add(1, Ordering::Relaxed);
            if *item == 5 {
                return Err(Error::NoCommand);
            }
            thread::yield_now();
            Ok(())
        });
        assert!(matches!(result, Err(Error::NoCommand)));
        assert!(done.into_inner() < items.len());
    }
}
