//! Reading the body of an answer, with limits on size and on slowness.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use reqwest::Response;

use crate::error::Cause;
use crate::exchange;
use crate::options::Timeouts;

/// The body of an answer, broken off when it comes slower than the minimum rate.
///
/// Only the time spent waiting for the sender counts; a slow reader is not the sender's fault.
#[derive(Debug)]
pub(crate) struct Paced {
    response: Response,
    host: String,
    window: Duration,
    bytes_min: u64,
    waited: Duration,
    bytes: u64,
}

impl Paced {
    pub(crate) const fn new(response: Response, host: String, timeouts: &Timeouts) -> Self {
        Self {
            response,
            host,
            window: timeouts.rate_window,
            bytes_min: timeouts.rate_bytes_min,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The next bytes; `None` at the end of the body.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Cause> {
        loop {
            let begun = Instant::now();
            let left = self.window.saturating_sub(self.waited);
            let chunk = tokio::time::timeout(left, self.response.chunk()).await;
            self.waited += begun.elapsed();
            match chunk {
                Ok(Ok(None)) => return Ok(None),
                Ok(Ok(Some(bytes))) => {
                    self.bytes += bytes.len() as u64;
                    self.settle()?;
                    return Ok(Some(bytes));
                }
                Ok(Err(error)) => return Err(exchange::broken(&error, &self.host)),
                Err(_elapsed) => self.settle()?,
            }
        }
    }

    /// Closes a window that has passed, and complains if it brought too little.
    fn settle(&mut self) -> Result<(), Cause> {
        if self.waited < self.window {
            return Ok(());
        }
        if self.bytes < self.bytes_min {
            let (bytes, seconds) = (self.bytes, self.waited.as_secs());
            return Err(Cause::Stalled {
                host: self.host.clone(),
                bytes,
                seconds,
            });
        }
        self.waited = Duration::ZERO;
        self.bytes = 0;
        Ok(())
    }
}

/// Reads a whole body of at most `limit` bytes.
pub(crate) async fn read_all(
    response: Response,
    host: &str,
    what: &'static str,
    limit: u64,
    timeouts: &Timeouts,
) -> Result<Bytes, Cause> {
    let announced = response.content_length();
    if let Some(bytes) = announced.filter(|bytes| *bytes > limit) {
        return Err(Cause::TooLarge { what, bytes, limit });
    }
    let mut body = Paced::new(response, host.into(), timeouts);
    let mut all = BytesMut::new();
    while let Some(bytes) = body.next().await? {
        let total = (all.len() + bytes.len()) as u64;
        if total > limit {
            return Err(Cause::TooLarge {
                what,
                bytes: total,
                limit,
            });
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.freeze())
}
