//! Profiles that are sound, and everything else.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::access::ACCESSES_MAX;

fn layer(name: &str, reads: &[(u64, u32)]) -> LayerReads {
    LayerReads {
        index: Digest::of(name.as_bytes()),
        blob: Digest::of(b"blob"),
        diff_id: Digest::of(b"tar"),
        reads: reads
            .iter()
            .map(|&(micros, chunk)| Access { micros, chunk })
            .collect(),
    }
}

fn profile(layers: Vec<LayerReads>) -> Profile {
    Profile {
        image: "r.test/app:1".into(),
        layers,
    }
}

fn text(profile: &Profile) -> String {
    String::from_utf8(profile.encode()).unwrap()
}

/// Promise: a profile is written as steps of time in a form that is told, and read back as it was.
#[test]
fn a_profile_is_read_as_it_was_written() {
    let one = profile(vec![
        layer("a", &[(5, 9), (5, 3), (40, 1)]),
        layer("b", &[]),
    ]);
    let written = text(&one);
    assert!(
        written.contains(r#""reads":[[5,9],[0,3],[35,1]]"#),
        "{written}"
    );
    assert_eq!(Profile::decode(written.as_bytes()), Ok(one));
}

/// Promise: what an image is called does not matter to which image it is, and its layers do.
#[test]
fn an_image_is_named_by_its_layers() {
    let one = profile(vec![layer("a", &[]), layer("b", &[])]);
    let mut other = one.clone();
    other.image.clear();
    assert_eq!(one.key(), other.key());
    other.layers.reverse();
    assert_ne!(one.key(), other.key());
}

/// Promise: ten million reads, reads without end, layers without end, garbage and later versions are
/// refused, each with its reason.
#[test]
fn what_is_no_profile_is_refused_with_the_reason() {
    let sound = text(&profile(vec![layer("a", &[(1, 1)])]));
    let refused = |text: &str, words: &str| {
        let error = Profile::decode(text.as_bytes()).unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
        assert!(error.len() < 400, "{}", error.len());
    };
    let reads =
        |count: usize| sound.replace("[[1,1]]", &format!("[{}[1,1]]", "[0,1],".repeat(count)));
    refused(&reads(10_000_000), "bytes, and a profile has at most");
    refused(&reads(ACCESSES_MAX), "at most 65536 reads");
    let many: Vec<_> = (0..3)
        .map(|number| layer(&number.to_string(), &vec![(0, 1); ACCESSES_MAX - 1]))
        .collect();
    refused(&text(&profile(many)), "196605 reads");
    let layers: Vec<_> = (0..501)
        .map(|number| layer(&number.to_string(), &[]))
        .collect();
    refused(&text(&profile(layers)), "501 layers");
    refused(&text(&profile(vec![])), "no layers");
    let twice = profile(vec![layer("a", &[]), layer("a", &[])]);
    refused(&text(&twice), "twice");
    refused("", "form");
    refused("[]", "form");
    refused("\u{0}\u{1b}[2J", "form");
    refused(&format!("{}1", "[".repeat(100_000)), "form");
    refused(&sound.replace("[[1,1]]", "[[1,-1]]"), "form");
    refused(&sound.replace("[[1,1]]", "[[1,4294967296]]"), "form");
    refused(&sound.replace("[[1,1]]", "[[1]]"), "form");
    refused(&sound.replace("sha256:", "../"), "form");
    refused(&sound.replace("r.test/app:1", &"x".repeat(2000)), "name");
    refused(&sound.replace("r.test/app:1", "\\u001b[2J"), "name");
    refused(
        &sound.replace("\"version\":1", "\"version\":2"),
        "later build",
    );
}

/// Promise: of a later version that says that this one can read it, this one reads what it knows.
#[test]
fn a_later_version_says_who_can_read_it() {
    let sound = profile(vec![layer("a", &[(1, 1)])]);
    let later = r#""version":7,"readable_since":1,"more":[{}]"#;
    let later = text(&sound).replace("\"version\":1", later);
    assert_eq!(Profile::decode(later.as_bytes()), Ok(sound));
}

proptest! {
    /// Any bytes at all: an answer, never a panic.
    #[test]
    fn arbitrary_bytes_are_no_profile(bytes in vec(any::<u8>(), 0..2000)) {
        prop_assert!(Profile::decode(&bytes).is_err());
    }

    /// A profile that was damaged is refused, or is one that is written as it is read.
    #[test]
    fn a_damaged_profile_is_refused_or_harmless(at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let mut bytes = profile(vec![layer("a", &[(1, 7), (9, 8)]), layer("b", &[(3, 3)])]).encode();
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(profile) = Profile::decode(&bytes) {
            prop_assert_eq!(Profile::decode(&profile.encode()), Ok(profile));
        }
    }

    /// Whatever was read at whatever moment is kept.
    #[test]
    fn any_reads_are_kept(reads in vec((any::<u64>(), any::<u32>()), 0..50)) {
        let mut one = profile(vec![layer("a", &reads)]);
        let read = Profile::decode(&one.encode()).unwrap();
        one.layers[0].reads.sort_by_key(|read| read.micros);
        prop_assert_eq!(read, one);
    }
}
