//! Where to ask for a registry's content: its mirrors in order, then the registry itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::attempts::Purpose;
use crate::endpoint::Endpoint;
use crate::error::Cause;
use crate::hosts::{Hosts, Setup};
use crate::names::Resolver;
use crate::options::ClientOptions;
use crate::retry::Budget;

/// How long a plan is used before its files are read again, so that a new CA or mirror needs no
/// restart.
const REREAD: Duration = Duration::from_secs(30);

/// Registries whose plans are kept: more than anybody uses, and few enough to hold their
/// connections. Above it all are forgotten, which costs new connections.
const PLANS_MAX: usize = 256;

/// The endpoints of one registry.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The mirrors in order, and the registry itself last.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// The registry itself.
    pub(crate) registry: Arc<Endpoint>,
    pub(crate) budget: Arc<Budget>,
}

impl Plan {
    /// The endpoints to ask, never none: those in good health in the order of the configuration,
    /// then the others, who are better than nobody, the longest recovered first. The last of the configuration is the
    /// authority: what it says is missing or forbidden, is.
    pub(crate) fn endpoints(&self, purpose: Purpose) -> (Vec<Arc<Endpoint>>, Arc<Endpoint>) {
        let fit = |endpoint: &&Arc<Endpoint>| match purpose {
            Purpose::Pull => endpoint.capabilities.pull,
            Purpose::Resolve | Purpose::List => endpoint.capabilities.resolve,
            // A mirror is a copy; what is written belongs into the registry.
            Purpose::Push => false,
        };
        let mut asked: Vec<_> = self.endpoints.iter().filter(fit).cloned().collect();
        let authority = match asked.last() {
            Some(last) => Arc::clone(last),
            None => Arc::clone(&self.registry),
        };
        if asked.is_empty() {
            asked.push(Arc::clone(&authority));
        }
        asked.sort_by_key(|endpoint| endpoint.passed_over());
        (asked, authority)
    }
}

/// The plans of one client.
#[derive(Debug)]
pub(crate) struct Plans {
    hosts: Hosts,
    resolver: Resolver,
    known: Mutex<HashMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    setup: Setup,
    plan: Arc<Plan>,
    /// When, by the client's uptime.
    read: Duration,
}

impl Plans {
    pub(crate) fn new(hosts: Hosts, resolver: Resolver) -> Self {
        Self {
            hosts,
            resolver,
            known: Mutex::default(),
        }
    }

    /// The plan for `registry`, as its files say now or said a little while ago.
    pub(crate) async fn get(
        &self,
        registry: &str,
        options: &ClientOptions,
    ) -> Result<Arc<Plan>, Cause> {
        let now = options.clock.uptime();
        if let Some(plan) = self.fresh(registry, now) {
            return Ok(plan);
        }
        let (hosts, name) = (self.hosts.clone(), registry.to_owned());
        let read = tokio::task::spawn_blocking(move || hosts.read(&name)).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PLANS_MAX && !known.contains_key(registry) {
            known.clear();
        }
        let before = known.get_mut(registry);
        let setup = match (read, before) {
            (Ok(setup), Some(before)) if before.setup == setup => {
                before.read = now;
                return Ok(Arc::clone(&before.plan));
            }
            (Ok(setup), _) => setup,
            (Err(error), Some(before)) => {
                // A file that is just being written: what worked goes on working.
                tracing::warn!(registry, error, "keeping the last good configuration");
                before.read = now;
                return Ok(Arc::clone(&before.plan));
            }
            (Err(error), None) => return Err(Cause::Local(error)),
        };
        let budget = known
            .get(registry)
            .map(|before| Arc::clone(&before.plan.budget));
        let budget = budget.unwrap_or_else(|| Arc::new(Budget::new(&*options.clock)));
        let plan = Arc::new(setup.plan(options, &self.resolver, budget));
        let entry = Known {
            setup,
            plan: Arc::clone(&plan),
            read: now,
        };
        known.insert(registry.into(), entry);
        Ok(plan)
    }

    fn fresh(&self, registry: &str, now: Duration) -> Option<Arc<Plan>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get(registry)?;
        (now.saturating_sub(known.read) < REREAD).then(|| Arc::clone(&known.plan))
    }
}
