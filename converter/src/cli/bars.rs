//! Progress on a terminal (bars) and elsewhere (lines).

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use larder_proto::digest::Digest;

use super::text::{short, size};
use crate::progress::{Event, Progress, Silent};
use crate::report::{Action, LayerReport};

/// The progress that fits standard error and the options.
pub(super) fn progress(quiet: bool) -> Arc<dyn Progress> {
    if quiet {
        Arc::new(Silent)
    } else if std::io::stderr().is_terminal() {
        Arc::new(Bars::default())
    } else {
        Arc::new(Lines)
    }
}

/// One line per finished layer.
struct Lines;

impl Progress for Lines {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::LayerFinished { report } => eprintln!("{}", line(report)),
            Event::Note(text) => eprintln!("note: {text}"),
            _ => {}
        }
    }
}

/// One bar per layer that is being read, and per blob that is being sent.
#[derive(Default)]
struct Bars {
    all: MultiProgress,
    running: Mutex<HashMap<(&'static str, Digest), ProgressBar>>,
}

impl Bars {
    fn start(&self, what: &'static str, digest: Digest, length: u64) {
        let style = "{prefix:>10} {msg} [{bar:30}] {decimal_bytes:>10} {decimal_bytes_per_sec:>13}";
        let style = ProgressStyle::with_template(style)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = self
            .all
            .add(ProgressBar::new(length))
            .with_style(style)
            .with_prefix(what);
        bar.set_message(short(&digest.to_string()).to_owned());
        self.running().insert((what, digest), bar);
    }

    fn finish(&self, what: &'static str, digest: Digest) {
        if let Some(bar) = self.running().remove(&(what, digest)) {
            bar.finish_and_clear();
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<(&'static str, Digest), ProgressBar>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const CONVERT: &str = "converting";
const SEND: &str = "sending";

impl Progress for Bars {
    fn event(&self, event: &Event<'_>) {
        match *event {
            Event::Planned { .. } => {}
            Event::LayerStarted { layer, size } => self.start(CONVERT, layer, size),
            Event::LayerAdvanced { layer, bytes } => {
                if let Some(bar) = self.running().get(&(CONVERT, layer)) {
                    bar.inc(bytes);
                }
            }
            Event::LayerFinished { report } => {
                if let Ok(layer) = report.source.parse() {
                    self.finish(CONVERT, layer);
                }
                let _ = self.all.println(line(report));
            }
            Event::UploadStarted { blob, size } => self.start(SEND, blob, size),
            Event::UploadAdvanced { blob, sent } => {
                if let Some(bar) = self.running().get(&(SEND, blob)) {
                    bar.set_position(sent);
                }
            }
            Event::UploadFinished { blob } => self.finish(SEND, blob),
            Event::Note(text) => drop(self.all.println(format!("note: {text}"))),
        }
    }
}

fn line(report: &LayerReport) -> String {
    let LayerReport {
        source,
        size_before,
        size_after,
        ..
    } = report;
    let action = match report.action {
        Action::Converted => "converted",
        Action::Reused => "reused",
        Action::Copied => "copied",
    };
    let sizes = if size_before == size_after {
        size(*size_before)
    } else {
        format!("{} -> {}", size(*size_before), size(*size_after))
    };
    let reason = report
        .reason
        .as_ref()
        .map(|text| format!(": {text}"))
        .unwrap_or_default();
    format!("layer {} {action} ({sizes}){reason}", short(source))
}
