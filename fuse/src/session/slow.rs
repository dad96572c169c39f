//! Telling of reads that were slow.

use std::sync::Arc;
use std::time::Duration;

use super::reads::Wanted;
use crate::counts::{Delay, ReadFailure};
use crate::fetch::{Fetcher, Spent};
use crate::layer::{LayerId, owner};
use crate::observer::SlowRead;

/// Counts a slow read, and reports it unless many were reported just now. Called after the answer;
/// what costs time is done elsewhere.
pub(super) fn report(
    fetcher: &Arc<Fetcher>,
    wanted: &Wanted,
    took: Duration,
    failed: Option<ReadFailure>,
) {
    let context = fetcher.context();
    let index = fetcher.layer().index();
    let rows = wanted.devices().flat_map(|device| index.rows(device));
    let spent = fetcher.spent(rows);
    // Whatever was there at once, or came in time, was slow to be read from the disk.
    let cause = spent.as_ref().map_or(Delay::Disk, Spent::mostly);
    context.counts.slow_read(cause);
    let Some(suppressed) = context.slow.report() else {
        return;
    };
    let source = spent.and_then(|spent| spent.source().map(ToOwned::to_owned));
    let device = wanted.devices().next().unwrap_or_default();
    let (bytes, fetcher) = (wanted.len(), fetcher.clone());
    // The walk over the names takes a while, and only reports wait for it.
    context.runtime.spawn_blocking(move || {
        let place = owner(fetcher.layer().image(), device.clone());
        let (path, offset) = match place {
            Some(place) => (Some(place.path), place.offset),
            None => (None, device.start),
        };
        fetcher.context().observer.slow_read(&SlowRead {
            layer: LayerId(fetcher.id()),
            blob: fetcher.blob(),
            path,
            offset,
            bytes,
            took,
            cause,
            source,
            failed,
            suppressed,
        });
    });
}
