//! `doctor`: looks at the machine and at containerd, and says what is missing and how to get it.

mod containerd;
mod kernel;

use std::path::PathBuf;

use serde::Serialize;

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
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for finding in &findings {
            print(finding);
        }
    }
    let bad = findings
        .iter()
        .filter(|finding| finding.verdict == Verdict::Bad)
        .count();
    anyhow::ensure!(bad == 0, "{bad} of {} checks failed", findings.len());
    Ok(())
}

fn print(finding: &Finding) {
    let mark = match finding.verdict {
        Verdict::Good => "ok    ",
        Verdict::Notice => "notice",
        Verdict::Bad => "FAIL  ",
    };
    println!("{mark} {}: {}", finding.what, finding.seen);
    for line in finding.advice.iter().flat_map(|advice| advice.lines()) {
        println!("         {line}");
    }
}
