//! The start list of a layer: the chunks that a start is expected to read, in order.
//!
//! containerd refuses a snapshot with a label of more than 4096 bytes, so the list is runs of chunks in
//! as few bytes as they need, and what does not fit is left out from its end: the latest reads.

mod varint;

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::access::{ACCESSES_MAX, Access};

/// Key of the annotation; its value is a [`StartList`].
pub const START: &str = "containerd.io/snapshot/larder.start";

/// Longest value, bytes: containerd allows a label 4096 bytes with its key.
pub const START_VALUE_BYTES_MAX: usize = 4096 - START.len();

/// What a value begins with: the version of what follows.
const VERSION: &str = "1:";

/// Most bytes of a list before base64, which makes four characters of three bytes.
const LIST_BYTES_MAX: usize = (START_VALUE_BYTES_MAX - VERSION.len()) / 4 * 3;

/// Chunks that follow each other are one run if they were read within so many milliseconds: 10 ms is what
/// one chunk takes at 200 Mbit/s, so that order between layers is kept to about a chunk.
const RUN_MILLIS_MAX: u64 = 10;

/// Chunks that follow each other in the layer and are read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Run {
    /// Milliseconds since the image's start.
    millis: u32,
    first: u32,
    count: u32,
}

impl Run {
    fn end(&self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
}

/// The chunks of one layer that a start reads, each once, by time.
///
/// Written `1:` and base64url of, for each run, three numbers: milliseconds since the run before;
/// where it begins, counted from where that one ended (zigzag); its length less one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct StartList(Vec<Run>);

/// A value of [`START`] that is no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the start list {0}")]
pub struct StartError(&'static str);

impl StartList {
    /// The list of these accesses, in the order of their times; of a chunk the first one counts. What is
    /// beyond [`ACCESSES_MAX`] or [`START_VALUE_BYTES_MAX`] is left out, the latest first.
    pub fn of(accesses: &[Access]) -> Self {
        let mut sorted = accesses.to_vec();
        sorted.sort_by_key(|access| access.micros);
        let mut seen = HashSet::new();
        let firsts = sorted
            .into_iter()
            .filter(|access| seen.insert(access.chunk));
        let mut runs: Vec<Run> = Vec::new();
        for access in firsts.take(ACCESSES_MAX) {
            // A start of seven weeks is one that never ends.
            let millis = u32::try_from(access.micros / 1000).unwrap_or(u32::MAX);
            if let Some(last) = runs.last_mut()
                && last.end() == u64::from(access.chunk)
                && u64::from(millis - last.millis) <= RUN_MILLIS_MAX
            {
                last.count += 1;
                continue;
            }
            runs.push(Run {
                millis,
                first: access.chunk,
                count: 1,
            });
        }
        let mut list = Self(runs);
        let mut fitting = 0;
        let mut len = 0;
        list.encode(|run| {
            len += run.len();
            fitting += usize::from(len <= LIST_BYTES_MAX);
        });
        list.0.truncate(fitting);
        list
    }

    /// The list that `text` says of a layer of so many chunks.
    pub fn of_layer(text: &str, chunks: usize) -> Result<Self, StartError> {
        let list: Self = text.parse()?;
        if list.0.iter().all(|run| run.end() <= chunks as u64) {
            Ok(list)
        } else {
            Err(StartError("names chunks that the layer does not have"))
        }
    }

    /// Its accesses, by time.
    pub fn accesses(&self) -> impl Iterator<Item = Access> + '_ {
        self.0.iter().flat_map(|run| {
            let chunks = (0..run.count).map(|place| run.first + place);
            chunks.map(|chunk| Access {
                micros: u64::from(run.millis) * 1000,
                chunk,
            })
        })
    }

    /// Whether it lists nothing; such a list is not written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives the bytes of each run.
    fn encode(&self, mut out: impl FnMut(&[u8])) {
        let (mut millis, mut end) = (0, 0);
        for run in &self.0 {
            let mut bytes = Vec::new();
            varint::write(u64::from(run.millis - millis), &mut bytes);
            let step = i64::from(run.first) - end;
            varint::write(varint::zigzag(step), &mut bytes);
            varint::write(u64::from(run.count - 1), &mut bytes);
            out(&bytes);
            (millis, end) = (run.millis, i64::from(run.first) + i64::from(run.count));
        }
    }
}

impl fmt::Display for StartList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = Vec::new();
        self.encode(|run| bytes.extend_from_slice(run));
        write!(f, "{VERSION}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl FromStr for StartList {
    type Err = StartError;

    fn from_str(text: &str) -> Result<Self, StartError> {
        if text.len() > START_VALUE_BYTES_MAX {
            return Err(StartError("is longer than a label may be"));
        }
        let list = text
            .strip_prefix(VERSION)
            .ok_or(StartError("is of another version"))?;
        let bytes = URL_SAFE_NO_PAD
            .decode(list)
            .map_err(|_| StartError("is not base64url without padding"))?;
        let mut rest = &bytes[..];
        let mut number = || varint::read(&mut rest);
        let mut runs = Vec::new();
        let (mut millis, mut end, mut chunks) = (0_u64, 0_i64, 0_u64);
        while let Some(later) = number()? {
            let (Some(step), Some(more)) = (number()?, number()?) else {
                return Err(StartError("ends inside a run"));
            };
            millis = millis.saturating_add(later);
            let first = end.checked_add(varint::unzigzag(step));
            let outside = StartError("has a run outside of what a layer can have");
            let run = Run {
                millis: u32::try_from(millis).map_err(|_| outside)?,
                first: first
                    .and_then(|first| first.try_into().ok())
                    .ok_or(outside)?,
                count: u32::try_from(more.saturating_add(1)).map_err(|_| outside)?,
            };
            chunks += u64::from(run.count);
            if run.end() > 1 << 32 || chunks > ACCESSES_MAX as u64 {
                return Err(outside);
            }
            end = i64::from(run.first) + i64::from(run.count);
            runs.push(run);
        }
        if runs.is_empty() {
            return Err(StartError("is empty"));
        }
        let mut by_place = runs.clone();
        by_place.sort_by_key(|run| run.first);
        if by_place
            .windows(2)
            .any(|pair| pair[0].end() > u64::from(pair[1].first))
        {
            return Err(StartError("has a chunk twice"));
        }
        Ok(Self(runs))
    }
}

#[cfg(test)]
mod tests;
