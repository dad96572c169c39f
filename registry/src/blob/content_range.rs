//! The `Content-Range` header, which says what a partial answer really holds.

use reqwest::Response;
use reqwest::header::{CONTENT_RANGE, HeaderMap};

/// What a 206 says it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ContentRange {
    /// The first byte.
    pub(super) start: u64,
    /// The byte after the last.
    pub(super) end: u64,
    /// The size of the whole, if it says.
    pub(super) total: Option<u64>,
}

impl ContentRange {
    /// The one `Content-Range` of `response`, if it is well-formed.
    pub(super) fn of(response: &Response) -> Option<Self> {
        Self::read(response.headers())
    }

    fn read(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(CONTENT_RANGE).iter();
        let value = values.next()?.to_str().ok()?;
        if values.next().is_some() {
            return None;
        }
        Self::parse(value)
    }

    fn parse(text: &str) -> Option<Self> {
        let rest = text.trim().strip_prefix("bytes ")?;
        let (span, total) = rest.split_once('/')?;
        let (first, last) = span.split_once('-')?;
        let total = if total == "*" {
            None
        } else {
            Some(number(total)?)
        };
        let (start, end) = (number(first)?, number(last)?.checked_add(1)?);
        let sane = start < end && total.is_none_or(|total| end <= total);
        sane.then_some(Self { start, end, total })
    }
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// The parser, for [`crate::fuzzing`].
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing {
    use super::{ContentRange, HeaderMap};

    /// First byte, byte after the last, and size of the whole.
    pub(crate) fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
        ContentRange::read(headers).map(|range| (range.start, range.end, range.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_plain_range_is_understood() {
        let range = |start, end, total| Some(ContentRange { start, end, total });
        for (text, expected) in [
            ("bytes 0-0/1", range(0, 1, Some(1))),
            ("bytes 5-9/*", range(5, 10, None)),
            ("bytes 5-9/10", range(5, 10, Some(10))),
            ("bytes 5-9/9", None),
            ("bytes 9-5/10", None),
            ("bytes */10", None),
            ("bytes 5-9", None),
            ("5-9/10", None),
            ("bytes +5-9/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("lines 5-9/10", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(text), expected, "{text}");
        }
    }
}
