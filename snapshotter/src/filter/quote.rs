//! Go string literals, with `/` and `|` as further quotes.

/// Reads a quoted string whose opening `quote` was already consumed.
///
/// Returns the value and the number of bytes read, closing quote included; nothing if the literal
/// does not end, breaks the line, holds an escape Go does not know, or is not UTF-8 in the end.
pub(super) fn unquote(text: &str, quote: char) -> Option<(String, usize)> {
    let mut value = Vec::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            c if c == quote => {
                let value = String::from_utf8(value).ok()?;
                return Some((value, at + c.len_utf8()));
            }
            '\n' | '\0' => return None,
            '\\' => escape(&mut chars, quote, &mut value)?,
            c => push(&mut value, c),
        }
    }
    None
}

fn escape(chars: &mut std::str::CharIndices<'_>, quote: char, value: &mut Vec<u8>) -> Option<()> {
    let (_, c) = chars.next()?;
    match c {
        'a' => value.push(0x07),
        'b' => value.push(0x08),
        'f' => value.push(0x0c),
        'n' => value.push(b'\n'),
        'r' => value.push(b'\r'),
        't' => value.push(b'\t'),
        'v' => value.push(0x0b),
        '\\' => value.push(b'\\'),
        c if c == quote => push(value, c),
        'x' => value.push(u8::try_from(number(chars, 16, 2)?).ok()?),
        'u' => push(value, char::from_u32(number(chars, 16, 4)?)?),
        'U' => push(value, char::from_u32(number(chars, 16, 8)?)?),
        '0'..='7' => {
            let high = c.to_digit(8)? << 6;
            value.push(u8::try_from(high | number(chars, 8, 2)?).ok()?);
        }
        _ => return None,
    }
    Some(())
}

fn number(chars: &mut std::str::CharIndices<'_>, radix: u32, digits: u32) -> Option<u32> {
    let mut number: u32 = 0;
    for _ in 0..digits {
        let digit = chars.next()?.1.to_digit(radix)?;
        number = number.checked_mul(radix)?.checked_add(digit)?;
    }
    Some(number)
}

fn push(value: &mut Vec<u8>, c: char) {
    value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}
