//! What came of Prepare calls.

use std::time::Duration;

use larder_fuse::{Count, Durations, Measured};

use crate::lazy::Reason;

/// How a Prepare ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prepared {
    /// A layer is loaded lazily.
    Lazy,
    /// A layer is unpacked by containerd.
    Eager,
    /// It was for a container.
    Plain,
}

const OUTCOMES: [(Prepared, &str); 3] = [
    (Prepared::Lazy, "lazy"),
    (Prepared::Eager, "eager"),
    (Prepared::Plain, "plain"),
];

/// Counts of Prepare calls.
#[derive(Debug, Default)]
pub struct Prepares {
    took: [Durations; OUTCOMES.len()],
    /// Layers that are not lazy, by the class of the reason.
    eager: [Count; Reason::CLASSES.len()],
}

impl Prepares {
    pub(super) fn ended(&self, how: Prepared, took: Duration) {
        self.took[how as usize].add(took);
    }

    pub(super) fn not_lazy(&self, reason: &Reason) {
        let class = reason.class();
        let place = Reason::CLASSES.iter().position(|one| *one == class);
        self.eager[place.unwrap_or_default()].one();
    }

    /// How long calls took, by their outcome.
    pub fn measured(&self) -> [(&'static str, Measured); OUTCOMES.len()] {
        OUTCOMES.map(|(how, name)| (name, self.took[how as usize].measured()))
    }

    /// How many calls ended how, and for which reason; the reason is empty where there is none.
    pub fn counted(&self) -> Vec<(&'static str, &'static str, u64)> {
        let ended = |how: Prepared| self.took[how as usize].measured().count();
        let mut counted = vec![
            ("lazy", "", ended(Prepared::Lazy)),
            ("plain", "", ended(Prepared::Plain)),
        ];
        let eager = Reason::CLASSES.iter().zip(&self.eager);
        counted.extend(eager.map(|(class, count)| ("eager", *class, count.get())));
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: each layer that is not lazy is counted under the class of its reason.
    #[test]
    fn reasons_are_counted_by_their_class() {
        let prepares = Prepares::default();
        prepares.not_lazy(&Reason::NotConverted);
        prepares.not_lazy(&Reason::Unknown);
        prepares.not_lazy(&Reason::Unknown);
        prepares.ended(Prepared::Eager, Duration::from_millis(3));
        let counted = prepares.counted();
        assert!(counted.contains(&("eager", "not_converted", 1)));
        assert!(counted.contains(&("eager", "unknown", 2)));
        assert!(counted.contains(&("lazy", "", 0)));
        let [_, (name, measured), _] = prepares.measured();
        assert_eq!((name, measured.count()), ("eager", 1));
    }

    #[test]
    fn outcomes_stand_at_their_place() {
        for (place, (how, name)) in OUTCOMES.into_iter().enumerate() {
            assert_eq!(how as usize, place, "{name}");
        }
    }
}
