//! The certificates that `certs.d` names.

use std::path::{Path, PathBuf};

use super::file::{Client, OneOrMany, Section, Unusable};
use crate::transport::{Trust, read_authorities, read_pem};

/// What a section of a hosts.toml in `dir` says; relative paths are relative to `dir`.
pub(super) fn from_section(dir: &Path, section: &Section) -> Result<Trust, Unusable> {
    let authority = |name: &String| read_authorities(&dir.join(name));
    let authorities = section.ca.iter().flat_map(OneOrMany::as_slice);
    let authorities = authorities.map(authority).collect::<Result<_, _>>();
    Ok(Trust {
        authorities: authorities.map_err(Unusable::of("ca"))?,
        identities: identities(dir, section).map_err(Unusable::of("client"))?,
        skip_verify: section.skip_verify,
    })
}

/// Our certificates, each with its key.
fn identities(dir: &Path, section: &Section) -> Result<Vec<Vec<u8>>, String> {
    let read = |name: &String| read_pem(&dir.join(name));
    Ok(match &section.client {
        None => Vec::new(),
        Some(Client::Files(files)) => files
            .as_slice()
            .iter()
            .map(read)
            .collect::<Result<_, _>>()?,
        Some(Client::Pairs(pairs)) => {
            let pair = |pair: &OneOrMany| match pair.as_slice() {
                [both] => read(both),
                [certificate, key] => Ok(join(read(certificate)?, &read(key)?)),
                _ => Err("an entry is no [certificate, key]".to_owned()),
            };
            pairs.iter().map(pair).collect::<Result<_, _>>()?
        }
    })
}

/// What a directory without hosts.toml holds, in Docker's layout: `*.crt` are authorities,
/// `*.cert` and `*.key` are ours.
pub(super) fn from_directory(dir: &Path) -> Result<Trust, String> {
    let wrong = |error: std::io::Error| format!("cannot read {}: {error}", dir.display());
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(wrong)? {
        files.push(entry.map_err(wrong)?.path());
    }
    files.sort();
    let mut trust = Trust::default();
    for path in &files {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => trust.authorities.push(read_authorities(path)?),
            Some("cert") => {
                let key = read_pem(&path.with_extension("key"))?;
                trust.identities.push(join(read_pem(path)?, &key));
            }
            _ => {}
        }
    }
    Ok(trust)
}

/// A certificate and its key as one PEM text.
fn join(mut certificate: Vec<u8>, key: &[u8]) -> Vec<u8> {
    certificate.push(b'\n');
    certificate.extend_from_slice(key);
    certificate
}
