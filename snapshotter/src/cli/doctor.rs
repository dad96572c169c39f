//! `doctor`: looks at the machine and at containerd, and says what is missing and how to get it.

mod containerd;
mod kernel;

use std::path::PathBuf;

use serde::Serialize;

use super::output::{print, print_json};
use crate::config::Config;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// What it is about.
    what: &'static str,
    /// How it is.
    verdict: Verdict,
    /// What was seen.
    seen: String,
    /// What to do, unless it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    /// As it should be.
    Good,
    /// Works, but not as well as it could.
    Notice,
    /// Lazy loading does not work.
    Bad,
}

impl Finding {
    fn good(what: &'static str, seen: impl Into<String>) -> Self {
        Self {
            what,
            verdict: Verdict::Good,
            seen: seen.into(),
            advice: None,
        }
    }

    fn notice(what: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self {
            what,
            verdict: Verdict::Notice,
            seen: seen.into(),
            advice,
        }
    }

    fn bad(what: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        let advice = Some(advice.into());
        Self {
            what,
            verdict: Verdict::Bad,
            seen: seen.into(),
            advice,
        }
    }
}

/// Prints what it finds; fails if lazy loading does not work.
pub(super) async fn doctor(
    config: Config,
    containerd_config: PathBuf,
    as_json: bool,
) -> anyhow::Result<()> {
    let mut findings = kernel::look();
    findings.extend(containerd::look(&config, &containerd_config).await);
    if as_json {
        print_json(&findings)?;
    } else {
        print(&findings.iter().map(text).collect::<String>())?;
    }
    let bad = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad)
        .count();
    match bad {
        0 => Ok(()),
        bad => Err(Failed(bad, findings.len()).into()),
    }
}

/// Something is bad; the findings were printed and say what.
#[derive(Debug, thiserror::Error)]
#[error("{0} of {1} checks failed")]
pub(super) struct Failed(usize, usize);

fn text(finding: &Finding) -> String {
    let mark = match finding.verdict {
        Verdict::Good => "ok    ",
        Verdict::Notice => "notice",
        Verdict::Bad => "FAIL  ",
    };
    let mut text = format!("{mark} {}: {}\n", finding.what, finding.seen);
    for line in finding.advice.iter().flat_map(|advice| advice.lines()) {
        text.push_str("         ");
        text.push_str(line);
        text.push('\n');
    }
    text
}
