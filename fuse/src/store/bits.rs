//! A file of one bit per chunk: what it is, how many chunks, the bits, what they belong to, and a sum.

use larder_proto::digest::Algorithm;

/// Bytes of the sum at the end.
const SUM_LEN: usize = 32;

/// Longest file for so many chunks, bytes: a bit for each, and kind, number and two sums, rounded up.
pub(super) fn bytes_max(rows: usize) -> u64 {
    rows.div_ceil(64) as u64 * 8 + 128
}

/// `kind` names the file, `belongs_to` what else must be as it was.
pub(super) fn encode(
    kind: [u8; 8],
    rows: usize,
    words: impl Iterator<Item = u64>,
    belongs_to: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(rows / 8 + 128);
    bytes.extend(kind);
    bytes.extend((rows as u64).to_le_bytes());
    words.for_each(|word| bytes.extend(word.to_le_bytes()));
    bytes.extend(belongs_to);
    let sum = Algorithm::Blake3.digest(&bytes);
    bytes.extend(sum.as_bytes());
    bytes
}

/// The bits, unless the file is damaged, or another one.
pub(super) fn decode(
    kind: [u8; 8],
    rows: usize,
    bytes: &[u8],
    belongs_to: &[u8],
) -> Option<Vec<u64>> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM_LEN)?)?;
    let rest = body.strip_prefix(&kind)?;
    let rest = rest.strip_prefix(&(rows as u64).to_le_bytes())?;
    let words = rest.strip_suffix(belongs_to)?;
    let intact =
        words.len() == rows.div_ceil(64) * 8 && Algorithm::Blake3.digest(body).as_bytes() == sum;
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    intact.then(|| words.chunks_exact(8).map(word).collect())
}

/// What tells a file of bits from all others.
pub(super) fn sum(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.len().saturating_sub(SUM_LEN)..]
}
