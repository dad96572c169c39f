//! The whole stored blob of a layer, for whoever needs it as the registry has it.

use std::sync::Arc;

use bytes::Bytes;
use larder_proto::digest::Digest;
use larder_proto::index::FOOTER_FRAME_LEN;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout_at};

use super::{FetchError, Fetcher, RUN_BYTES_MAX};
use crate::source::Answer;

/// Reads a layer's blob from its sources, piece by piece, and checks the digest at the end.
#[derive(Debug)]
pub struct BlobReader {
    fetcher: Arc<Fetcher>,
    blob: Digest,
    len: u64,
    at: u64,
    hasher: Sha256,
}

impl BlobReader {
    pub(crate) fn new(fetcher: Arc<Fetcher>) -> Self {
        let record = fetcher.layer.record();
        let location = record.location;
        Self {
            blob: record.blob,
            len: location.offset + location.stored_len + FOOTER_FRAME_LEN,
            at: 0,
            hasher: Sha256::new(),
            fetcher,
        }
    }

    /// Length of the blob, bytes.
    pub fn blob_len(&self) -> u64 {
        self.len
    }

    /// The next bytes; `None` when all were read and their digest is the blob's. An error after
    /// the last bytes means that what was read must be thrown away.
    pub async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.at == self.len {
            let found = Digest::from_bytes(self.hasher.clone().finalize().into());
            if found == self.blob {
                return Ok(None);
            }
            return Err(FetchError::Blob {
                layer: self.fetcher.id,
                expected: self.blob,
                found,
            });
        }
        let range = self.at..self.len.min(self.at + RUN_BYTES_MAX);
        let started = Instant::now();
        let mut last = ("no source".to_owned(), "none is known".to_owned());
        for tracked in self.fetcher.sources().iter() {
            let answer = tracked.source.get(range.clone());
            let reason = match timeout_at(started + self.fetcher.deadline, answer).await {
                Ok(Answer::Bytes(bytes)) if bytes.len() as u64 == range.end - range.start => {
                    self.at = range.end;
                    self.hasher.update(&bytes);
                    return Ok(Some(bytes));
                }
                Ok(Answer::Bytes(bytes)) => format!("it sent {} bytes", bytes.len()),
                Ok(Answer::Miss) => "it does not have the blob".to_owned(),
                Ok(Answer::Failed(failure)) => failure.reason,
                Err(_) => "no answer in time".to_owned(),
            };
            last = (tracked.source.name().to_owned(), reason);
        }
        Err(FetchError::Deadline {
            layer: self.fetcher.id,
            chunk: 0,
            waited: started.elapsed(),
            source_name: last.0,
            reason: last.1,
        })
    }
}
