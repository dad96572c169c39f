//! What the supervisor itself says, on standard error beside the log of its daemon: it never waits for its reader.

use crate::stderr;

/// Says things in the form that the daemon's log has.
pub(super) struct Voice {
    /// Has what is traced written as JSON objects from now on.
    start_json: fn(),
    is_json: bool,
}

impl Voice {
    /// Plain sentences, until a daemon says that its log is one of JSON objects.
    pub(super) fn new(start_json: fn()) -> Self {
        Self {
            start_json,
            is_json: false,
        }
    }

    pub(super) fn turn_json(&mut self) {
        if !self.is_json {
            (self.start_json)();
            self.is_json = true;
        }
    }

    /// What an operator has to mend.
    pub(super) fn error(&self, text: &str) {
        if self.is_json {
            tracing::error!("{text}");
        } else {
            stderr::say(&format!("ERROR {text}"));
        }
    }

    pub(super) fn warn(&self, text: &str) {
        if self.is_json {
            tracing::warn!("{text}");
        } else {
            stderr::say(text);
        }
    }
}
