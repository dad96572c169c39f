//! Reading a blob while hashing it, and holding it to its descriptor at the end.

use std::fs::File;
use std::io::{self, Read, Write as _};

use larder_proto::digest::Digest;
use sha2::Digest as _;

use super::LayerError;
use super::pipeline::Cancel;

/// Bytes copied at a time where a blob is only copied or read to its end.
const COPY_BYTES: usize = 256 << 10;

/// A reader that hashes and counts what passes, and remembers whether the source failed.
pub struct Tap<R> {
    source: R,
    hasher: sha2::Sha256,
    count: u64,
    failure: Option<String>,
}

impl<R> std::fmt::Debug for Tap<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap")
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl<R: Read> Tap<R> {
    /// A tap on `source`.
    pub fn new(source: R) -> Self {
        Self {
            source,
            hasher: sha2::Sha256::new(),
            count: 0,
            failure: None,
        }
    }

    /// Bytes that have passed.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Hashes and counts bytes that did not come from the source.
    pub fn pass(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.count += bytes.len() as u64;
    }

    /// Reads what is left and gives the digest of the whole.
    pub fn digest(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(Digest::from_bytes(self.hasher.finalize().into()))
    }

    /// Reads what is left and compares the whole with what the manifest says.
    pub fn finish(mut self, layer: Digest, size: u64, cancel: &Cancel) -> Result<(), LayerError> {
        let mut buffer = vec![0; COPY_BYTES];
        // One byte more than promised is enough to know that the blob is another one.
        while self.failure.is_none() && self.count <= size {
            cancel.check()?;
            match self.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.failure = Some(error.to_string()),
            }
        }
        if let Some(reason) = self.failure {
            return Err(LayerError::Source { layer, reason });
        }
        if self.count > size {
            return Err(LayerError::Size {
                layer,
                expected: size,
                found: self.count,
            });
        }
        let found = Digest::from_bytes(self.hasher.finalize().into());
        if found != layer {
            return Err(LayerError::Digest {
                expected: layer,
                found,
                size: self.count,
            });
        }
        if self.count != size {
            return Err(LayerError::Size {
                layer,
                expected: size,
                found: self.count,
            });
        }
        Ok(())
    }
}

impl<R: Read> Read for Tap<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.source.read(buffer) {
            Ok(count) => {
                self.hasher.update(&buffer[..count]);
                self.count += count as u64;
                Ok(count)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.failure.get_or_insert_with(|| error.to_string());
                }
                Err(error)
            }
        }
    }
}

/// Copies a blob into `file` and checks it; `advance` is told how many bytes came.
pub fn verified_copy(
    blob: impl Read,
    (digest, size): (Digest, u64),
    file: &mut File,
    cancel: &Cancel,
    advance: &dyn Fn(u64),
) -> Result<(), LayerError> {
    let mut tap = Tap::new(blob);
    let mut buffer = vec![0; COPY_BYTES];
    while tap.failure.is_none() && tap.count <= size {
        cancel.check()?;
        let Ok(count) = tap.read(&mut buffer) else {
            continue;
        };
        if count == 0 {
            break;
        }
        let wrote = file.write_all(&buffer[..count]);
        wrote.map_err(|error| LayerError::Write {
            layer: digest,
            error,
        })?;
        advance(count as u64);
    }
    tap.finish(digest, size, cancel)
}
