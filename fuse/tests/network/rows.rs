//! The rows of the matrix: every fault, what it is done to, and what must come of it.

mod answers;
mod network;

use larder_test_support::registry::{Fault, On};

use crate::site::{Site, Way};

/// One way in which things go wrong.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) way: Way,
    pub(crate) arms: Vec<Arm>,
    pub(crate) expected: Expected,
    /// Requests at the registry while the fault lasts, at most.
    pub(crate) requests_max: usize,
    /// What else happens when the fault begins.
    also: Option<fn(&Site)>,
}

/// A fault, and how long it lasts.
#[derive(Debug, Clone)]
pub(crate) struct Arm {
    pub(crate) on: On,
    pub(crate) fault: Fault,
    /// For so many requests; `None` until it is cleared.
    pub(crate) times: Option<u32>,
}

/// What must come of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// The right bytes, before the deadline.
    Served,
    /// EIO or an error by the deadline, with one of these reasons.
    Fails(&'static [&'static str]),
    /// The same while nothing is known of the registry yet; the right bytes later.
    FailsAtFirst(&'static [&'static str]),
}

/// Requests of a read that is repeated until its deadline: seven rounds of three attempts, with a log-in.
const REPEATED: usize = 24;

/// Two looks at a source that says no, and a log-in before.
const LOOKED_TWICE: usize = 2;

/// The reasons of bytes that are not those of the index.
const WRONG: &[&str] = &["is wrong", "digest", "sent other content"];

/// Those of a registry that is not reached.
const LOST: &[&str] = &["cannot talk to"];

/// Those of one that is waited for in vain.
const SLOW: &[&str] = &["stalled", "no answer within"];

/// A registry reached by plain HTTP, which may be asked as often as a read is repeated.
fn row(name: impl Into<String>, arms: Vec<Arm>, expected: Expected) -> Row {
    Row {
        name: name.into(),
        way: Way::Plain,
        arms,
        expected,
        requests_max: REPEATED,
        also: None,
    }
}

impl Row {
    fn by(self, way: Way) -> Self {
        Self { way, ..self }
    }

    fn within(self, requests_max: usize) -> Self {
        Self {
            requests_max,
            ..self
        }
    }

    fn and(self, also: fn(&Site)) -> Self {
        Self {
            also: Some(also),
            ..self
        }
    }

    /// Brings the faults on.
    pub(crate) fn arm(&self, site: &Site) {
        for arm in &self.arms {
            let fault = match &arm.fault {
                // The address of another host is known only now.
                Fault::RedirectTo(place) => {
                    let blob = site.fixture.digest;
                    let there = format!("{}/v2/team/app/blobs/{blob}", site.other.host());
                    Fault::RedirectTo(place.replace("OTHER", &there))
                }
                other => other.clone(),
            };
            match arm.times {
                Some(times) => site.registry.fault_times(times, arm.on.clone(), fault),
                None => site.registry.fault(arm.on.clone(), fault),
            }
        }
        if let Some(also) = self.also {
            also(site);
        }
    }
}

fn always(fault: Fault) -> Vec<Arm> {
    on(On::Blobs, fault, None)
}

fn once(fault: Fault) -> Vec<Arm> {
    on(On::Blobs, fault, Some(1))
}

fn on(on: On, fault: Fault, times: Option<u32>) -> Vec<Arm> {
    vec![Arm { on, fault, times }]
}

fn status(code: u16) -> Fault {
    Fault::Status(code, None)
}

/// All rows.
pub(crate) fn all() -> Vec<Row> {
    let mut rows = answers::all();
    rows.extend(network::all());
    rows
}
