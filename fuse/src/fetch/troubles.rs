//! What came of asking each source, in one run.

use std::time::Duration;

use super::Tracked;
use crate::source::FailureKind;
use crate::sync::time::Instant;

/// Sources whose troubles one sentence tells: more than have delivered any one layer so far, and a
/// line that a person still reads to its end.
const SOURCES_TOLD_MAX: usize = 4;

/// Characters told of each source: the failures of a registry and its mirrors in full.
const REASON_CHARS_MAX: usize = 1200;

/// The troubles of one run, source by source.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    sources: Vec<Trouble>,
    /// Who is being asked, and since when.
    asking: Option<(Tracked, Instant)>,
    /// Whether one of them sent something wrong.
    lied: bool,
}

/// What went wrong with one source.
#[derive(Debug)]
struct Trouble {
    name: String,
    /// What it failed with last.
    failure: Option<(FailureKind, String)>,
    /// That it was waited for in vain. Apart, because silence hides what failures say.
    silence: Option<String>,
}

impl Troubles {
    pub(super) fn asking(&mut self, tracked: &Tracked) {
        self.asking = Some((tracked.clone(), Instant::now()));
    }

    pub(super) fn answered(&mut self) {
        self.asking = None;
    }

    /// Who has not answered yet, and for how long.
    pub(super) fn asked(&self) -> Option<(Tracked, Duration)> {
        let (tracked, since) = self.asking.as_ref()?;
        Some((tracked.clone(), since.elapsed()))
    }

    /// Notes that a source sent something wrong.
    pub(super) const fn lied(&mut self) {
        self.lied = true;
    }

    pub(super) const fn has_lied(&self) -> bool {
        self.lied
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    pub(super) fn failed(&mut self, name: &str, kind: FailureKind, reason: String) {
        self.of(name).failure = Some((kind, reason));
    }

    pub(super) fn silent(&mut self, name: &str, reason: String) {
        self.of(name).silence = Some(reason);
    }

    /// The trouble of the source `name`. A layer has at most sixteen.
    fn of(&mut self, name: &str) -> &mut Trouble {
        let known = self.sources.iter().position(|one| one.name == name);
        let place = known.unwrap_or_else(|| {
            self.sources.push(Trouble {
                name: name.to_owned(),
                failure: None,
                silence: None,
            });
            self.sources.len() - 1
        });
        &mut self.sources[place]
    }

    /// Each source and its trouble, what can be mended first, who does not have the blob last.
    pub(super) fn told(&self) -> String {
        let mut ordered: Vec<_> = self.sources.iter().collect();
        ordered.sort_by_key(|one| match &one.failure {
            Some((FailureKind::Refused | FailureKind::Forbidden, _)) => 0,
            Some((FailureKind::Passing, _)) => 1,
            None => 2,
            Some((FailureKind::Absent, _)) => 3,
        });
        let mut words: Vec<_> = ordered
            .iter()
            .take(SOURCES_TOLD_MAX)
            .map(|one| one.told())
            .collect();
        if ordered.len() > SOURCES_TOLD_MAX {
            words.push(format!("and {} more", ordered.len() - SOURCES_TOLD_MAX));
        }
        words.join("; ")
    }
}

impl Trouble {
    fn told(&self) -> String {
        let failure = self.failure.as_ref().map(|(_, reason)| reason);
        let reasons: Vec<_> = failure.into_iter().chain(&self.silence).collect();
        let reasons: Vec<String> = reasons
            .into_iter()
            .map(|reason| reason.chars().take(REASON_CHARS_MAX).collect())
            .collect();
        format!("{}: {}", self.name, reasons.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Promise: all sources are told, first the one to be mended, last the ones that never had the
    /// blob; many of them make no book.
    #[test]
    fn every_source_is_told_and_what_can_be_mended_first() {
        let mut troubles = Troubles::default();
        troubles.failed("absent", FailureKind::Absent, "it has none".into());
        troubles.silent("silent", "no answer within 10s".into());
        troubles.failed("down", FailureKind::Passing, "refused".into());
        troubles.silent("down", "no answer within 9s".into());
        troubles.failed("locked", FailureKind::Refused, "wrong password".into());
        assert_eq!(
            troubles.told(),
            "locked: wrong password; down: refused; no answer within 9s; \
             silent: no answer within 10s; absent: it has none"
        );
        for number in 0..9 {
            let reason = "x".repeat(10_000);
            troubles.failed(&number.to_string(), FailureKind::Passing, reason);
        }
        let told = troubles.told();
        assert!(told.ends_with("and 9 more"), "{told}");
        assert!(told.len() < 8000, "{}", told.len());
    }
}
