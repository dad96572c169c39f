//! What a start list promises: it says again what it was made of, it fits a label, and nothing else is one.

use proptest::prelude::*;

use super::*;

fn access(millis: u64, chunk: u32) -> Access {
    Access {
        micros: millis * 1000,
        chunk,
    }
}

fn chunks(list: &StartList) -> Vec<u32> {
    list.accesses().map(|access| access.chunk).collect()
}

fn list(bytes: &[u8]) -> Result<StartList, StartError> {
    format!("1:{}", URL_SAFE_NO_PAD.encode(bytes)).parse()
}

#[test]
fn a_list_keeps_the_order_of_times_and_each_chunk_once() {
    let made = StartList::of(&[
        access(30, 2),
        access(0, 7),
        access(1, 8),
        access(31, 7),
        access(500, 3),
    ]);
    assert_eq!(chunks(&made), [7, 8, 2, 3]);
    let text = made.to_string();
    assert_eq!(text, "1:AA4BHg0A1gMAAA");
    assert_eq!(text.parse(), Ok(made));
}

#[test]
fn what_does_not_fit_a_label_is_left_out_from_the_end() {
    // Every other chunk, backwards, with long pauses: three to four bytes each.
    let all: Vec<_> = (0..5000)
        .map(|place| access(u64::from(place) * 200, 20_000 - 2 * place))
        .collect();
    let made = StartList::of(&all);
    let text = made.to_string();
    assert!(START.len() + text.len() <= 4096);
    assert!(text.len() > START_VALUE_BYTES_MAX - 12, "{}", text.len());
    let kept = chunks(&made);
    let first: Vec<_> = all[..kept.len()]
        .iter()
        .map(|access| access.chunk)
        .collect();
    assert_eq!(kept, first);
}

#[test]
fn a_layer_that_is_read_whole_is_a_few_bytes_and_cut_at_the_limit() {
    let all: Vec<_> = (0..100_000).map(|chunk| access(0, chunk)).collect();
    let made = StartList::of(&all);
    assert_eq!(chunks(&made).len(), ACCESSES_MAX);
    assert_eq!(made.to_string().len(), 2 + 7);
    let text = made.to_string();
    assert_eq!(StartList::of_layer(&text, ACCESSES_MAX), Ok(made));
    let error = StartList::of_layer(&text, ACCESSES_MAX - 1).unwrap_err();
    assert!(error.to_string().contains("does not have"), "{error}");
}

#[test]
fn odd_lists_are_refused() {
    for (bytes, why) in [
        (&[][..], "empty"),
        (&[0], "inside a run"),
        (&[0, 0], "inside a run"),
        (&[0x80], "inside a number"),
        (&[0x80, 0, 0, 0], "shortest"),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0], "too long"),
        // Times, places and lengths beyond 32 bits; a place before the first one.
        (&[0xff, 0xff, 0xff, 0xff, 0x7f, 0, 0], "outside"),
        (&[0, 1, 0], "outside"),
        (&[0, 0xfe, 0xff, 0xff, 0xff, 0x7f, 0], "outside"),
        (&[0, 0, 0xff, 0xff, 0xff, 0xff, 0x7f], "outside"),
        // More chunks than a list may have.
        (&[0, 0, 0x80, 0x80, 4], "outside"),
        // The same place twice.
        (&[0, 0, 0, 0, 1, 0], "twice"),
    ] {
        let error = list(bytes).unwrap_err().to_string();
        assert!(error.contains(why), "{bytes:?}: {error}");
    }
    for (text, why) in [
        ("", "version"),
        ("2:AAAA", "version"),
        ("1:AAAA=", "base64url"),
        ("1:AAA/", "base64url"),
        ("1:AB", "base64url"),
    ] {
        let error = text.parse::<StartList>().unwrap_err().to_string();
        assert!(error.contains(why), "{text:?}: {error}");
    }
    let long = format!("1:{}", "A".repeat(START_VALUE_BYTES_MAX));
    assert!(long.parse::<StartList>().is_err());
}

proptest! {
    #[test]
    fn any_accesses_survive_the_text_and_any_list_prints_as_it_was_read(
        accesses in prop::collection::vec((any::<u64>(), any::<u32>()), 0..600),
        bytes in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let accesses: Vec<_> = accesses
            .into_iter()
            .map(|(micros, chunk)| Access { micros, chunk })
            .collect();
        let made = StartList::of(&accesses);
        if !made.is_empty() {
            prop_assert_eq!(made.to_string().parse(), Ok(made));
        }
        let text = format!("1:{}", URL_SAFE_NO_PAD.encode(bytes));
        if let Ok(read) = text.parse::<StartList>() {
            prop_assert_eq!(read.to_string(), text);
            let mut chunks = chunks(&read);
            let count = chunks.len();
            chunks.sort_unstable();
            chunks.dedup();
            prop_assert_eq!(chunks.len(), count);
        }
    }
}
