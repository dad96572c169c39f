//! Numbers, times and records, as Go's reader understands them.

use super::number::{Time, decimal, field, octal, time};
use super::pax::Records;

#[test]
fn header_numbers_are_octal_or_base_256() {
    let cases: [(&[u8], Option<i64>); 14] = [
        (b"0000644\0", Some(0o644)),
        (b"  644 \0\0", Some(0o644)),
        (b"\0\0\0\0\0\0\0\0", Some(0)),
        (b"        ", Some(0)),
        (b"7\x007     ", Some(7)),
        (b"77777777", Some(0o77_777_777)),
        (b"0000648\0", None),
        (b"-1      ", None),
        (b"0x12    ", None),
        (b"\x80\0\0\0\0\0\x01\0", Some(256)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
        (b"\xff\xff\xff\xff\xff\xff\xff\xfb", Some(-5)),
        (
            b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
            Some(i64::MAX),
        ),
        (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
    ];
    for (bytes, expected) in cases {
        assert_eq!(
            field(bytes),
            expected,
            "{:?}",
            bytes.escape_ascii().to_string()
        );
    }
    assert_eq!(octal(b"1777777777777777777777"), Some(-1));
    assert_eq!(octal(b"7777777777777777777777"), None);
}

#[test]
fn decimals_have_an_optional_sign_and_nothing_else() {
    for (text, expected) in [
        ("12", Some(12)),
        ("+7", Some(7)),
        ("-0", Some(0)),
        ("007", Some(7)),
    ] {
        assert_eq!(decimal(text.as_bytes()), expected, "{text}");
    }
    for text in [
        "",
        "+",
        " 1",
        "1 ",
        "1_0",
        "0x1",
        "9223372036854775808",
        "1.0",
    ] {
        assert_eq!(decimal(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn fractions_of_negative_times_count_downwards() {
    let at = |seconds, nanoseconds| {
        Some(Time {
            seconds,
            nanoseconds,
        })
    };
    assert_eq!(time(b"1.5"), at(1, 500_000_000));
    assert_eq!(time(b"1.1234567899"), at(1, 123_456_789));
    assert_eq!(time(b"-1.25"), at(-2, 750_000_000));
    assert_eq!(time(b"-0.5"), at(-1, 500_000_000));
    assert_eq!(time(b"-3"), at(-3, 0));
    assert_eq!(time(b".5"), None);
    assert_eq!(time(b"1.-5"), None);
}

/// A record's length counts itself; whatever does not fit it exactly is refused.
#[test]
fn records_state_their_length() {
    let value = |text: &str| {
        let records = Records::parse(text.as_bytes(), 0).ok()?;
        Some(records.get("path")?.to_vec())
    };
    assert_eq!(value("9 path=a\n"), Some(b"a".to_vec()));
    assert_eq!(value("9 path=a\n9 path=b\n"), Some(b"b".to_vec()));
    assert_eq!(value("11 path=a=\n"), Some(b"a=".to_vec()));
    for text in [
        "8 path=a\n",
        "11 path=a\n",
        "9 path=a",
        "path=a\n",
        "5 =a\n",
        "11 path=a\0\n",
    ] {
        assert!(Records::parse(text.as_bytes(), 0).is_err(), "{text:?}");
    }
}

/// Sparse format 0.0 lists offset and length in turn.
#[test]
fn segments_of_format_0_0_come_in_pairs() {
    let sound = "23 GNU.sparse.offset=0\n26 GNU.sparse.numbytes=10\n";
    let records = Records::parse(sound.as_bytes(), 0).expect("sound records");
    assert_eq!(records.sparse_map(), Some(b"0,10".as_slice()));
    let swapped = "26 GNU.sparse.numbytes=10\n23 GNU.sparse.offset=0\n";
    assert!(Records::parse(swapped.as_bytes(), 0).is_err());
}
