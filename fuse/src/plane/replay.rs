//! Fetching what a start is known to read, before it reads it.

use larder_proto::access::Access;

use super::DataPlane;
use crate::fetch::Priority;
use crate::layer::Layer;

impl DataPlane {
    /// Fetches these chunks of `layer` in the order of their time, among those of all layers that are
    /// replayed at the same time. Returns at once; what is in the store already costs nothing, and what is
    /// not in the layer is passed over.
    pub fn replay(&self, layer: &Layer, accesses: &[Access]) {
        let _ = self;
        for access in accesses {
            let row = access.chunk as usize;
            drop(layer.0.fetcher.request(row..row + 1, Priority::Background));
        }
    }
}
