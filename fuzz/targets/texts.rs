//! The small texts that others write: headers of registries, names, annotations, hosts.toml, filters.
//! Whatever they say, no panic, and time and memory in proportion to them.
//!
//! - A login challenge that is accepted leads to http or https, with at most a scope per word.
//! - A Content-Range that is accepted is not empty and lies within the whole.
//! - A Retry-After asks for 0.1 to 30 seconds; a redirect is remembered for an hour at most.
//! - A name that is accepted prints as a name that is the same, and fits a URL as it is.
//! - An index location and a digest that are accepted print as what they were read from, and the
//!   digest is a file name.
//! - A start list that is accepted prints as what it was read from, names at most as many chunks as a
//!   list may, and each of them in order of time.
//! - A hosts.toml names at most 16 hosts; what is wrong with it is told without a value of it.
//! - A filter that is accepted can be asked about any snapshot.
//!
//! The first byte of the input chooses the parser.
#![no_main]

use std::collections::BTreeMap;

use larder_proto::access::ACCESSES_MAX;
use larder_proto::annotation::{IndexLocation, StartList};
use larder_proto::digest::Digest;
use larder_registry::fuzzing;
use libfuzzer_sys::fuzz_target;

// A link: by #[path], its own modules would be looked for beside it.
mod filter;

use filter::{Filter, Subject};

fuzz_target!(|bytes: &[u8]| {
    let Some((&which, text)) = bytes.split_first() else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match which % 16 {
        0 => fuzzing::www_authenticate(text),
        1 => fuzzing::content_range(text),
        2 => fuzzing::times(text),
        3 => fuzzing::reference(text),
        4 => location(text),
        5 => digest(text),
        6 => fuzzing::hosts_toml(text),
        8 => start_list(text),
        _ => filter(text),
    }
});

fn location(text: &str) {
    if let Ok(location) = text.parse::<IndexLocation>() {
        assert_eq!(location.to_string().parse(), Ok(location));
        assert!(location.offset.checked_add(location.stored_len).is_some());
    }
}

fn start_list(text: &str) {
    if let Ok(list) = text.parse::<StartList>() {
        assert_eq!(list.to_string(), text);
        let count = list.accesses().count();
        assert!(count > 0 && count <= ACCESSES_MAX);
        assert!(list.accesses().is_sorted_by_key(|access| access.micros));
    }
}

fn digest(text: &str) {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|b| b.is_ascii_hexdigit()));
    }
}

fn filter(text: &str) {
    let filters: Vec<String> = text.split('\n').map(String::from).collect();
    let Ok(filter) = Filter::parse(&filters) else {
        return;
    };
    let labels = BTreeMap::from([("a.b/c".to_owned(), text.chars().take(100).collect())]);
    for name in ["", "sha256:00", text] {
        filter.matches(&Subject {
            name,
            parent: "",
            kind: "committed",
            labels: &labels,
        });
    }
}
