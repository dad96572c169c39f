//! Fetching what a start is known to read, before it reads it.

use larder_proto::access::Access;

use super::DataPlane;
use crate::layer::Layer;

impl DataPlane {
    /// Fetches these chunks of `layer` in the order of their time, among those of all layers that are
    /// replayed at the same time. Returns at once; what is in the store already costs nothing, and what is
    /// not in the layer is passed over. Readers go first. Nothing is fetched while nothing is kept.
    pub fn replay(&self, layer: &Layer, accesses: &[Access]) {
        if self.caching_stopped().is_some() {
            return;
        }
        let waiting = self.0.replays.add(&layer.0.fetcher, accesses);
        tracing::debug!(
            index = %layer.id(), given = accesses.len(), waiting,
            "fetching what a start of this layer reads"
        );
    }
}
