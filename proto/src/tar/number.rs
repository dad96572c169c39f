//! Numbers and times as tar headers and PAX records write them.

/// A time as a tar states it, before any bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds since 1970, UTC; may be negative.
    pub seconds: i64,
    /// Nanoseconds to add, `0..1_000_000_000`.
    pub nanoseconds: u32,
}

/// A numeric header field: base-256 if its first bit is set, else octal.
pub(super) fn field(bytes: &[u8]) -> Option<i64> {
    match bytes.first() {
        Some(first) if first & 0x80 != 0 => base256(bytes),
        _ => octal(bytes),
    }
}

/// Whether a numeric field is in base-256, which has room for any size.
pub(super) fn is_base256(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first & 0x80 != 0)
}

/// Big-endian two's complement in all bits but the first.
fn base256(bytes: &[u8]) -> Option<i64> {
    let inverted = if bytes[0] & 0x40 == 0 { 0x00 } else { 0xff };
    let mut value = 0u64;
    for (i, byte) in bytes.iter().enumerate() {
        let bits = (byte ^ inverted) & if i == 0 { 0x7f } else { 0xff };
        if value >> 56 != 0 {
            return None;
        }
        value = value << 8 | u64::from(bits);
    }
    let value = i64::try_from(value).ok()?;
    Some(if inverted == 0 { value } else { !value })
}

/// Octal digits among spaces and NULs; an empty field is 0.
#[expect(
    clippy::cast_possible_wrap,
    reason = "22 octal digits wrap in Go's reader, too"
)]
pub(super) fn octal(bytes: &[u8]) -> Option<i64> {
    let is_pad = |b: &u8| matches!(b, b' ' | 0);
    let Some(start) = bytes.iter().position(|b| !is_pad(b)) else {
        return Some(0);
    };
    let end = bytes.iter().rposition(|b| !is_pad(b))? + 1;
    let digits = until_nul(&bytes[start..end]);
    let mut value = 0u64;
    for digit in digits {
        if !matches!(digit, b'0'..=b'7') || value >> 61 != 0 {
            return None;
        }
        value = value << 3 | u64::from(digit - b'0');
    }
    Some(value as i64)
}

/// The bytes before the first NUL.
pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    match bytes.iter().position(|&b| b == 0) {
        Some(end) => &bytes[..end],
        None => bytes,
    }
}

/// A decimal number with an optional sign, and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    // Same grammar as `i64::from_str`: an optional `+` or `-`, then digits.
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Decimal seconds with an optional fraction, cut to nanoseconds.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (whole, fraction) = match text.iter().position(|&b| b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &text[..0]),
    };
    let seconds = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0, |sum, i| {
        sum * 10 + u32::from(fraction.get(i).map_or(0, |digit| digit - b'0'))
    });
    Some(if whole.starts_with(b"-") && nanoseconds != 0 {
        Time {
            seconds: seconds.saturating_sub(1),
            nanoseconds: 1_000_000_000 - nanoseconds,
        }
    } else {
        Time {
            seconds,
            nanoseconds,
        }
    })
}
