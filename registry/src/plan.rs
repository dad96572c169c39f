//! Where to ask for a registry's content: its mirrors in order, then the registry itself.

use std::sync::Arc;

use crate::attempts::Purpose;
use crate::endpoint::Endpoint;
use crate::retry::Budget;

/// The endpoints of one registry.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) mirrors: Vec<Arc<Endpoint>>,
    pub(crate) server: Arc<Endpoint>,
    pub(crate) budget: Arc<Budget>,
}

impl Plan {
    /// The endpoints to ask, in order; never none, the registry itself is always the last.
    pub(crate) fn endpoints(&self, purpose: Purpose) -> Vec<Arc<Endpoint>> {
        let fit = |endpoint: &&Arc<Endpoint>| {
            let able = match purpose {
                Purpose::Pull => endpoint.capabilities.pull,
                Purpose::Resolve => endpoint.capabilities.resolve,
                // A mirror is a copy; what is written belongs into the registry.
                Purpose::Push => false,
            };
            able && !endpoint.is_passed_over()
        };
        let mirrors = self.mirrors.iter().filter(fit);
        mirrors.chain([&self.server]).map(Arc::clone).collect()
    }
}
