//! What came of asking each host of a registry, told in one sentence.

use crate::error::Cause;

/// Hosts whose failures one sentence tells: a registry and more mirrors than most have, in a line
/// that a person still reads to its end. Each tells at most some 400 characters.
const HOSTS_TOLD_MAX: usize = 4;

/// The latest failure of each host that was asked, in the order they were first asked. The plan of a
/// registry bounds it.
#[derive(Debug, Default)]
pub(crate) struct Failures(Vec<(String, Cause)>);

impl Failures {
    pub(crate) fn note(&mut self, host: &str, cause: &Cause) {
        match self.0.iter_mut().find(|(known, _)| known == host) {
            Some((_, latest)) => *latest = cause.clone(),
            None => self.0.push((host.to_owned(), cause.clone())),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hosts that were asked have no such thing.
    pub(crate) fn all_absent(&self) -> bool {
        let absent = |(_, cause): &(String, Cause)| matches!(cause, Cause::NotFound { .. });
        self.0.iter().all(absent)
    }

    /// Each host with its failure; first the one that somebody can mend.
    pub(crate) fn told(&self) -> String {
        let mut ordered: Vec<_> = self.0.iter().collect();
        ordered.sort_by_key(|(_, cause)| remoteness(cause));
        let tell = |(host, cause): &&(String, Cause)| {
            let text = cause.to_string();
            if self.0.len() == 1 || text.contains(host.as_str()) {
                text
            } else {
                format!("{host}: {text}")
            }
        };
        let mut words: Vec<_> = ordered.iter().take(HOSTS_TOLD_MAX).map(tell).collect();
        if let Some(more) = ordered.len().checked_sub(HOSTS_TOLD_MAX)
            && more > 0
        {
            words.push(format!("and {more} more failed"));
        }
        words.join("; ")
    }
}

/// How far a failure is from something that somebody here can mend.
const fn remoteness(cause: &Cause) -> u8 {
    match cause {
        // The host is there: its certificate, our credentials or our configuration are wrong.
        Cause::Untrusted { .. }
        | Cause::Unauthorized { .. }
        | Cause::Forbidden { .. }
        | Cause::Redirect { .. }
        | Cause::Local(_) => 0,
        Cause::Malformed { .. }
        | Cause::WrongDigest { .. }
        | Cause::TooLarge { .. }
        | Cause::Refused { .. } => 1,
        Cause::Unavailable { .. } | Cause::Stalled { .. } | Cause::Deadline { .. } => 2,
        // Perhaps it has been down for ever, and others delivered.
        Cause::Connection { .. } => 3,
        Cause::NotFound { .. } => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn down(host: &str) -> Cause {
        let (host, detail) = (host.into(), "Connection refused".into());
        Cause::Connection { host, detail }
    }

    /// Promise: the failure to be mended comes first, every host is named once, and a crowd of them
    /// makes no book.
    #[test]
    fn every_host_is_told_once_and_what_can_be_mended_first() {
        let mut failures = Failures::default();
        let absent = Cause::NotFound {
            detail: String::new(),
        };
        failures.note("m.test", &down("m.test"));
        failures.note("m.test", &down("m.test"));
        assert_eq!(failures.told(), down("m.test").to_string());
        failures.note("r.test", &absent);
        assert!(!failures.all_absent());
        let untrusted = Cause::Untrusted {
            host: "n.test".into(),
            detail: "its certificate has expired".into(),
        };
        failures.note("n.test", &untrusted);
        let told = failures.told();
        let place = |words: &str| told.find(words).unwrap();
        assert!(place("cannot trust n.test") < place("cannot talk to m.test"));
        assert!(place("cannot talk to m.test") < place("r.test: not found"));
        assert_eq!(told.matches("m.test").count(), 1, "{told}");
        for number in 0..10 {
            failures.note(&format!("{number}.test"), &absent);
        }
        assert!(failures.told().ends_with("and 9 more failed"));
    }
}
