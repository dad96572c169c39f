//! Credential programs (`docker-credential-…`), asked with bounded time and output.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::file::password_or_token;
use super::{Credential, CredentialError};

/// How long a program may take: those of clouds ask a network service.
const TIME_MAX: Duration = Duration::from_secs(20);

/// Longest output, bytes: cloud tokens have up to 12 KiB.
const OUTPUT_BYTES_MAX: u64 = 64 << 10;

/// What programs print when they know nothing of a host.
const NOT_FOUND: &str = "credentials not found in native keychain";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Output {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks `docker-credential-<name>` for the credential of `server`.
pub(super) async fn ask(name: &str, server: &str) -> Result<Option<Credential>, CredentialError> {
    let wrong = |reason: String| CredentialError::Program {
        name: name.chars().take(100).collect(),
        host: server.into(),
        reason,
    };
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || !name.bytes().all(plain) {
        // With a slash in it, the name would run any file.
        return Err(wrong("has a name that is no program's name".into()));
    }
    let asked = tokio::time::timeout(TIME_MAX, run(name, server)).await;
    let (ok, output) = match asked {
        Ok(Ok(result)) => result,
        Ok(Err(e)) => return Err(wrong(format!("cannot be run: {e}"))),
        Err(_) => return Err(wrong(format!("did not answer in {} s", TIME_MAX.as_secs()))),
    };
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        return Err(wrong(format!("printed more than {OUTPUT_BYTES_MAX} bytes")));
    }
    if !ok {
        let text = String::from_utf8_lossy(&output);
        if text.trim() == NOT_FOUND {
            return Ok(None);
        }
        return Err(wrong("failed; run it by hand to see why".into()));
    }
    parse(&output).map_err(wrong)
}

pub(super) fn parse(output: &[u8]) -> Result<Option<Credential>, String> {
    let output: Output = serde_json::from_slice(output)
        .map_err(|_| "printed no JSON with Username and Secret".to_owned())?;
    let told = !output.secret.is_empty();
    Ok(told.then(|| password_or_token(&output.username, &output.secret)))
}

/// Whether the program succeeded, and what it printed.
async fn run(name: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let mut child = Command::new(format!("docker-credential-{name}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that does not read its input is free to close it.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(OUTPUT_BYTES_MAX + 1)
            .read_to_end(&mut output)
            .await?;
    }
    if output.len() as u64 > OUTPUT_BYTES_MAX {
        child.kill().await?;
        return Ok((false, output));
    }
    Ok((child.wait().await?.success(), output))
}
